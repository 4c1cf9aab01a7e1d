"""Which blocks reuse their residuals, chosen by what it does to images of the small model with random weights."""

from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from elastic_dit.config import ElasticConfig
from elastic_dit.elasticize import ElasticModel, elasticize, load, restore
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import unpruned
from elastic_dit.pruning.noise_levels import Denoising, denoising_of
from elastic_dit.pruning.reuse import Chosen, Reuse, with_reuse
from elastic_dit.training.data.cache import EncodedDataset
from elastic_dit.training.families.base import Family

STEPS, BUDGET = 6, 0.75


def spend(elastic: ElasticModel, denoising: Denoising) -> float:
    """FLOPs of the model's own decisions, as a share of dense."""
    with torch.no_grad():
        denoising.run(lambda step: None)
    return elastic.trace.flops_share


@pytest.fixture
def denoising(family: Family, pairs: EncodedDataset) -> Denoising:
    return denoising_of(family, pairs, 2, STEPS, guidance=3.0)


class Made(NamedTuple):
    elastic: ElasticModel
    chosen: Chosen


@pytest.fixture
def made(family: Family, denoising: Denoising) -> Made:
    return Made(*with_reuse(unpruned(family.pipeline), denoising, BUDGET, levels=2, max_reuse=(1, 2)))


def test_a_dense_model_meets_a_budget_by_reuse_alone(made: Made, denoising: Denoising) -> None:
    elastic, chosen = made
    share = spend(elastic, denoising)
    assert share == pytest.approx(chosen.flops_share)
    assert share == pytest.approx(BUDGET, abs=0.1)  # six steps of three blocks
    assert elastic.trace.open_rate == 1
    assert elastic.trace.reuse_rate > 0.1
    assert 0 < chosen.count < len(chosen.order) == len(set(chosen.order)) == 2 * len(elastic.sites)


def test_delta_is_a_dial(made: Made, denoising: Denoising) -> None:
    """The wider the band, the less is spent: from nothing reused to everything that may be."""
    elastic, _ = made
    shares: list[float] = []
    for delta in (0.0, elastic.delta, 0.5):
        elastic.delta = delta
        shares.append(spend(elastic, denoising))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(1, abs=0.02)
    assert shares[0] > shares[1] > shares[2]


def test_it_is_saved(made: Made, denoising: Denoising, family: Family, tmp_path: Path) -> None:
    share = spend(made.elastic, denoising)
    made.elastic.save(tmp_path / "adapter")
    restore(family.pipeline)
    again = load(family.pipeline, tmp_path / "adapter")
    assert (again.delta, again.max_reuse) == (made.elastic.delta, made.chosen.max_reuse)
    assert spend(again, denoising) == share


def test_what_harms_least_comes_first(family: Family, denoising: Denoising) -> None:
    """The first cells of the order change the images less than the last ones do."""
    with torch.no_grad():
        trial = Reuse(unpruned(family.pipeline), denoising, levels=2)
        order = trial.choose(BUDGET, 1).order
        half = len(order) // 2
        saved, moved = zip(*(trial.run(cells, 1) for cells in (order[:half], order[half:])), strict=True)
    assert moved[0] / (1 - saved[0]) < moved[1] / (1 - saved[1])


@pytest.mark.parametrize(
    ("budget", "config", "message"),
    [
        (0.2, None, "with K = 1 reuse everywhere spends .*; the budget is 20.0%"),
        (0.95, ElasticConfig.of(route=(0.5, 0.5, 0.5)), "the model spends .* as it is; a budget of 95.0% is no less"),
        (0.5, ElasticConfig.of(router_input="image"), "router_input 'image'"),
    ],
)
def test_what_cannot_be(
    family: Family, denoising: Denoising, budget: float, config: ElasticConfig | None, message: str
) -> None:
    pipe = family.pipeline
    elastic = elasticize(pipe, config) if config else unpruned(pipe)
    with pytest.raises(ConfigError, match=message):
        with_reuse(elastic, denoising, budget, levels=1, max_reuse=(1,))
