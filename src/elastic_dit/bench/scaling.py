"""How the saving, and the cost of an elastic model that saves nothing, change with batch, tokens, blocks and steps."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch

from elastic_dit.bench.lane import Lane, record_of, settings
from elastic_dit.bench.race import Progress, silent
from elastic_dit.bench.schedule import Rates, sample_plan
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.speed import ALL_OPEN, CACHE
from elastic_dit.engine.plan import Plan
from elastic_dit.records import RunRecord

Axis = Literal["batch", "tokens", "blocks", "steps"]


def scaling(
    size: Size,
    axes: Mapping[Axis, Sequence[int]],
    device: torch.device,
    dtype: torch.dtype,
    *,
    steps: int,
    repeats: int,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> RunRecord:
    """Dense, all open and the whole schedule at each value of each axis; the other axes stay at the size's own.

    Args:
        size: to start from.
        axes: the values to try: samples in the batch (mixed routes), image tokens (squares), blocks, steps.
        device: where to run.
        dtype: of the weights.
        steps: denoising steps of a run, but for the axis of steps.
        repeats: timed runs.
        seed: of the routes.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `race.Progress`.
    """
    lane = Lane(size, device, dtype)
    points: list[dict[str, Any]] = []
    samples: dict[str, list[float]] = {}
    todo = [(axis, value) for axis, values in axes.items() for value in values]
    for done, (axis, value) in enumerate(todo):
        progress(f"{axis} {value}", done, len(todo))
        here = lane
        if axis == "blocks":
            here = Lane(replace(size, blocks=value), device, dtype)
        elif axis == "tokens":
            here.size = replace(size, tokens=value)
        batch, length = value if axis == "batch" else 1, value if axis == "steps" else steps
        rows, raw = _point(here, batch, length, repeats, seed)
        points.append({"axis": axis, "value": value, "rows": rows})
        samples |= {f"{axis}_{value}_{name}": seconds for name, seconds in raw.items()}
        lane.size = size
    config = (config or {}) | settings(steps, 1, repeats, seed) | {"tokens": size.tokens}
    return record_of("scaling", lane, {"points": points}, samples, command, config)


def _point(
    lane: Lane, batch: int, steps: int, repeats: int, seed: int
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    plan = sample_plan(steps, lane.size.blocks, batch, Rates(), seed)
    contenders = [
        lane.dense_contender(),
        lane.elastic_contender(ALL_OPEN, Plan(np.ones_like(plan.keep))),
        lane.elastic_contender(CACHE, plan),
    ]
    return lane.race(contenders, steps, batch, repeats, silent)
