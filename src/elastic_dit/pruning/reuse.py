"""Which blocks reuse their residuals, and at which noise levels: those where images change least by it.

The paper reuses a block whose keep probability is just above tau, taking it that such a block matters least there
(Algorithm 1). Here that is made true by measurement, without training: in a denoising run one block reuses its residual
in one range of noise levels, and what the images change by is divided by the FLOPs saved. Routers of the timestep then
grade their probabilities in that order, so that a wider band, delta, always adds the reuse that harms least. L blocks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from elastic_dit.config import ElasticConfig
from elastic_dit.elasticize import ElasticModel, reroute
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import Progress
from elastic_dit.pruning.noise_levels import Denoising, Point, levels_of
from elastic_dit.training.imitation import grade, imitate

LOWEST, BELOW, ABOVE, HIGHEST = 0.2, 0.5, 0.7, 0.95
"""Of the way from tau to 1: where blocks that reuse begin and end, then those that do not. Nearer to tau an error of
the routers' fit would skip a block; in the gap between the two it changes nothing."""
ROUNDS = 2
"""So often the cells that do not reuse yet are measured anew."""

Cell = tuple[int, int]
"""A range of noise levels, the lowest first, and a block."""


class Chosen(NamedTuple):
    """An order of cells for one K, and how far it must be followed."""

    max_reuse: int
    """K."""
    order: list[Cell]
    """All cells that are open, those whose reuse harms least first."""
    count: int
    """How many of them reuse."""
    flops_share: float
    """What is spent then, of the dense FLOPs."""
    moved: float
    """Mean squared change of the images."""


@dataclass
class Reuse:
    """Denoising runs under the routers' decisions, in which some cells reuse.

    Args:
        elastic: its own decisions, without reuse, are what it is compared with.
        denoising: what it is meant for.
        levels: equal ranges of noise levels.
        progress: see `base.Progress`.
    """

    elastic: ElasticModel
    denoising: Denoising
    levels: int
    progress: Progress = lambda label, done, total: None
    _known: dict[tuple[int, frozenset[Cell]], tuple[float, float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.path: list[Point] = []
        self.elastic.force(None)
        self.elastic.max_reuse = 0
        self._image = self.denoising.run(lambda step: None, self.path)
        self.place = levels_of(self.path, self.levels)
        """The range of each step."""
        self.plan = Plan.average([self.elastic.trace], self.elastic.config.width_ratios)
        self.open = [
            (level, block)
            for level in range(self.levels)
            for block in range(self.plan.blocks)
            if any(self.plan.keep[step, block] for step, own in enumerate(self.place) if own == level)
        ]
        self.flops_share = self.elastic.trace.flops_share
        """Of the run without reuse."""

    def moved(self, image: Tensor) -> float:
        """Mean squared change of images from those without reuse."""
        return float((image.detach() - self._image.detach()).square().mean())

    def run(self, cells: Sequence[Cell], max_reuse: int) -> tuple[float, float]:
        """FLOPs as a share of dense, and mean squared change of the images, where these cells reuse up to K times."""
        key = max_reuse, frozenset(cells)
        if key not in self._known:
            reuse = torch.zeros(self.plan.keep.shape, dtype=torch.bool)
            for level, block in cells:
                reuse[[step for step, own in enumerate(self.place) if own == level], block] = True
            self.elastic.max_reuse = max_reuse
            self.elastic.force(Plan(self.plan.keep, reuse.numpy(), self.plan.width))
            try:
                image = self.denoising.run(lambda step: None)
                self._known[key] = self.elastic.trace.flops_share, self.moved(image)
            finally:
                self.elastic.force(None)
        return self._known[key]

    def choose(self, budget: float, max_reuse: int) -> Chosen:
        """The order of the cells for one K, and as many of them as meet the budget.

        Raises:
            ConfigError: reuse everywhere does not meet it.
        """
        least = self.run(self.open, max_reuse)[0]
        if least > budget:
            raise ConfigError(
                f"with K = {max_reuse} reuse everywhere spends {least:.1%} of the FLOPs; the budget is {budget:.1%}"
            )
        order: list[Cell] = []
        for number in range(ROUNDS):
            ranked = self._ranked(order, max_reuse)
            order += ranked[: -(-len(ranked) // (ROUNDS - number))]
        low, high = 0, len(order)  # FLOPs fall with every cell
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.run(order[:middle], max_reuse)[0] <= budget else (middle, high)
        return Chosen(max_reuse, order, high, *self.run(order[:high], max_reuse))

    def _ranked(self, chosen: Sequence[Cell], max_reuse: int) -> list[Cell]:
        """The cells not yet chosen, by how much more the images change for the FLOPs that each alone would save."""
        spent, moved = self.run(chosen, max_reuse)
        harm: dict[Cell, float] = {}
        for number, cell in enumerate(cell for cell in self.open if cell not in chosen):
            self.progress(f"trying K = {max_reuse}", len(chosen) + number, len(self.open))
            after, further = self.run([*chosen, cell], max_reuse)
            harm[cell] = (further - moved) / max(spent - after, 1e-6)
        return sorted(harm, key=lambda cell: harm[cell])


def with_reuse(
    elastic: ElasticModel,
    denoising: Denoising,
    budget: float,
    *,
    levels: int,
    max_reuse: Sequence[int],
    progress: Progress = lambda label, done, total: None,
) -> tuple[ElasticModel, Chosen]:
    """Let a model reuse what harms its images least, until a budget is met; nothing is trained but its routers' grades.

    Args:
        elastic: with routers of the timestep, or with a fixed route, which such routers take over.
        denoising: what it is meant for.
        budget: share of the dense FLOPs to spend.
        levels: equal ranges of noise levels, in each of which a block reuses or does not.
        max_reuse: the K to try; the one whose images change least is taken.
        progress: see `base.Progress`.

    Returns:
        The model, with delta and K set, and what was chosen.

    Raises:
        ConfigError: its routers read more than the timestep, it spends less already, or no K meets the budget.
    """
    config = elastic.config
    if config.route is None and config.router_input != "timestep":
        raise ConfigError(
            f"reuse is graded for routers that read the timestep alone; these have router_input {config.router_input!r}"
        )
    if config.route is not None:
        ratios = sorted({width for width in config.route if width} | {1.0})
        elastic = reroute(
            elastic, ElasticConfig.of(router_input="timestep", init_schedule=(config.route,), width_ratios=ratios)
        )
        path: list[Point] = []
        with torch.no_grad():
            denoising.run(lambda step: None, path)
        imitate(elastic, list(denoising.batches(path)))
    with torch.no_grad():
        trial = Reuse(elastic, denoising, levels, progress)
        if trial.flops_share <= budget:
            raise ConfigError(f"the model spends {trial.flops_share:.1%} as it is; a budget of {budget:.1%} is no less")
        able = [k for k in max_reuse if trial.run(trial.open, k)[0] <= budget] or [max(max_reuse)]
        chosen = min((trial.choose(budget, k) for k in able), key=lambda each: each.moved)
    grade(elastic, list(denoising.batches(trial.path)), _grades(chosen, trial, config.tau))
    elastic.max_reuse = chosen.max_reuse
    elastic.delta = (1 - config.tau) * (BELOW + ABOVE) / 2
    with torch.no_grad():
        elastic.force(None)
        image = denoising.run(lambda step: None)  # what the routers do, not what they were fitted to
    return elastic, chosen._replace(flops_share=elastic.trace.flops_share, moved=trial.moved(image))


def _grades(chosen: Chosen, trial: Reuse, tau: float) -> Tensor:
    """p of each open cell, (levels, L): rising along the order, with a gap in which the band ends."""
    below, above = chosen.order[: chosen.count], chosen.order[chosen.count :]
    keep = torch.full((trial.levels, trial.plan.blocks), HIGHEST)
    for cells, lowest, highest in ((below, LOWEST, BELOW), (above, ABOVE, HIGHEST)):
        for number, cell in enumerate(cells):
            keep[cell] = lowest + (highest - lowest) * number / max(len(cells), 1)
    return tau + (1 - tau) * keep
