"""Which forwards are left out, chosen by what it does to the images; nothing is trained.

Two things save whole forwards. A step may take a velocity forecast from earlier ones (`core.forecast`), or run the
branch with the prompt alone and take the guidance of an earlier step (`core.guidance`). Each begins below some noise
level, and then so many follow each time that all is computed. They begin as late as the budget allows: what is left to
choose is measured in whole denoising runs.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor

from elastic_dit.core.guidance import fade_of
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import Progress
from elastic_dit.pruning.noise_levels import Denoising, Point

ROUNDING = 1e-6
"""Half of the steps are half of the FLOPs, though their shares may add up to a little more."""
GO_ON = 2
"""So many of the ways to forecast steps, the best ones, are tried together with reused guidance."""

FINE = 40
"""So many steps, or a few more, has the path on which it is measured what is left of guidance."""


class Forecasts(NamedTuple):
    """One way to leave forwards out, and what it comes to."""

    max_forecast: int
    """How many steps in a row are forecast."""
    order: int
    """Of the forecast."""
    below: float
    """Noise level at which they begin."""
    max_guidance_reuse: int
    """How many steps in a row take the guidance of an earlier one."""
    guidance_below: float
    """Noise level at which these begin."""
    guidance_fade: float
    """What is left of it from one of these to the next."""
    unguided: int
    """How many steps have no guidance, at the start."""
    computed: int
    """Forwards that are, of all branches."""
    flops_share: float
    """What is spent, of the dense FLOPs."""
    moved: float
    """Mean squared change of the images."""


class Way(NamedTuple):
    """The same by steps: what begins at which."""

    max_forecast: int = 0
    order: int = 0
    first: int = 0
    """The step at which forecasts may begin."""
    max_guidance_reuse: int = 0
    reuse_first: int = 0
    """The step at which guidance may be reused."""
    unguided: int = 0
    """How many steps have no guidance, at the start."""

    def runs(self, steps: int) -> Iterator[tuple[bool, bool]]:
        """Whether each step's first branch runs, and whether the others do: as `engine.forecasts` will have it."""
        forecasts = reuses = 0
        for step in range(steps):
            if step >= self.first and forecasts < self.max_forecast:
                forecasts += 1
                yield False, False
            elif step < self.unguided:
                forecasts = 0
                yield True, False
            elif step >= self.reuse_first and reuses < self.max_guidance_reuse:
                forecasts, reuses = 0, reuses + 1
                yield True, False
            else:
                forecasts = reuses = 0
                yield True, True


class Search:
    """What a model spends and draws as it is, and what it does with forwards left out.

    Args:
        elastic: whatever it decides block by block, it does in the forwards that are computed.
        denoising: what it is meant for.
        fade: of reused guidance; None measures it.
        unguided: how many steps have no guidance, at the start.
    """

    def __init__(
        self, elastic: ElasticModel, denoising: Denoising, fade: float | None = None, unguided: int = 0
    ) -> None:
        self.elastic, self.denoising, self.fade, self.unguided = elastic, denoising, fade, unguided
        elastic.force(None)
        self._compute_all()
        self.path: list[Point] = []
        self.image = denoising.run(lambda step: None, self.path)
        self.spent = [[0.0, 0.0] for _ in self.path]
        """Shares of the dense FLOPs by step, of the first branch and of the others."""
        first = elastic.trace.branches[0]
        for (step, _, branch, _), taken in elastic.trace.items():
            self.spent[step][branch != first] += taken.flops / elastic.trace.flops_dense

    def share(self, way: Way) -> float:
        """What is spent, of the dense FLOPs."""
        runs = zip(way.runs(len(self.path)), self.spent, strict=True)
        return sum(share for ran, shares in runs for does, share in zip(ran, shares, strict=True) if does)

    def latest(self, budget: float, ways: Sequence[Way]) -> list[Way]:
        """The last of some ways that keeps a budget, if one does."""
        return [way for way in ways if self.share(way) <= budget + ROUNDING][-1:]

    def steps_forecast(self, most: int, order: int, reuse: int = 0, reuse_first: int = 0) -> list[Way]:
        """Forecasts that begin at each of the steps, early ones first; order + 1 computed steps come before."""
        starts = range(order + 1, len(self.path))
        return [Way(most, order, first, reuse, reuse_first, self.unguided) for first in starts]

    def guidance_reused(self, reuse: int) -> list[Way]:
        """Guidance that is reused from each of the steps on, early ones first."""
        starts = range(self.unguided + 1, len(self.path))
        return [Way(max_guidance_reuse=reuse, reuse_first=first, unguided=self.unguided) for first in starts]

    def use(self, way: Way) -> None:
        """Set the model to a way."""
        config = self.elastic.config
        config.forecast_order = 1 if way.order else 0
        config.forecast_below = self._between(way.first)
        if way.max_guidance_reuse:
            config.guidance_reuse_below = self._between(way.reuse_first)
            config.guidance_fade = self._fade(way.reuse_first) if self.fade is None else self.fade
        self.elastic.max_forecast, self.elastic.max_guidance_reuse = way.max_forecast, way.max_guidance_reuse
        self.elastic.guidance_from = self._between(way.unguided)
        self.elastic.reset()

    def _compute_all(self) -> None:
        self.elastic.max_forecast = self.elastic.max_guidance_reuse = 0
        self.elastic.guidance_from = 1.0

    def _between(self, step: int) -> float:
        """The noise level below which it is this step's turn."""
        return (self.path[step - 1].sigma + self.path[step].sigma) / 2 if step else 1.0

    def _fade(self, step: int) -> float:
        """What is left, through this step, of the guidance that the step before it began with."""
        if not self._fine_guidance:
            return 1.0
        fine = len(self._fine_guidance) // len(self.path)
        through = torch.stack(self._fine_guidance[step * fine : (step + 1) * fine])
        return fade_of(self._fine_guidance[(step - 1) * fine], through.mean(0))

    @cached_property
    def _fine_guidance(self) -> list[Tensor]:
        """The guidance along a path of so many times our steps: few long ones may overshoot, and hide what is left."""
        self._compute_all()
        path: list[Point] = []
        steps = len(self.path) * math.ceil(FINE / len(self.path))
        replace(self.denoising, steps=steps).run(lambda step: None, path)
        return [point.velocity - point.without for point in path if point.without is not None]

    def measure(self, way: Way) -> Forecasts:
        """What a way comes to."""
        self.use(way)
        moved = float((self.denoising.run(lambda step: None) - self.image).square().mean())
        config, branches = self.elastic.config, 1 if self.denoising.empty is None else 2
        computed = sum(sum(ran[:branches]) for ran in way.runs(len(self.path)))
        guided = (config.max_guidance_reuse, config.guidance_reuse_below, config.guidance_fade, way.unguided)
        spent = self.elastic.trace.flops_share
        return Forecasts(way.max_forecast, way.order, config.forecast_below, *guided, computed, spent, moved)


@torch.no_grad()
def with_forecasts(
    elastic: ElasticModel,
    denoising: Denoising,
    budget: float,
    *,
    max_forecast: Sequence[int] = (1, 2, 3, 4),
    orders: Sequence[int] = (0, 1),
    max_guidance_reuse: Sequence[int] | None = None,
    guidance_fade: float | None = None,
    unguided: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> list[Forecasts]:
    """Let a model leave forwards out so that a budget is met and its images change least.

    Steps are forecast without reused guidance first; the best two ways go on with guidance that is reused from the
    second step, from a quarter, a half and three quarters of the steps on. Guidance is reused alone, too.

    Args:
        elastic: whatever it decides block by block, it does in the forwards that are computed.
        denoising: what it is meant for.
        budget: share of the dense FLOPs to spend.
        max_forecast: the numbers of forecasts in a row to try; empty: none.
        orders: the orders to try, 0 or 1.
        max_guidance_reuse: the numbers of steps in a row to try that take earlier guidance; None: 1, and all that
            follow; empty: none. Without guidance, none are tried.
        guidance_fade: what is left of reused guidance from one step to the next, 0..1; None measures it.
        unguided: how many steps have no guidance, at the start: there the branch with the prompt runs alone.
        progress: see `base.Progress`.

    Returns:
        All that were tried, the best first; the model is set to it. Its calibration, without forecasts, is dropped.

    Raises:
        ConfigError: the model spends less already, nothing tried spends so little, or no step is left to guide.
    """
    if unguided >= denoising.steps:
        raise ConfigError(f"unguided = {unguided} leaves none of {denoising.steps} steps with guidance")
    unguided = unguided if denoising.empty is not None else 0
    search = Search(elastic, denoising, guidance_fade, unguided)
    if (whole := search.share(Way())) <= budget:
        raise ConfigError(f"the model spends {whole:.1%} as it is; a budget of {budget:.1%} is no less")
    steps = len(search.path)
    reuses = (1, steps) if max_guidance_reuse is None else max_guidance_reuse
    reuses = reuses if denoising.empty is not None else ()
    starts = sorted({max(unguided + 1, steps * quarter // 4) for quarter in range(4)})
    tried: list[tuple[Forecasts, Way]] = []

    least = whole

    def measure(choices: list[list[Way]]) -> None:
        nonlocal least
        least = min([least, *(search.share(ways[0]) for ways in choices if ways)])
        chosen = [way for ways in choices for way in search.latest(budget, ways)]
        for number, way in enumerate(chosen):
            progress("trying forecasts", number, len(chosen))
            tried.append((search.measure(way), way))
        tried.sort(key=lambda each: each[0].moved)

    kinds = list(product(max_forecast, orders))
    measure([search.steps_forecast(*kind) for kind in kinds])
    kinds = [(way.max_forecast, way.order) for _, way in tried[:GO_ON]] or kinds
    measure([search.guidance_reused(reuse) for reuse in reuses])
    if unguided:
        measure([[Way(unguided=unguided)]])
    measure([search.steps_forecast(*kind, reuse, start) for kind, reuse, start in product(kinds, reuses, starts)])
    if not tried:
        raise ConfigError(f"what was to be tried spends {least:.1%} or more; the budget is {budget:.1%}")
    search.use(tried[0][1])
    elastic.calibration = None
    return [forecasts for forecasts, _ in tried]
