from pathlib import Path

import numpy as np
import pytest
from torch import nn

from elastic_dit import elasticize
from elastic_dit.bench.compare import Bench, Comparison
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.models.loading import load_pipeline
from elastic_dit.records import RunRecord
from emoji import ROUTES, STEPS

PROMPTS = ["a red apple", "two blue cars on a green background"]
SETTINGS = SampleSettings(steps=STEPS, guidance=3.0, height=32, width=32)


class Log:
    """What ran, each run once, and how far the bar was."""

    def __init__(self) -> None:
        self.runs: list[str] = []
        self.done = self.total = 0

    def __call__(self, label: str, done: int, total: int) -> None:
        assert done >= self.done
        if done == self.done and total:
            self.runs.append(label)
        self.done, self.total = done, total


@pytest.fixture(scope="module")
def log() -> Log:
    return Log()


@pytest.fixture(scope="module")
def comparison(bench: Bench, log: Log) -> Comparison:
    return bench.compare(PROMPTS, SETTINGS, seed=7, repeats=3, command="do it", progress=log)


def test_dense_and_elastic_take_turns(comparison: Comparison, log: Log) -> None:
    two, one = ["dense, batch 2", "elastic, batch 2"] * 3, ["dense, batch 1", "elastic, batch 1"] * 3
    assert log.runs == two + one + two  # the last under a frozen plan
    assert log.done == log.total == 2 * 2 * STEPS * (3 * 2 + 3 + 3 * 2)  # models, branches, steps, images


def test_every_run_leaves_a_raw_sample(comparison: Comparison) -> None:
    samples = comparison.record.samples
    assert len(samples) == 8
    assert all(len(values) == 3 and min(values) > 0 for values in samples.values())
    for batch in (1, 2):
        for name in ("dense", "elastic"):
            steps, runs = (samples[f"{name}_batch{batch}_{what}_seconds"] for what in ("step", "run"))
            assert all(step * STEPS < run for step, run in zip(steps, runs, strict=True))


def test_results_are_the_medians_of_the_raw_samples(comparison: Comparison) -> None:
    samples = comparison.record.samples
    one, two = comparison.record.results["latency"]
    assert (one["batch"], two["batch"]) == (1, 2)
    dense, elastic = np.array(samples["dense_batch2_step_seconds"]), np.array(samples["elastic_batch2_step_seconds"])
    assert two["dense_step_seconds"]["median"] == np.median(dense)
    assert two["elastic_step_seconds"]["max"] == max(elastic)
    assert two["step_speedup"]["median"] == pytest.approx(np.median(dense / elastic))


def test_routes_are_what_the_routers_say(comparison: Comparison) -> None:
    results = comparison.record.results
    for route in results["routes"]:
        assert list(route) == ["cond", "uncond"]
        assert all(branch["decisions"] == list(ROUTES) for branch in route.values())
    compute = results["compute"]
    assert compute["open_rate"] == pytest.approx(2 / 3)
    assert compute["reuse_rate"] == pytest.approx(3 / 10)
    assert compute["mean_width"] == pytest.approx((5 * 0.5 + 2 * 1) / 7)
    assert compute["flops_share"] == pytest.approx(np.mean([row["flops_share"] for row in results["prompts"]]))


def test_the_frozen_plan_is_the_mean_of_the_routes(comparison: Comparison) -> None:
    """All prompts take one route here, so nothing changes but the routers' FLOPs."""
    results = comparison.record.results
    frozen, compute = results["frozen"], results["compute"]
    assert frozen["fidelity"] == pytest.approx(results["fidelity"], rel=1e-3)
    for name in ("open_rate", "reuse_rate", "mean_width"):
        assert frozen["compute"][name] == pytest.approx(compute[name])
    assert 0 < frozen["compute"]["flops_share"] < compute["flops_share"]
    assert frozen["step_speedup"]["min"] > 0


def test_dense_images_are_those_of_an_untouched_pipeline(comparison: Comparison, pair: tuple[Path, Path]) -> None:
    untouched = sample_images(load_pipeline(pair[0]), PROMPTS, [7, 8], SETTINGS)
    for image, expected in zip(comparison.dense, untouched, strict=True):
        assert np.array_equal(np.array(image), np.array(expected))
    assert not np.array_equal(np.array(comparison.dense[0]), np.array(comparison.elastic[0]))


def test_the_dense_transformer_carries_no_hooks(bench: Bench) -> None:
    dense, elastic = bench.pipes["dense"], bench.pipes["elastic"]
    assert not hooked_modules(dense.transformer)
    assert len(hooked_modules(elastic.transformer)) > len(bench.elastic.routers)
    assert dense.text_encoder is elastic.text_encoder


def hooked_modules(transformer: nn.Module) -> list[str]:
    """Names of modules with a hook on; diffusers leaves an empty registry where it looked for one."""
    registries = {name: getattr(module, "_diffusers_hook", None) for name, module in transformer.named_modules()}
    return [name for name, registry in registries.items() if registry is not None and registry.hooks]


def test_full_capacity_gives_the_dense_images(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pipe = load_pipeline(pair[0])
    adapter = elasticize(pipe).save(tmp_path / "open")
    result = Bench(load_pipeline(pair[0]), str(adapter)).compare(PROMPTS[:1], SETTINGS, repeats=2)
    assert result.record.results["fidelity"] == {"psnr": None, "ssim": pytest.approx(1)}
    assert result.record.results["compute"]["flops_share"] > 1  # the routers
    assert [row["batch"] for row in result.record.results["latency"]] == [1]  # one prompt: alone is the batch
    assert len(result.record.samples["dense_batch1_step_seconds"]) == 2


def test_the_record_survives_its_file(comparison: Comparison, tmp_path: Path) -> None:
    comparison.record.write(tmp_path / "run.json")
    assert RunRecord.read(tmp_path / "run.json") == comparison.record
    assert comparison.record.command == "do it"
    assert comparison.record.config["steps"] == STEPS
