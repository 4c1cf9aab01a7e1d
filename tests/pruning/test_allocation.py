"""A budget shared out over the forwards of the small model with random weights, and what the engine makes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from elastic_dit.config import ElasticConfig
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.models.emoji_flux import SIZES, EmojiFluxPipeline
from elastic_dit.pruning.allocation import READ, with_allocation
from elastic_dit.pruning.noise_levels import Denoising, denoising_of
from elastic_dit.training.data.cache import EncodedDataset
from elastic_dit.training.families.base import Family, family_of
from elastic_dit.verbs import elasticize, load, restore

STEPS, IMAGES = 6, 4


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Family:
    """Ten blocks: what the first two cost cannot be shared out."""
    monkeypatch.setitem(SIZES, "tiny", {"num_layers": 1, "num_single_layers": 9, "num_attention_heads": 1})
    pipe = EmojiFluxPipeline.from_size("tiny")
    torch.manual_seed(0)
    for parameter in pipe.transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return family_of(pipe)


@pytest.fixture
def denoising(family: Family, pairs: EncodedDataset) -> Denoising:
    return denoising_of(family, pairs, IMAGES, STEPS, guidance=3.0)


@pytest.fixture
def dial(family: Family) -> ElasticModel:
    """Routes within one another, the last blocks first."""
    blocks = len(elasticize(family.pipeline).sites)
    changes = [(block, width) for block in range(blocks - 1, READ - 1, -1) for width in (0.5, 0.25, 0.0)]
    path = [(1 - (index + 0.5) / (len(changes) + 4), *change) for index, change in enumerate(changes)]
    config = ElasticConfig.of(
        router_input="timestep", init_path=path, budget_range=(0.3, 1.0), default_budget=0.6, max_reuse=0
    )
    return elasticize(family.pipeline, config)


def shares(elastic: ElasticModel, denoising: Denoising, branch: str | int = 0) -> np.ndarray:
    """What each forward of a run spent of its dense FLOPs, (S, B)."""
    elastic.reset()
    with torch.no_grad():
        denoising.run(lambda step: None)
    spent, dense = (elastic.trace.array(name, branch).sum(axis=1) for name in ("flops", "dense_flops"))
    return spent / dense


def test_forwards_differ_and_their_mean_does_not(dial: ElasticModel, denoising: Denoising) -> None:
    equal = shares(dial, denoising)
    found = with_allocation(dial, denoising)
    own = shares(found.elastic, denoising)
    assert np.abs(equal - equal.mean()).max() < 0.1
    assert own.std() > 2 * equal.std()
    assert own.mean() == pytest.approx(0.6, rel=0.1), "the prices were found on these very runs"
    assert len(found.by_step) == STEPS and np.mean(found.by_step) == pytest.approx(0.6, rel=0.05)
    assert np.corrcoef(found.by_step, own.mean(axis=1))[0, 1] > 0.8


def test_both_guidance_branches_have_one_budget(dial: ElasticModel, denoising: Denoising) -> None:
    elastic = with_allocation(dial, denoising).elastic
    kept = [shares(elastic, denoising, branch) for branch in (0, 1)]
    assert np.abs(kept[0] - kept[1]).max() < 0.15, "but for what each has left from the step before"
    asked = elastic._engine._run.allocated
    assert list(asked) == list(range(STEPS))


def test_saved_and_loaded(family: Family, dial: ElasticModel, denoising: Denoising, tmp_path: Path) -> None:
    elastic = with_allocation(dial, denoising).elastic
    before = shares(elastic, denoising)
    folder = elastic.save(tmp_path / "adapter")
    restore(family.pipeline)
    again = load(family.pipeline, folder)
    assert again.config.allocate_at == READ and again.budget == 0.6
    assert (shares(again, denoising) == before).all()
    again.budget = 1.0
    assert again.trace and (shares(again, denoising) > 0.999).all()


def test_needs_a_dial(family: Family, denoising: Denoising) -> None:
    with pytest.raises(ConfigError, match="the adapter knows one budget"):
        with_allocation(elasticize(family.pipeline), denoising)
    with pytest.raises(ConfigError, match="allocate_at shares a budget out; it needs a budget_range"):
        ElasticConfig.of(allocate_at=2)
    with pytest.raises(ConfigError, match="allocate_at names block 99; the transformer has"):
        elasticize(family.pipeline, ElasticConfig.of(allocate_at=99, budget_range=(0.3, 1.0)))
