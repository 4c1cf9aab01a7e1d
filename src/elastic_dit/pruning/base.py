"""A pruning method decides once which blocks stay, and how wide: the same route for every sample and step.

To add one, write a file beside this one that registers a `Pruning`. L blocks.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from elastic_dit.backbones import backbone_of
from elastic_dit.config import ElasticConfig
from elastic_dit.core.cost import BlockCost
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.noise_levels import Level
from elastic_dit.registry import Registry
from elastic_dit.training.flow import NoisyBatch
from elastic_dit.training.importance import order_channels
from elastic_dit.verbs import elasticize, transformer_of

NARROWEST = 0.25
"""No MLP of a block that stays gets narrower than this to meet a budget."""

Route = tuple[float, ...]
"""The MLP width of each block (L,), 0 where it is left out: `ElasticConfig.route`."""
Path = tuple[tuple[float, int, float], ...]
"""Nested routes for every budget: `ElasticConfig.init_path`."""
Progress = Callable[[str, int, int], None]
"""Called with what runs, and parts of it done and to do."""


Batches = Sequence[tuple[dict[str, Any], NoisyBatch]]
"""The transformer's inputs, and what they were made from."""


def unpruned(pipe_or_transformer: Any) -> ElasticModel:
    """A dense model under a route that is 1 everywhere, its weights untouched.

    Raises:
        BackboneError: no backbone declares this transformer.
    """
    transformer = transformer_of(pipe_or_transformer)
    blocks = len(backbone_of(transformer).sites(transformer))
    return elasticize(transformer, ElasticConfig.of(route=(1.0,) * blocks))


def whole(pipe_or_transformer: Any, batches: Batches) -> ElasticModel:
    """A dense model as pruning starts from it: a route that is 1 everywhere, MLP channels in order of importance.

    Raises:
        BackboneError: no backbone declares this transformer.
    """
    elastic = unpruned(pipe_or_transformer)
    order_channels(elastic, [inputs for inputs, _ in batches])
    return elastic


@dataclass
class Subject:
    """What is pruned, and the data to judge by."""

    elastic: ElasticModel
    """As `whole` gives it."""
    batches: Batches
    seed: int = 0
    progress: Progress = lambda label, done, total: None
    levels: Sequence[Level] = (Level(1.0, 1.0),)
    """Ranges of noise levels, each with a route of its own. With more than one, `batches` hold as many of each, the
    lowest levels first, and a route is the routes of all levels in a row."""
    times: Sequence[BlockCost] | None = None
    """Seconds of each block, (L,), where those are to be saved and not FLOPs."""

    def __post_init__(self) -> None:
        self._dense = self._predict(self.batches)
        self.costs: list[BlockCost] = [
            BlockCost(level.visits * cost.fixed, level.visits * cost.mlp)
            for level in self.levels
            for cost in self.times or self.elastic.costs
        ]
        """FLOPs of each block for one sample (or seconds), (L,), for each level, times the share of the steps there."""
        self._known: dict[tuple[int, Route], float] = {}

    def error(self, route: Sequence[float]) -> float:
        """Mean squared distance of a route's velocity from the dense one's, untrained, weighed by the levels' worth."""
        blocks = len(route) // len(self.levels)
        return sum(
            level.worth * self._error(number, tuple(route[number * blocks :][:blocks]))
            for number, level in enumerate(self.levels)
        )

    def _error(self, level: int, route: Route) -> float:
        """On one level's batches; a search changes one level at a time, and the others' are known."""
        if (level, route) not in self._known:
            count = len(self.batches) // len(self.levels)
            part = slice(level * count, (level + 1) * count)
            self.elastic.force(Plan.static(route))
            try:
                predicted = self._predict(self.batches[part])
            finally:
                self.elastic.force(None)
            pairs = zip(predicted, self._dense[part], strict=True)
            apart = [(own.float() - dense.float()).square().mean() for own, dense in pairs]
            self._known[level, route] = float(torch.stack(apart).mean())
        return self._known[level, route]

    @torch.no_grad()
    def _predict(self, batches: Batches) -> list[Tensor]:
        predictions: list[Tensor] = []
        for inputs, _ in batches:
            self.elastic.reset()
            predictions.append(self.elastic.transformer(**inputs, return_dict=False)[0])
        return predictions


@dataclass(frozen=True)
class Pruning:
    """One method."""

    name: str
    about: str
    """What it does, in one sentence."""
    source: str
    """Where it is published."""
    choose: Callable[[Subject, float], Route]
    """(subject, budget): the route that spends this share of the blocks' FLOPs, or time. Weights stay as they are."""
    levelled: bool = False
    """Whether it can choose routes for several levels of noise together."""
    path: Callable[[Subject, float], Path] | None = None
    """(subject, lowest): the way from the whole model down to this share of FLOPs, if it knows one."""


prunings: Registry[Pruning] = Registry("pruning method", "elastic_dit.pruning")


def share(route: Sequence[float], costs: Sequence[BlockCost]) -> float:
    """Of the dense blocks' FLOPs, or of their time where costs are seconds."""
    spent = sum(cost.at(width) for cost, width in zip(costs, route, strict=True) if width)
    return spent / sum(cost.dense for cost in costs)


def fit(order: Iterable[int], costs: Sequence[BlockCost], budget: float, width: float = 1.0) -> Route:
    """Keep the first blocks of `order`, as few as reach the budget, and narrow the last of them until it is met.

    Where that is not narrow enough, one block less, and the others wider.

    Args:
        order: the blocks, those to keep first.
        costs: of each block.
        budget: share of the dense blocks' FLOPs.
        width: of the MLPs that are not narrowed.

    Raises:
        ConfigError: even with all blocks the budget is not reached.
    """
    route, kept = [0.0] * len(costs), list[int]()
    for index in order:
        if share(route, costs) >= budget:
            break
        route[index] = width
        kept.append(index)
    if share(route, costs) < budget - 1e-9:
        raise ConfigError(f"a budget of {budget:g} cannot be spent with MLPs of width {width:g}")
    order = kept[::-1]
    fewer = [0.0 if index == kept[-1] else own for index, own in enumerate(route)]
    found = [settle(each, order, costs, budget) for each in (route, fewer) if any(each)]
    return min(found, key=lambda each: abs(share(each, costs) - budget))


def settle(route: Sequence[float], order: Sequence[int], costs: Sequence[BlockCost], budget: float) -> Route:
    """Meet the budget as far as widths can: narrow the MLPs of these blocks, or widen them, the last first.

    Blocks that are left out stay out.
    """
    settled, dense = list(route), sum(cost.dense for cost in costs)
    above = share(route, costs) > budget
    for index in order if above else reversed(order):
        excess = (share(settled, costs) - budget) * dense
        if settled[index] and costs[index].mlp and (excess > 0) == above:
            wanted = settled[index] - excess / costs[index].mlp
            settled[index] = min(1.0, max(min(NARROWEST, settled[index]), wanted))
    return tuple(round(width, 4) for width in settled)
