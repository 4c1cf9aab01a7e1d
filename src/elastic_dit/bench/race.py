"""Contenders, each between two runs of what it is compared with, so that what slows the machine slows both."""

import statistics
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch._dynamo.utils import counters

from elastic_dit.bench.flops import Counting
from elastic_dit.bench.trajectory import Trajectory
from elastic_dit.timing import spread

Progress = Callable[[str, int, int], None]
"""Called with what runs, and steps done and to do."""
DENSE = "dense"


def silent(label: str, done: int, total: int) -> None:
    """No progress."""


@dataclass
class Contender:
    """One way to run a transformer."""

    name: str
    transformer: Any
    restart: Callable[[], None] = lambda: None
    """Called before every run."""
    steps: Collection[int] | None = None
    """The steps at which it calls its transformer; None: all."""
    reference: str = DENSE
    """The contender it is compared with."""


@dataclass
class Timing:
    """What one contender took, by run and step."""

    flops: int = 0
    """Of one run, counted."""
    seconds: tuple[tuple[float, ...], ...] = ()
    """In the transformer."""
    beside: tuple[tuple[float, ...], ...] = ()
    """The same of its reference: the mean of the run before and the run after."""
    warm_up: float = 0.0
    """Seconds of the first run, in which all is compiled."""
    graphs: int = 0
    """Compiled in the timed runs: each is an interruption that the warm-up should have spared."""


def race(
    contenders: Sequence[Contender], trajectory: Trajectory, repeats: int, progress: Progress = silent
) -> dict[str, Timing]:
    """Run all contenders side by side: one run to warm up, one whose FLOPs are counted, then `repeats` that are timed.

    At every step the contenders have their turns in an order that rotates, the reference before and after each. A
    reference must keep nothing from step to step, since it runs more than once at each.

    Args:
        contenders: with different names, in the order of the table.
        trajectory: the run.
        repeats: timed runs, at least one.
        progress: see `Progress`.
    """
    results = {contender.name: Timing() for contender in contenders}
    total = (repeats + 2) * trajectory.steps
    for number in range(-2, repeats):
        run = _Run(trajectory, list(results), number)
        seconds: dict[str, list[float]] = {name: [] for name in results}
        beside: dict[str, list[float]] = {name: [] for name in results}
        for contender in contenders:
            contender.restart()
        for index in range(trajectory.steps):
            progress("timing" if number >= 0 else "warm-up", (number + 2) * trajectory.steps + index, total)
            for reference, group in _groups(contenders, number + index):
                around = [run.take(reference, index)]
                for contender in group:
                    seconds[contender.name].append(run.take(contender, index))
                    around.append(run.take(reference, index))
                    beside[contender.name].append(statistics.mean(around[-2:]))
                if reference.reference == reference.name:
                    seconds[reference.name].append(statistics.mean(around))
                    beside[reference.name].append(statistics.mean(around))
            run.advance()
        for name, timing in results.items():
            if number == -2:
                timing.warm_up = run.seconds[name]
            elif number == -1:
                timing.flops = run.flops[name]
            elif number >= 0:
                timing.seconds = (*timing.seconds, tuple(seconds[name]))
                timing.beside = (*timing.beside, tuple(beside[name]))
                timing.graphs += run.graphs[name]
    return results


def _groups(contenders: Sequence[Contender], rotation: int) -> list[tuple[Contender, list[Contender]]]:
    """Each reference with those that are compared with it, in this turn's order."""
    groups: list[tuple[Contender, list[Contender]]] = []
    for reference in contenders:
        group = [each for each in contenders if each.reference == reference.name != each.name]
        turn = rotation % max(1, len(group))
        if group or reference.reference == reference.name:
            groups.append((reference, [*group[turn:], *group[:turn]]))
    return groups


class _Run:
    """Where every contender is in one run; runs -2 and -1 are not timed."""

    def __init__(self, trajectory: Trajectory, names: Sequence[str], number: int) -> None:
        self.trajectory, self.number = trajectory, number
        self.latents = dict.fromkeys(names, trajectory.noise)
        self.flops = dict.fromkeys(names, 0)
        self.graphs = dict.fromkeys(names, 0)
        self.seconds = dict.fromkeys(names, 0.0)
        self._after: dict[str, tuple[Tensor, int]] = {}

    def take(self, contender: Contender, index: int) -> float:
        """One step of a contender; its seconds. Until `advance`, the same step again."""
        own = contender.name
        idle = contender.steps is not None and index not in contender.steps
        if idle or (self.number < 0 and own in self._after):
            return 0.0
        before = _graphs()
        with Counting() if self.number == -1 else nullcontext() as counter:
            latents, taken = self.trajectory.step(contender.transformer, self.latents[own], index)
        self.graphs[own] += _graphs() - before
        self.seconds[own] += taken
        self._after[own] = latents, counter.get_total_flops() if counter else 0
        return taken

    def advance(self) -> None:
        """To the next step."""
        for name, (latents, flops) in self._after.items():
            self.latents[name] = latents
            self.flops[name] += flops
        self._after.clear()


def _graphs() -> int:
    """Compiled so far in this process."""
    return counters["stats"]["unique_graphs"]


def paired_ratio(timing: Timing) -> float:
    """Time over the reference's time around it: the median over the runs at each step.

    Neighbours in time meet the same machine, so a slow minute moves both. Steps weigh by the reference's median time.
    """
    turns = [list(zip(*run, strict=True)) for run in zip(timing.seconds, timing.beside, strict=True)]
    steps = list(zip(*turns, strict=True))
    ratios = [statistics.median(own / reference for own, reference in step) for step in steps]
    weights = [statistics.median(reference for _, reference in step) for step in steps]
    return sum(ratio * weight for ratio, weight in zip(ratios, weights, strict=True)) / sum(weights)


def row(contender: Contender, timings: dict[str, Timing], steps: int) -> dict[str, Any]:
    """A contender beside its reference: seconds a step, FLOPs, speed-up and how much of the predicted one it is.

    A ratio's median is the paired one; its range is of whole runs.
    """
    own = timings[contender.name]
    share = own.flops / timings[contender.reference].flops
    runs = [(sum(mine), sum(theirs)) for mine, theirs in zip(own.seconds, own.beside, strict=True)]
    pairs = [mine / theirs for mine, theirs in runs]
    ratio = {"median": paired_ratio(own), "min": min(pairs), "max": max(pairs)}
    speedup = {"median": 1 / ratio["median"], "min": 1 / ratio["max"], "max": 1 / ratio["min"]}
    return {
        "name": contender.name,
        "reference": contender.reference,
        "flops_share": share,
        "step_seconds": spread([mine / steps for mine, _ in runs]),
        "ratio": ratio,
        "speedup": speedup,
        "predicted_speedup": 1 / share,
        "realised": {name: value * share for name, value in speedup.items()},
        "warm_up_seconds": own.warm_up,
        "graphs": own.graphs,
    }
