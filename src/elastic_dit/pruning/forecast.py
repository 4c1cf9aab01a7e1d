"""Which steps take a velocity forecast from earlier ones, chosen by what it does to the images; nothing is trained.

Forecasts begin below some noise level, and then so many follow each computed step (`core.forecast`). For each number
and each order of the forecast they begin as late as the budget allows: what is left to choose is measured in whole
denoising runs.
"""

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import Progress
from elastic_dit.pruning.noise_levels import Denoising, Point

ROUNDING = 1e-6
"""Half of the steps are half of the FLOPs, though their shares may add up to a little more."""


class Forecasts(NamedTuple):
    """One way to forecast steps, and what it comes to."""

    max_forecast: int
    """How many follow a computed step."""
    order: int
    """Of the forecast."""
    below: float
    """Noise level at which they begin."""
    computed: int
    """Steps that are."""
    flops_share: float
    """What is spent, of the dense FLOPs."""
    moved: float
    """Mean squared change of the images."""


@torch.no_grad()
def with_forecasts(
    elastic: ElasticModel,
    denoising: Denoising,
    budget: float,
    *,
    max_forecast: Sequence[int] = (1, 2, 3, 4),
    orders: Sequence[int] = (0, 1),
    progress: Progress = lambda label, done, total: None,
) -> list[Forecasts]:
    """Let a model forecast velocities so that a budget is met and its images change least.

    Args:
        elastic: whatever it decides block by block, it does in the steps that are computed.
        denoising: what it is meant for.
        budget: share of the dense FLOPs to spend.
        max_forecast: the numbers of forecasts in a row to try.
        orders: the orders to try, 0 or 1.
        progress: see `base.Progress`.

    Returns:
        All that were tried, the best first; the model is set to it.

    Raises:
        ConfigError: the model spends less already, or nothing tried spends so little.
    """
    elastic.force(None)
    elastic.max_forecast = 0
    path: list[Point] = []
    image = denoising.run(lambda step: None, path)
    spent = _by_step(elastic, len(path))
    if sum(spent) <= budget:
        raise ConfigError(f"the model spends {sum(spent):.1%} as it is; a budget of {budget:.1%} is no less")
    ways = [
        (most, order, first)
        for most, order in product(max_forecast, orders)
        if (first := _latest(spent, most, order, budget)) is not None
    ]
    if not ways:
        least = min(_spent(spent, order + 1, most) for most, order in product(max_forecast, orders))
        raise ConfigError(
            f"forecasts of {max(max_forecast)} steps spend {least:.1%} or more; the budget is {budget:.1%}"
        )
    tried: list[Forecasts] = []
    for number, (most, order, first) in enumerate(ways):
        progress("trying forecasts", number, len(ways))
        below = (path[first - 1].sigma + path[first].sigma) / 2
        _set(elastic, most, order, below)
        moved = _moved(denoising.run(lambda step: None), image)
        computed = sum(_computed(step, first, most) for step in range(len(path)))
        tried.append(Forecasts(most, order, below, computed, elastic.trace.flops_share, moved))
    tried.sort(key=lambda way: way.moved)
    _set(elastic, tried[0].max_forecast, tried[0].order, tried[0].below)
    return tried


def _set(elastic: ElasticModel, most: int, order: int, below: float) -> None:
    elastic.config.forecast_order = 1 if order else 0
    elastic.config.forecast_below = below
    elastic.max_forecast = most
    elastic.reset()


def _by_step(elastic: ElasticModel, steps: int) -> list[float]:
    """What each step of the last run spent, as a share of the whole dense run."""
    spent = [0.0] * steps
    for (step, *_), taken in elastic.trace.items():
        spent[step] += taken.flops / elastic.trace.flops_dense
    return spent


def _latest(spent: Sequence[float], most: int, order: int, budget: float) -> int | None:
    """The last step at which forecasts may begin for the budget to be met; order + 1 steps come before it."""
    most_spent = budget + ROUNDING
    able = [first for first in range(order + 1, len(spent)) if _spent(spent, first, most) <= most_spent]
    return max(able, default=None)


def _spent(spent: Sequence[float], first: int, most: int) -> float:
    return sum(share for step, share in enumerate(spent) if _computed(step, first, most))


def _computed(step: int, first: int, most: int) -> bool:
    """Whether a step is, where forecasts begin at step `first` and `most` follow each computed one."""
    return step < first or (step - first) % (most + 1) == most


def _moved(image: Tensor, before: Tensor) -> float:
    return float((image - before).square().mean())
