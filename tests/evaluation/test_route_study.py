"""What routers decide, on routes that are known in advance, and on routers that disagree."""

from pathlib import Path

import numpy as np
import pytest
import torch

from elastic_dit import ElasticConfig, elasticize, load, restore
from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.difficulty import correlation, quarters, scene_difficulty
from elastic_dit.evaluation.flow_loss import flow_losses
from elastic_dit.evaluation.held_out import NoisyPairs
from elastic_dit.evaluation.route_study import study_routes
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.records import RunRecord
from emoji import STEPS
from studies import SIZE, Subject

LEVELS = (0.2, 0.8)
SETTINGS = SampleSettings(steps=STEPS, height=SIZE, width=SIZE)


def study(studied: Subject, adapter: str, *, reuse: bool = False) -> RunRecord:
    return study_routes(studied.family, adapter, studied.scenes, SETTINGS, LEVELS, reuse=reuse, batch=5, seed=3)


@pytest.fixture(scope="module")
def known(studied: Subject) -> RunRecord:
    return study(studied, studied.adapter, reuse=True)


@pytest.fixture(scope="module")
def differing(studied: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunRecord]:
    """An adapter whose routers look at the image."""
    torch.manual_seed(1)
    config = ElasticConfig.of(router_hidden_size=8, init="random", max_reuse=0, router_input="joint")
    elastic = elasticize(studied.family.pipeline, config)
    with torch.no_grad():
        for router in elastic.routers:
            router.gate_head.weight.normal_(std=20)
            router.width_head.weight.normal_(std=20)
    adapter = str(elastic.save(tmp_path_factory.mktemp("differing") / "adapter"))
    restore(studied.family.pipeline)
    return adapter, study(studied, adapter)


def test_maps_of_known_routes(known: RunRecord) -> None:
    off, on = known.results["runs"]
    for group in ("easy", "hard"):
        assert off[group]["open"] == [[1, 0, 1]] * STEPS
        assert off[group]["width"] == [[0.5, None, 1]] * STEPS
        assert on[group]["open"] == off[group]["open"]
        # the third block runs, is reused three times, runs
        assert [row[2] for row in on[group]["width"]] == [1, None, None, None, 1]
    assert (off["reuse_rate"], on["reuse_rate"]) == (0, pytest.approx(3 / 10))
    assert on["flops_share"] < off["flops_share"]


def test_routers_that_tell_nothing_apart(known: RunRecord) -> None:
    run = known.results["runs"][0]
    assert run["deviation"] == pytest.approx(0)
    assert run["correlation"]["value"] == known.results["forwards"]["loss"]["value"] == 0


def test_shares_are_those_of_each_image(differing: tuple[str, RunRecord], studied: Subject) -> None:
    adapter, record = differing
    shares = record.samples["no_reuse_flops_share"]
    assert len(set(shares)) > 3
    last = [one.prompt for one in studied.scenes[10:]]
    elastic = load(studied.family.pipeline, adapter)
    sample_images(studied.family.pipeline, [one.caption for one in last], [3 + one.seed for one in last], SETTINGS)
    assert shares[10:] == pytest.approx([elastic.trace.sample_share(index) for index in range(2)], rel=0.01)
    restore(studied.family.pipeline)
    run = record.results["runs"][0]
    easy, _ = quarters([scene_difficulty(one.prompt) for one in studied.scenes])
    assert run["easy"]["flops_share"] == pytest.approx(np.mean([shares[index] for index in easy]))
    assert run["lowest"] == min(shares) and run["highest"] == max(shares)


def test_forwards_are_compared_within_noise_levels(differing: tuple[str, RunRecord], studied: Subject) -> None:
    adapter, record = differing
    pairs = NoisyPairs(studied.family, studied.scenes, SIZE, 5, 3)
    transformer = studied.family.pipeline.transformer
    losses = np.stack([flow_losses(transformer, None, pairs.at(sigma))[0] for sigma in LEVELS])
    elastic = load(transformer, adapter)
    alone = []
    for arguments, noisy in NoisyPairs(studied.family, studied.scenes, SIZE, 12, 3).at(LEVELS[1]):
        flow_losses(transformer, elastic, [(arguments, noisy)])
        alone += [elastic.trace.sample_share(index) for index in range(len(noisy.sigma))]
    restore(transformer)
    assert record.samples["sigma_0.8_dense_loss"] == pytest.approx(losses[1].tolist(), rel=1e-4)
    assert record.samples["sigma_0.8_flops_share"] == pytest.approx(alone)
    spent = np.array([record.samples[f"sigma_{sigma:g}_flops_share"] for sigma in LEVELS])
    assert record.results["forwards"]["loss"]["value"] == pytest.approx(correlation(spent, losses).value, abs=1e-6)


def test_every_task_has_a_row(known: RunRecord, studied: Subject) -> None:
    rows = known.results["tasks"]
    assert sum(row["scenes"] for row in rows) == len(studied.scenes)
    assert {row["task"] for row in rows} == {one.prompt.scene.tag for one in studied.scenes}


def test_a_fixed_route_is_refused(studied: Subject, tmp_path: Path) -> None:
    elastic = elasticize(studied.family.pipeline, ElasticConfig.of(route=(1.0, 0.0, 0.5)))
    adapter = str(elastic.save(tmp_path / "static"))
    restore(studied.family.pipeline)
    with pytest.raises(ConfigError, match="no routers"):
        study(studied, adapter)
    assert not hasattr(studied.family.pipeline.transformer, "_diffusers_hook")
