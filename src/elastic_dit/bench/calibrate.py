"""The dial, measured: settings of an adapter against speed-up and likeness to the dense images."""

import statistics
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from elastic_dit.bench.compare import Bench, Meter, Progress, Task
from elastic_dit.calibration import Calibration, Check, Point, Setting
from elastic_dit.evaluation.fidelity import fidelity, mean_fidelity
from elastic_dit.evaluation.sampling import SampleSettings
from elastic_dit.records import Environment

FASTEST_OPEN_RATE = 0.4
"""Where a curve over tau ends: so many of the blocks would be open, by the probabilities of a run with all open."""
CLOSE = 0.03
"""How far off a speed-up that was asked for may be."""
AGAIN = 4
"""How often it is asked for again."""


def calibrate(
    bench: Bench,
    prompts: Sequence[str],
    settings: SampleSettings,
    *,
    points: int,
    seed: int = 0,
    repeats: int = 2,
    checks: Sequence[float] = (),
    command: str = "",
    config: dict[str, Any] | None = None,
    keep: Callable[[Calibration], object] = lambda result: None,
    progress: Progress = lambda label, done, total: None,
) -> Calibration:
    """Measure settings one by one, each in turn with the dense model: with the adapter's cache, without any, and where
    there is guidance with every second step's taken again.

    A few places of the dial (tau, or the budget) first; then, again and again, the middle of the two
    whose speed-ups are farthest apart. A speed-up that is to be checked and comes out more than `CLOSE` off goes
    into the table and is asked for again: between two points speed need not rise evenly.

    Args:
        bench: the dense and the elastic pipeline.
        prompts: B texts, one batch.
        settings: how to sample; `steps` is given.
        points: settings to measure, at least 10: three on each curve to begin with. Checks may add more.
        seed: of the first prompt.
        repeats: measurements of each setting.
        checks: speed-ups to ask for in the end, and to measure; those that were not reached are left out.
        command: what makes the table again.
        config: settings to put into the table beside these.
        keep: what writes the table down: called when it is measured, and with each check again.
        progress: see `compare.Progress`.
    """
    assert settings.steps is not None
    elastic = bench.elastic
    own = elastic.setting
    everyone = tuple(range(len(prompts)))
    task = Task(prompts, seed, settings, settings.steps, Meter(progress))
    forwards = bench.warm_up(task, [everyone])
    task.meter.total = 2 * forwards * task.steps * len(prompts) * repeats * (points + len(checks))

    def measure(setting: Setting) -> Point:
        elastic.setting = setting
        pairs = [(bench.run("dense", everyone, task), bench.run("elastic", everyone, task)) for _ in range(repeats)]
        dense, fast = pairs[0]
        close = mean_fidelity([fidelity(*pair) for pair in zip(fast.images, dense.images, strict=True)])
        return Point(
            setting=setting,
            speedup=statistics.median(a.step_seconds / b.step_seconds for a, b in pairs),
            flops_share=elastic.trace.flops_share,
            psnr=close.psnr,
            ssim=close.ssim,
            samples={
                "dense_step_seconds": [a.step_seconds for a, _ in pairs],
                "elastic_step_seconds": [b.step_seconds for _, b in pairs],
            },
        )

    plain = own._replace(delta=0.0, max_reuse=0, max_guidance_reuse=0)
    limits = elastic.config.budget_range
    measured = [measure(plain.turned(1 - limits[1] if limits else 0.0))]
    dials = _budget_dials(*limits) if limits else _tau_dials(elastic.trace.array("keep_prob"), own.tau)
    guided = [plain._replace(max_guidance_reuse=1)] if len(elastic.trace.branches) > 1 else []
    cached = [own] if own.max_reuse else []
    todo = [reuse.turned(dial) for reuse in dict.fromkeys([plain, *guided, *cached]) for dial in dials]
    measured += [measure(setting) for setting in todo if setting != measured[0].setting]
    result = Calibration(
        command=command,
        environment=Environment.here(elastic.transformer.device),
        config=(config or {}) | {"prompts": list(prompts), "seed": seed, "repeats": repeats} | vars(settings),
        points=measured,
    )
    while len(result.points) < points:
        result.points.append(measure(_widest_gap(result.points)))
    keep(result)
    for asked in checks:
        if check := _check(asked, result, measure):
            result.checks.append(check)
        keep(result)
    elastic.setting = own
    return result


def _check(asked: float, result: Calibration, measure: Callable[[Setting], Point]) -> Check | None:
    """What comes of a speed-up; None where the table does not reach it, or no more with a point that missed it."""
    for missed in range(AGAIN + 1):
        if result.reachable(asked) is None:
            break
        point = measure(result.at_speedup(asked))
        if missed == AGAIN or abs(point.speedup / asked - 1) <= CLOSE:
            return Check(asked=asked, point=point)
        result.points.append(point)
    return None


def _tau_dials(keep_prob: npt.NDArray[np.float64], own: float) -> list[float]:
    return sorted({0.0, own, float(np.quantile(keep_prob, 1 - FASTEST_OPEN_RATE))})


def _budget_dials(low: float, high: float) -> list[float]:
    return [1 - high, 1 - (high + low) / 2, 1 - low]


def _widest_gap(points: list[Point]) -> Setting:
    """Midway between the two neighbours on the dial, with one cache, whose speed-ups differ most."""
    ordered = sorted(points, key=lambda point: (point.setting.curve, point.setting.dial))
    gaps = [
        (above.speedup / below.speedup, below.setting.turned((below.setting.dial + above.setting.dial) / 2))
        for below, above in pairwise(ordered)
        if below.setting.curve == above.setting.curve
    ]
    return max(gaps)[1]
