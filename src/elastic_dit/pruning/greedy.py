"""The strongest static route we know of: narrow or remove, again and again, what the velocity misses least.

It has everything an elastic model has but the choice by sample and step: the same blocks, the same widths. With several
levels of noise it has the choice by step too, and spends where it matters.
"""

from elastic_dit.pruning.base import Pruning, Route, Subject, prunings, settle, share

ROUNDS = 8
"""The way from dense to the budget is gone in so many parts; errors are measured anew before each."""


def _choose(subject: Subject, budget: float) -> Route:
    costs = subject.costs
    route: Route = (1.0,) * len(costs)
    order: list[int] = []
    for number in range(ROUNDS):
        target = 1 - (1 - budget) * (number + 1) / ROUNDS
        changes = _ranked(subject, route, number)
        order = list(dict.fromkeys(index for index, _ in changes))
        changed: set[int] = set()
        for index, width in changes:
            if share(route, costs) <= target:
                break
            after = _with(route, index, width)
            widest = [float(own > 0) for own in after]
            if index not in changed and share(widest, costs) >= budget:  # else no widths could meet it again
                changed.add(index)
                route = after
    return settle(route, order, costs, budget)


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
    ),
)
