"""The strongest static route we know of: narrow or remove, again and again, what the velocity misses least.

It has everything an elastic model has but the choice by sample and step: the same blocks, the same widths. With several
levels of noise it has the choice by step too, and spends where it matters. On its way down it passes every budget.
"""

from collections.abc import Iterator
from typing import NamedTuple

from elastic_dit.pruning.base import Path, Pruning, Route, Subject, prunings, settle, share

ROUNDS = 8
"""The way from dense to the budget is gone in so many parts; errors are measured anew before each."""


class Change(NamedTuple):
    """One step of the way."""

    block: int
    width: float
    """Of the block from now on, 0 where it is removed."""
    route: Route
    """Of all blocks, after it."""
    order: list[int]
    """The blocks, those that are missed least first, as it was ranked when it was chosen."""


def _choose(subject: Subject, budget: float) -> Route:
    changes = list(_narrowed(subject, budget, exactly=True))
    if not changes:
        return (1.0,) * len(subject.costs)
    return settle(changes[-1].route, changes[-1].order, subject.costs, budget)


def _path(subject: Subject, lowest: float) -> Path:
    """A change comes half-way between the shares before and after it: whichever is nearer to the budget is taken."""
    before, path = 1.0, list[tuple[float, int, float]]()
    for change in _narrowed(subject, lowest):
        after = share(change.route, subject.costs)
        path.append(((before + after) / 2, change.block, change.width))
        before = after
    return tuple(path)


def _narrowed(subject: Subject, budget: float, exactly: bool = False) -> Iterator[Change]:
    """One change after the other until the budget is met; `exactly`: by widths, once blocks cannot meet it."""
    costs = subject.costs
    route: Route = (1.0,) * len(costs)
    for number in range(ROUNDS):
        target = 1 - (1 - budget) * (number + 1) / ROUNDS
        ranked = _ranked(subject, route, number)
        order = list(dict.fromkeys(index for index, _ in ranked))
        changed: set[int] = set()
        for index, width in ranked:
            if share(route, costs) <= target:
                break
            after = _with(route, index, width)
            widest = [float(own > 0) for own in after]
            # else no widths could meet it again
            if index not in changed and (not exactly or share(widest, costs) >= budget):
                changed.add(index)
                route = after
                yield Change(index, width, route, order)


def _ranked(subject: Subject, route: Route, number: int) -> list[tuple[int, float]]:
    """(block, width): the next narrower width of every block, or none of it; what does least harm per FLOP first."""
    now, spent = subject.error(route), share(route, subject.costs)
    found: list[tuple[float, int, float]] = []
    for index, width in enumerate(route):
        subject.progress("trying", number * len(route) + index, ROUNDS * len(route))
        narrower = [ratio for ratio in subject.elastic.config.width_ratios if ratio < width][-1:]
        for less in [*narrower, 0.0] if width else ():
            after = _with(route, index, less)
            saved = spent - share(after, subject.costs)
            if saved > 0:
                found.append(((subject.error(after) - now) / saved, index, less))
    return [(index, less) for _, index, less in sorted(found)]


def _with(route: Route, index: int, width: float) -> Route:
    return (*route[:index], width, *route[index + 1 :])


prunings.add(
    "greedy",
    Pruning(
        name="greedy",
        about="Narrows or removes, step by step, what changes the velocity least for the FLOPs it saves.",
        source="ours, to be the strongest static route",
        choose=_choose,
        levelled=True,
        path=_path,
    ),
)
