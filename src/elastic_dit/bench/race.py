"""Contenders that take turns at every step of a run, so that what slows the machine slows all of them.

FLOPs are counted as they are executed, by torch's counter: whatever a method does, its share says.
"""

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from elastic_dit.bench.timing import spread
from elastic_dit.bench.trajectory import Trajectory

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
    """What one contender took."""

    flops: int = 0
    """Of one run, counted."""
    seconds: tuple[tuple[float, ...], ...] = ()
    """In the transformer, by run and step."""

    @property
    def runs(self) -> list[float]:
        """Seconds of each run."""
        return [sum(run) for run in self.seconds]


def race(
    contenders: Sequence[Contender], trajectory: Trajectory, repeats: int, progress: Progress = silent
) -> dict[str, Timing]:
    """Run all contenders side by side: one to warm up, one whose FLOPs are counted, then `repeats` that are timed.

    At every step each contender has its turn, in an order that rotates.

    Args:
        contenders: with different names, in the order of the table.
        trajectory: the run.
        repeats: timed runs, at least one.
        progress: see `Progress`.
    """
    results = {contender.name: Timing() for contender in contenders}
    total = (repeats + 2) * trajectory.steps
    for number in range(-2, repeats):
        latents = {contender.name: trajectory.noise for contender in contenders}
        seconds: dict[str, list[float]] = {name: [] for name in results}
        for contender in contenders:
            contender.restart()
        for index in range(trajectory.steps):
            progress("timing" if number >= 0 else "warm-up", (number + 2) * trajectory.steps + index, total)
            turn = (number + index) % len(contenders)
            for contender in (*contenders[turn:], *contenders[:turn]):
                own = contender.name
                if contender.steps is not None and index not in contender.steps:
                    seconds[own].append(0.0)
                elif number == -1:
                    with Counting() as counter:
                        latents[own], _ = trajectory.step(contender.transformer, latents[own], index)
                    results[own].flops += counter.get_total_flops()
                else:
                    latents[own], taken = trajectory.step(contender.transformer, latents[own], index)
                    seconds[own].append(taken)
        if number >= 0:
            for name, timing in results.items():
                timing.seconds = (*timing.seconds, tuple(seconds[name]))
    return results


class Counting(FlopCounterMode):
    """Counts the FLOPs that are really executed; what is compiled runs eagerly meanwhile."""

    def __init__(self) -> None:
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's counter does not know it
        super().__init__(display=False, custom_mapping={attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)})

    def __enter__(self) -> "Counting":
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stance.__exit__(*error)


def paired_ratio(own: Timing, reference: Timing) -> float:
    """Time over the reference's time: at each step the median over the runs of the ratio within one turn.

    Neighbours in time meet the same machine, so a slow minute moves both. Steps weigh by the reference's median time.
    """
    turns = [list(zip(a, b, strict=True)) for a, b in zip(own.seconds, reference.seconds, strict=True)]
    steps = list(zip(*turns, strict=True))
    ratios = [statistics.median(mine / theirs for mine, theirs in step) for step in steps]
    weights = [statistics.median(theirs for _, theirs in step) for step in steps]
    return sum(ratio * weight for ratio, weight in zip(ratios, weights, strict=True)) / sum(weights)


def row(contender: Contender, timings: dict[str, Timing], steps: int) -> dict[str, Any]:
    """A contender beside its reference: seconds a step, FLOPs, speed-up and how much of the predicted one it is.

    A ratio's median is the paired one; its range is of whole runs.
    """
    own, reference = timings[contender.name], timings[contender.reference]
    share = own.flops / reference.flops
    pairs = [mine / theirs for mine, theirs in zip(own.runs, reference.runs, strict=True)]
    ratio = {"median": paired_ratio(own, reference), "min": min(pairs), "max": max(pairs)}
    speedup = {"median": 1 / ratio["median"], "min": 1 / ratio["max"], "max": 1 / ratio["min"]}
    return {
        "name": contender.name,
        "reference": contender.reference,
        "flops_share": share,
        "step_seconds": spread([run / steps for run in own.runs]),
        "ratio": ratio,
        "speedup": speedup,
        "predicted_speedup": 1 / share,
        "realised": {name: value * share for name, value in speedup.items()},
    }
