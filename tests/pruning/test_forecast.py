"""Which forwards are left out, chosen by what it does to images of the small model with random weights."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from elastic_dit.calibration import Calibration
from elastic_dit.config import ElasticConfig
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import unpruned
from elastic_dit.pruning.forecast import with_forecasts
from elastic_dit.pruning.noise_levels import Denoising, Point, denoising_of
from elastic_dit.training.data.cache import EncodedDataset
from elastic_dit.training.families.base import Family
from elastic_dit.verbs import elasticize, load, restore

STEPS = 8


@torch.no_grad()
def drawn(elastic: ElasticModel, denoising: Denoising) -> torch.Tensor:
    elastic.reset()
    return denoising.run(lambda step: None)


@pytest.fixture
def denoising(family: Family, pairs: EncodedDataset) -> Denoising:
    return denoising_of(family, pairs, 2, STEPS, guidance=3.0)


@pytest.mark.parametrize(("budget", "computed"), [(0.5, 4), (0.375, 3), (0.625, 5), (0.8, 6)])
def test_as_many_steps_as_the_budget_allows(family: Family, denoising: Denoising, budget: float, computed: int) -> None:
    elastic = unpruned(family.pipeline)
    tried = with_forecasts(elastic, denoising, budget, max_guidance_reuse=())
    assert all(way.flops_share == pytest.approx(way.computed / (2 * STEPS)) for way in tried)
    assert max(way.computed for way in tried) == 2 * computed
    assert [way.moved for way in tried] == sorted(way.moved for way in tried)


def test_the_model_is_set_to_the_best(family: Family, denoising: Denoising) -> None:
    elastic = unpruned(family.pipeline)
    dense = drawn(elastic, denoising)
    elastic.calibration = Calibration.model_construct()
    best = with_forecasts(elastic, denoising, 0.5)[0]
    assert elastic.calibration is None
    image = drawn(elastic, denoising)
    assert float((image - dense).square().mean()) == pytest.approx(best.moved)
    assert elastic.trace.flops_share == pytest.approx(best.flops_share)
    config = elastic.config
    assert (config.max_forecast, config.forecast_order) == (best.max_forecast, best.order)
    assert (config.max_guidance_reuse, config.guidance_reuse_below) == (best.max_guidance_reuse, best.guidance_below)


def test_they_begin_as_late_as_they_can(family: Family, denoising: Denoising) -> None:
    """One step less computed before they begin would spend less, one more too much."""
    elastic = unpruned(family.pipeline)
    way = with_forecasts(elastic, denoising, 0.5, max_forecast=(2,), orders=(0,), max_guidance_reuse=())[0]
    ran = elastic.trace.array("reuse").mean(axis=(1, 2))
    assert ran.tolist() == [0, 0, 0, 1, 1, 0, 1, 1], "0, 1 and 2 are computed, then every third"
    assert way.computed == 8


@pytest.mark.parametrize(
    ("reuse", "budget", "alone"), [(1, 0.75, [0, 1, 0, 1, 0, 1, 0, 1]), (8, 0.8125, [0, 0, 0, 0, 0, 1, 1, 1])]
)
def test_guidance_alone(family: Family, denoising: Denoising, reuse: int, budget: float, alone: list[int]) -> None:
    elastic = unpruned(family.pipeline)
    way = with_forecasts(elastic, denoising, budget, max_forecast=(), max_guidance_reuse=(reuse,))[0]
    first, other = (
        elastic.trace.array("reuse", branch).mean(axis=(1, 2)).tolist() for branch in elastic.trace.branches
    )
    assert first == [0] * STEPS
    assert other == alone
    assert way.flops_share == pytest.approx(budget)


def test_the_first_steps_without(family: Family, denoising: Denoising) -> None:
    elastic = unpruned(family.pipeline)
    way = with_forecasts(elastic, denoising, 0.6875, max_forecast=(), max_guidance_reuse=(8,), unguided=2)[0]
    first, other = (
        elastic.trace.array("reuse", branch).mean(axis=(1, 2)).tolist() for branch in elastic.trace.branches
    )
    assert first == [0] * STEPS
    assert other == [1, 1, 0, 0, 0, 1, 1, 1]
    assert way.unguided == 2
    assert way.computed == 11
    assert way.flops_share == pytest.approx(0.6875)


def test_nothing_else_without(family: Family, denoising: Denoising) -> None:
    elastic = unpruned(family.pipeline)
    way = with_forecasts(elastic, denoising, 0.9, max_forecast=(), max_guidance_reuse=(), unguided=2)[0]
    assert way.computed == 14
    with pytest.raises(ConfigError, match="unguided = 8 leaves none of 8 steps with guidance"):
        with_forecasts(elastic, denoising, 0.9, unguided=8)


def test_both_together_spend_what_was_foreseen(family: Family, denoising: Denoising) -> None:
    elastic = unpruned(family.pipeline)
    tried = with_forecasts(elastic, denoising, 0.4)
    both = [way for way in tried if way.max_forecast and way.max_guidance_reuse]
    assert len(both) > 4
    assert all(way.flops_share == pytest.approx(way.computed / (2 * STEPS)) for way in tried)
    assert all(way.flops_share <= 0.4 for way in tried)


def test_without_guidance_none_is_reused(family: Family, pairs: EncodedDataset) -> None:
    elastic = unpruned(family.pipeline)
    tried = with_forecasts(elastic, denoising_of(family, pairs, 2, STEPS), 0.5)
    assert all(way.max_guidance_reuse == 0 for way in tried)
    assert max(way.computed for way in tried) == STEPS // 2


def test_on_routes_and_saved(family: Family, denoising: Denoising, tmp_path: Path) -> None:
    """A route's own share is multiplied by that of the steps."""
    elastic = elasticize(family.pipeline, ElasticConfig.of(route=(1.0, 0.5, 0.0)))
    drawn(elastic, denoising)
    own = elastic.trace.flops_share
    way = with_forecasts(elastic, denoising, own * 0.5)[0]
    assert way.flops_share == pytest.approx(own * way.computed / (2 * STEPS))
    image = drawn(elastic, denoising)
    elastic.save(tmp_path / "adapter")
    restore(family.pipeline)
    assert torch.equal(drawn(load(family.pipeline, tmp_path / "adapter"), denoising), image)


def test_with_routers_that_decide(family: Family, denoising: Denoising) -> None:
    elastic = elasticize(family.pipeline, ElasticConfig.of(router_input="timestep", max_reuse=0))
    with torch.no_grad():
        denoising.run(lambda step: None)
    own = elastic.trace.flops_share
    way = with_forecasts(elastic, denoising, own * 0.5)[0]
    assert way.flops_share <= own * 0.5 + 1e-9


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0.1, "what was to be tried spends 18.7% or more; the budget is 10.0%"),
        (1.0, "the model spends 100.0% as it is"),
    ],
)
def test_what_cannot_be(family: Family, denoising: Denoising, budget: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_forecasts(unpruned(family.pipeline), denoising, budget)


def test_the_fade_of_guidance_is_measured(family: Family, denoising: Denoising) -> None:
    """On the mean guidance through the first step that reuses it, along five times as many; or it is given."""
    elastic = unpruned(family.pipeline)
    path: list[Point] = []
    elastic.reset()
    with torch.no_grad():
        replace(denoising, steps=40).run(lambda step: None, path)
    best = with_forecasts(elastic, denoising, 0.75, max_forecast=(), max_guidance_reuse=[4])[0]
    guidance = [point.velocity - point.without for point in path if point.without is not None]
    before, through = guidance[3 * 5], sum(guidance[4 * 5 : 5 * 5]) / 5
    expected = float((before * through).sum() / (before * before).sum())
    assert 0 < expected < 1
    assert best.guidance_fade == pytest.approx(expected, rel=1e-4)
    assert elastic.config.guidance_fade == best.guidance_fade
    held = with_forecasts(elastic, denoising, 0.75, max_forecast=(), max_guidance_reuse=[4], guidance_fade=1)[0]
    assert held.guidance_fade == elastic.config.guidance_fade == 1
