"""Every baseline keeps the contract: it runs, it saves compute, and no run sees the one before."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from elastic_dit.baselines import Task, baselines
from elastic_dit.errors import BackboneError
from runs import Runs
from tiny import output_of

CACHES = ["fastercache", "first-block-cache", "fora", "learning-to-cache", "magcache", "taylorseer", "teacache"]
CACHES += ["teacache-fitted"]


@pytest.fixture(autouse=True)
def _eager() -> Iterator[None]:
    """What a baseline compiles runs eagerly: compiling takes too long for a test."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(params=list(baselines))
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "cache-dit":
        pytest.importorskip("cache_dit")
    return request.param


def test_the_baselines_there_are() -> None:
    assert list(baselines) == sorted([*CACHES, "cache-dit", "compiled", "fewer-steps", "static-prune"])
    for name in baselines:
        baseline = baselines[name]
        assert baseline.name == name and baseline.about.endswith(".") and baseline.source
        assert list(baseline.settings) == sorted(baseline.settings)


def test_it_runs_and_forgets_the_run_before(runs: Runs, name: str) -> None:
    transformer, applied = runs.applied(name, baselines[name].settings[0])
    first = runs.run(transformer, applied)
    assert first.shape == runs.trajectory.noise.shape and first.isfinite().all()
    torch.testing.assert_close(runs.run(transformer, applied), first, rtol=0, atol=0)


def test_a_run_that_was_cut_off_leaves_nothing(runs: Runs, name: str) -> None:
    transformer, applied = runs.applied(name, baselines[name].settings[-1])
    whole = runs.run(transformer, applied)
    applied.restart()
    latents = runs.trajectory.noise.flip(0)
    for index in range(4):
        latents, _ = runs.trajectory.step(transformer, latents, index)
    torch.testing.assert_close(runs.run(transformer, applied), whole, rtol=0, atol=0)


def test_the_strongest_setting_does_less_than_the_mildest(runs: Runs, name: str) -> None:
    settings = baselines[name].settings
    dense = runs.flops(runs.fresh())
    shares = [runs.flops(*runs.applied(name, setting)) / dense for setting in (settings[0], settings[-1])]
    if name == "compiled":
        assert shares == [1, 1]
    else:
        assert shares[1] < (shares[0] if len(settings) > 1 else 1)
        assert shares[0] < 1.02


@pytest.mark.parametrize("name", CACHES)
def test_guidance_branches_do_not_mix(name: str) -> None:
    runs = Runs("qwen-image", branches=1)
    setting = baselines[name].settings[len(baselines[name].settings) // 2]
    steps = [runs.tiny.steps(2, 8, seed) for seed in (0, 1)]

    def outputs(branches: list[int]) -> list[list[torch.Tensor]]:
        transformer, applied = runs.applied(name, setting)
        applied.restart()
        seen: list[list[torch.Tensor]] = [[] for _ in branches]
        for index in range(8):
            for place, branch in enumerate(branches):
                with transformer.cache_context(f"branch {branch}"):
                    seen[place].append(output_of(transformer, steps[branch][index]))
        return seen

    together = outputs([0, 1])
    torch.testing.assert_close(together, outputs([0]) + outputs([1]), rtol=0, atol=0)


@pytest.mark.parametrize("name", CACHES)
def test_a_transformer_that_does_not_fit(name: str) -> None:
    transformer: Any = Runs("sd3").fresh()
    with pytest.raises(BackboneError, match="SD3Transformer2DModel|JointTransformerBlock"):
        baselines[name].apply(transformer, baselines[name].settings[0], Task(4, 1, lambda *_: None))
