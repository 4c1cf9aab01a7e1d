"""The strongest static route we know of: narrow or remove, again and again, what the velocity misses least.

It has everything an elastic model has but the choice by sample and step: the same blocks, the same widths.
"""

from elastic_dit.pruning.base import Pruning, Route, Subject, prunings, settle, share

ROUNDS = 8
"""The way from dense to the budget is gone in so many parts; errors are measured anew before each."""


def _choose(subject: Subject, budget: float) -> Route:
    ratios, costs = subject.elastic.config.width_ratios, subject.costs
    route = [1.0] * len(costs)
    for number in range(ROUNDS):
        target = 1 - (1 - budget) * (number + 1) / ROUNDS
        now, spent = subject.error(route), share(route, costs)
        steps: list[tuple[float, int, float]] = []
        for index, width in enumerate(route):
            subject.progress("trying", number * len(route) + index, ROUNDS * len(route))
            narrower = [ratio for ratio in ratios if ratio < width][-1:]
            for less in [*narrower, 0.0] if width else ():
                changed = [*route[:index], less, *route[index + 1 :]]
                saved = spent - share(changed, costs)
                if saved > 0:
                    steps.append(((subject.error(changed) - now) / saved, index, less))
        seen: set[int] = set()
        for _, index, less in sorted(steps):
            if share(route, costs) <= target:
                break
            changed = [*route[:index], less, *route[index + 1 :]]
            widest = [float(width > 0) for width in changed]
            if index not in seen and share(widest, costs) >= budget:  # else no widths could meet it again
                seen.add(index)
                route = changed
    return settle(route, list(dict.fromkeys(index for _, index, _ in sorted(steps))), costs, budget)


prunings.add(
    "greedy",
    Pruning(
        name="greedy",
        about="Narrows or removes, step by step, what changes the velocity least for the FLOPs it saves.",
        source="ours, to be the strongest static route",
        choose=_choose,
    ),
)
