"""What skipping, width and the cache save per step, beside what their FLOPs predict.

Routes come from a seeded schedule (`schedule.py`), and the routers run all the same, so that what they cost is in the
measured time.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np

from elastic_dit.bench.lane import DEFAULT, How, Lane, record_of, settings
from elastic_dit.bench.race import DENSE, Progress, silent
from elastic_dit.bench.schedule import Rates, sample_plan
from elastic_dit.bench.trajectory import Trajectory
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import UnknownNameError
from elastic_dit.records import RunRecord
from elastic_dit.timing import ForwardTimer

Row = tuple[str, Plan, How]
"""Name, plan, and how it is carried out."""
ALL_OPEN, CACHE, FROZEN = "all open", "skip + width + cache", "the same, frozen"


def speed(
    lane: Lane,
    *,
    batch: int,
    steps: int,
    repeats: int,
    compiled: bool,
    only: Sequence[str] | None = None,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> RunRecord:
    """Dense, and the elastic model: all open; skipping; with width; with the cache; decided earlier; frozen; compiled.

    Args:
        lane: the transformer.
        batch: samples; each takes its own route.
        steps: denoising steps of a run.
        repeats: timed runs.
        compiled: also the dense and the elastic model with compiled blocks and, on a GPU, under CUDA graphs.
        only: names of the elastic rows; None: all.
        seed: of the routes.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `race.Progress`.

    Raises:
        UnknownNameError: there is no such row.
    """
    plan = sample_plan(steps, lane.size.blocks, batch, Rates(), seed)
    asked = _rows(plan, compiled, graphs=lane.device.type == "cuda")
    names = [how.name(name) for name, _, how in asked]
    if unknown := [name for name in only or () if name not in names]:
        raise UnknownNameError("row", unknown[0], names)
    chosen = [row for row, name in zip(asked, names, strict=True) if not only or name in only]
    contenders = [lane.elastic_contender(*row) for row in chosen]
    dense = [lane.dense_contender()]
    if any(each.reference != DENSE for each in contenders):
        dense.append(lane.dense_contender(compiled=True))
    rows, samples = lane.race([*dense, *contenders], steps, batch, repeats, progress)
    results: dict[str, Any] = {"rows": rows}
    if CACHE in lane.elastic:
        results["timeline"] = timeline(lane, Trajectory(lane.size, lane.dense, batch, steps), steps // 2)
    return record_of("speed", lane, results, samples, command, (config or {}) | settings(steps, batch, repeats, seed))


def _rows(plan: Plan, compiled: bool, graphs: bool) -> list[Row]:
    """All elastic rows of the table, in its order."""
    every, ahead, late, frozen = Plan(np.ones_like(plan.keep)), How(ahead=True), How(late=True), How(routed=False)
    rows: list[Row] = [
        (ALL_OPEN, every, DEFAULT),
        (ALL_OPEN, every, ahead),
        (ALL_OPEN, every, late),
        ("skip", Plan(plan.keep), DEFAULT),
        ("skip + width", Plan(plan.keep, width=plan.width), DEFAULT),
        (CACHE, plan, DEFAULT),
        (CACHE, plan, ahead),
        (CACHE, plan, late),
        (FROZEN, plan, frozen),
    ]
    if compiled:
        rows += [(name, of, replace(how, compiled=True)) for name, of, how in rows if name in (ALL_OPEN, CACHE, FROZEN)]
        rows += [(name, plan, replace(how, graphs=True)) for name, how in ((CACHE, late), (FROZEN, frozen)) if graphs]
    return rows


def timeline(lane: Lane, trajectory: Trajectory, step: int, repeats: int = 7) -> dict[str, Any]:
    """One step block by block, the first guidance pass and sample: dense seconds, elastic seconds, what happened.

    Apart from the race, since every block is waited for.
    """
    elastic = lane.elastic[CACHE]
    sites = elastic.backbone.sites(elastic.transformer)
    seconds: dict[str, list[list[float]]] = {"dense": [], "elastic": []}
    for _ in range(repeats):
        for name, transformer in (("dense", lane.dense), ("elastic", elastic.transformer)):
            elastic.reset()
            latents = trajectory.noise
            with ExitStack() as stack:
                blocks = elastic.backbone.sites(transformer)
                timers = [stack.enter_context(ForwardTimer(block)) for _, block in blocks]
                for index in range(step + 1):
                    latents, _ = trajectory.step(transformer, latents, index)
            seconds[name].append([timer.seconds[step * trajectory.branches] for timer in timers])
    dense, own = ([statistics.median(block) for block in zip(*runs, strict=True)] for runs in seconds.values())
    branch = elastic.trace.branches[0]
    taken = [elastic.trace[step, index, branch, 0] for index in range(len(sites))]
    return {
        "step": step,
        "branch": 0,
        "blocks": [
            {"list": declared.path, "dense_seconds": a, "elastic_seconds": b}
            | {"keep": route.keep, "reuse": route.reuse, "width": route.width}
            for (declared, _), a, b, route in zip(sites, dense, own, taken, strict=True)
        ],
    }
