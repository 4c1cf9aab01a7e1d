"""Time per denoising step, elastic against dense, beside the ratio that the FLOPs predict.

Weights are random: they judge speed, never quality. Routes come from a seeded schedule (`schedule.py`), and the
routers run all the same, so that what they cost is in the measured time.
"""

import copy
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from elastic_dit.bench.schedule import Rates, sample_plan
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.timing import spread, synchronize
from elastic_dit.elasticize import ElasticModel, elasticize
from elastic_dit.engine.plan import Plan
from elastic_dit.records import Environment, RunRecord

DENSE = "dense"
Progress = Callable[[str, int, int], None]
"""Called with what runs, and runs done and to do."""


class Variant(NamedTuple):
    """One way to run the elastic transformer."""

    name: str
    plan: Plan
    routed: bool = True
    """Whether the routers run; a frozen plan needs none."""


def variants(steps: int, blocks: int, batch: int, rates: Rates, seed: int) -> list[Variant]:
    """All open; skipping alone; with width; with the cache; and the last as a plan without routers."""
    full = sample_plan(steps, blocks, batch, rates, seed)
    opened = np.ones_like(full.keep)
    return [
        Variant("all open", Plan(opened)),
        Variant("skip", Plan(full.keep)),
        Variant("skip + width", Plan(full.keep, width=full.width)),
        Variant("skip + width + cache", full),
        Variant("the same, frozen", full, routed=False),
    ]


class LatencyBench:
    """A dense transformer and its elastic twin, which share their weights.

    Args:
        size: what to build.
        batch: samples.
        device: where to run.
        dtype: of the weights.
        compiled: compile both, blocks only; compile time is not measured.
    """

    def __init__(
        self, size: Size, batch: int, device: torch.device, dtype: torch.dtype, *, compiled: bool = False
    ) -> None:
        torch.manual_seed(0)
        with device:
            self.dense: Any = size.build().to(dtype).eval().requires_grad_(False)
        self.size, self.batch, self.device = size, batch, device
        self.elastic: ElasticModel = elasticize(_twin(self.dense), "flux")
        self.elastic.stack.to(device)
        self.inputs = size.inputs(self.dense, batch)
        if compiled:
            self.dense.compile_repeated_blocks(fullgraph=True)
            self.elastic.compile(fullgraph=True)

    def measure(
        self,
        *,
        steps: int,
        repeats: int,
        rates: Rates | None = None,
        seed: int = 0,
        command: str = "",
        config: dict[str, Any] | None = None,
        progress: Progress = lambda label, done, total: None,
    ) -> RunRecord:
        """Run dense and every variant in turn, `repeats` times, after one run each that is not counted.

        Args:
            steps: denoising steps of a run.
            repeats: runs of each.
            rates: of the routes.
            seed: of the routes.
            command: what makes the record again.
            config: settings to put into the record beside these.
            progress: see `Progress`.
        """
        rates = rates or Rates()
        ways = variants(steps, len(self.elastic.routers), self.batch, rates, seed)
        names = [DENSE, *(way.name for way in ways)]
        samples: dict[str, list[float]] = {f"{name}_step_seconds": [] for name in names}
        compute: dict[str, Any] = {}
        total = (repeats + 1) * len(names)
        for number in range(repeats + 1):
            for way in (None, *ways):
                name = DENSE if way is None else way.name
                progress("warm-up" if number == 0 else name, number * len(names) + names.index(name), total)
                seconds = self._run(way, steps)
                if number:
                    samples[f"{name}_step_seconds"].append(seconds)
                elif way is not None:
                    trace = self.elastic.trace
                    compute[name] = {"flops_share": trace.flops_share, "open_rate": trace.open_rate}
                    compute[name] |= {"reuse_rate": trace.reuse_rate, "mean_width": trace.mean_width}
        return RunRecord(
            kind="latency",
            command=command,
            environment=Environment.here(self.device),
            config=(config or {})
            | {"about": self.size.about, "steps": steps, "batch": self.batch, "seed": seed}
            | {"repeats": repeats, "rates": vars(rates), "dtype": str(self.dense.dtype).removeprefix("torch.")},
            results={
                "parameters": sum(p.numel() for p in self.dense.parameters()),
                "rows": [_row(way.name, samples, compute[way.name]) for way in ways],
            },
            samples=samples,
        )

    @torch.no_grad()
    def _run(self, way: Variant | None, steps: int) -> float:
        """Seconds a step, of one run of the dense transformer (None) or the elastic one."""
        transformer = self.dense if way is None else self.elastic.transformer
        if way is not None:
            self.elastic.force(way.plan, routed=way.routed)
        synchronize(self.device)
        start = time.perf_counter()
        for step in range(steps):
            timestep = torch.full((self.batch,), 1 - step / steps, device=self.device, dtype=self.dense.dtype)
            for branch in range(self.size.branches):
                with transformer.cache_context(f"branch {branch}") if way is not None else nullcontext():
                    transformer(**self.inputs, timestep=timestep, return_dict=False)
        synchronize(self.device)
        return (time.perf_counter() - start) / steps


def _twin(transformer: nn.Module) -> nn.Module:
    """A copy with modules of its own and the same tensors."""
    shared = [*transformer.parameters(), *transformer.buffers()]
    return copy.deepcopy(transformer, {id(tensor): tensor for tensor in shared})


def _row(name: str, samples: dict[str, list[float]], compute: dict[str, float]) -> dict[str, Any]:
    """One variant: times, the speed-up of neighbouring runs, and its share of what the FLOPs predict."""
    dense, own = samples[f"{DENSE}_step_seconds"], samples[f"{name}_step_seconds"]
    speedups = [a / b for a, b in zip(dense, own, strict=True)]
    predicted = 1 / compute["flops_share"]
    return {
        "name": name,
        "dense_step_seconds": spread(dense),
        "step_seconds": spread(own),
        "speedup": spread(speedups),
        "ratio": spread([1 / speedup for speedup in speedups]),
        "predicted_speedup": predicted,
        "realised": spread([speedup / predicted for speedup in speedups]),
    } | compute
