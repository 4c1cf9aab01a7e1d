"""What skipping, width and the cache save per step, beside what their FLOPs predict.

Weights are random: they judge speed, never quality. Routes come from a seeded schedule (`schedule.py`), and the
routers run all the same, so that what they cost is in the measured time.
"""

import copy
import statistics
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch

from elastic_dit.bench.race import DENSE, Contender, Progress, race, row, silent
from elastic_dit.bench.schedule import Rates, sample_plan
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.timing import ForwardTimer
from elastic_dit.bench.trajectory import Trajectory
from elastic_dit.elasticize import ElasticModel, elasticize
from elastic_dit.engine.plan import Plan
from elastic_dit.records import Environment, RunRecord

ALL_OPEN, CACHE = "all open", "skip + width + cache"
COMPILED = ", compiled"


class Lane:
    """A dense transformer with random weights, and as many elastic or other copies as a race needs.

    Args:
        size: what to build.
        device: where to run.
        dtype: of the weights.
    """

    def __init__(self, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.device = size, device
        torch.manual_seed(0)
        with device:
            self.dense: Any = size.transformer().to(dtype).eval().requires_grad_(False)
        self.elastic: dict[str, ElasticModel] = {}

    def twin(self) -> Any:
        """A copy with modules of its own and the same tensors."""
        shared = [*self.dense.parameters(), *self.dense.buffers()]
        return copy.deepcopy(self.dense, {id(tensor): tensor for tensor in shared})

    def dense_contender(self, *, compiled: bool = False) -> Contender:
        """The dense transformer, or a compiled twin of it."""
        if not compiled:
            return Contender(DENSE, self.dense)
        twin = self.twin()
        twin.compile_repeated_blocks(fullgraph=True)
        return Contender(DENSE + COMPILED, twin)

    def elastic_contender(self, name: str, plan: Plan, *, routed: bool = True, compiled: bool = False) -> Contender:
        """An elastic twin under a plan; `routed`: the routers run as well, and are overruled."""
        elastic = elasticize(self.twin(), self.size.preset)
        elastic.stack.to(self.device)
        elastic.force(plan, routed=routed)
        if compiled:
            elastic.compile(fullgraph=True)
        name += COMPILED * compiled
        self.elastic[name] = elastic
        reference = DENSE + COMPILED * compiled
        return Contender(name, elastic.transformer, elastic.reset, reference=reference)

    def routes(self, name: str) -> dict[str, float]:
        """What an elastic contender did in its last run."""
        trace = self.elastic[name].trace
        return {"open_rate": trace.open_rate, "reuse_rate": trace.reuse_rate, "mean_width": trace.mean_width}

    def race(
        self, contenders: list[Contender], steps: int, batch: int, repeats: int, progress: Progress
    ) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
        """Race them: a row for each, in their order, and the raw seconds of each, run by run and step by step."""
        timings = race(contenders, Trajectory(self.size, self.dense, batch, steps), repeats, progress)
        rows = [
            row(each, timings, steps) | (self.routes(each.name) if each.name in self.elastic else {})
            for each in contenders
        ]
        seconds = {f"{name}_seconds": [s for run in timing.seconds for s in run] for name, timing in timings.items()}
        return rows, seconds


def speed(
    lane: Lane,
    *,
    batch: int,
    steps: int,
    repeats: int,
    compiled: bool,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> RunRecord:
    """Dense, and the elastic model: all open; skipping; with width; with the cache; frozen; compiled.

    Args:
        lane: the transformer.
        batch: samples; each takes its own route.
        steps: denoising steps of a run.
        repeats: timed runs.
        compiled: also the dense and the elastic model with compiled blocks.
        seed: of the routes.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `race.Progress`.
    """
    plan = sample_plan(steps, lane.size.blocks, batch, Rates(), seed)
    contenders = [
        lane.dense_contender(),
        lane.elastic_contender(ALL_OPEN, Plan(np.ones_like(plan.keep))),
        lane.elastic_contender("skip", Plan(plan.keep)),
        lane.elastic_contender("skip + width", Plan(plan.keep, width=plan.width)),
        lane.elastic_contender(CACHE, plan),
        lane.elastic_contender("the same, frozen", plan, routed=False),
    ]
    if compiled:
        contenders += [
            lane.dense_contender(compiled=True),
            lane.elastic_contender(ALL_OPEN, Plan(np.ones_like(plan.keep)), compiled=True),
            lane.elastic_contender(CACHE, plan, compiled=True),
        ]
    rows, samples = lane.race(contenders, steps, batch, repeats, progress)
    blocks = timeline(lane, Trajectory(lane.size, lane.dense, batch, steps), steps // 2)
    results = {"rows": rows, "timeline": blocks}
    return record_of("speed", lane, results, samples, command, (config or {}) | settings(steps, batch, repeats, seed))


def timeline(lane: Lane, trajectory: Trajectory, step: int, repeats: int = 3) -> dict[str, Any]:
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


def record_of(
    kind: str,
    lane: Lane,
    results: dict[str, Any],
    samples: dict[str, list[float]],
    command: str,
    config: dict[str, Any],
) -> RunRecord:
    """The record of a race on a lane."""
    dtype = str(lane.dense.dtype).removeprefix("torch.")
    return RunRecord(
        kind=kind,
        command=command,
        environment=Environment.here(lane.device),
        config={"about": lane.size.about, "preset": lane.size.preset, "dtype": dtype, "rates": vars(Rates())}
        | {"device_type": lane.device.type}
        | config,
        results={"parameters": sum(p.numel() for p in lane.dense.parameters())} | results,
        samples=samples,
    )


def settings(steps: int, batch: int, repeats: int, seed: int) -> dict[str, int]:
    """What every record of a race says of it."""
    return {"steps": steps, "batch": batch, "repeats": repeats, "seed": seed}
