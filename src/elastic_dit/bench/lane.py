"""What the benchmarks of random weights share: a dense transformer, its elastic twins, and the record of a race.

Weights are random: they judge speed, never quality.
"""

import copy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch

from elastic_dit.bench.race import DENSE, Contender, Progress, race, row
from elastic_dit.bench.schedule import Rates
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.trajectory import Trajectory
from elastic_dit.config import preset
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.plan import Plan
from elastic_dit.records import Environment, RunRecord
from elastic_dit.verbs import elasticize

AHEAD = ", decided ahead"
"""What the name of a contender ends with whose routers read the input of the block before (`decide_ahead`)."""
LATE = ", a step late"
"""The same, of one whose blocks do what was read in the step before (`decision_lag`)."""
COMPILED = ", compiled"
"""What the name of a compiled contender ends with."""
GRAPHS = ", CUDA graphs"
"""The same, of one whose compiled blocks run as CUDA graphs."""


@dataclass(frozen=True)
class How:
    """How an elastic contender carries out a plan."""

    routed: bool = True
    """The routers run as well, and are overruled."""
    ahead: bool = False
    """Each router reads the input of the block before it."""
    late: bool = False
    """Each router is heard a step later."""
    compiled: bool = False
    """With compiled blocks."""
    graphs: bool = False
    """With compiled blocks under CUDA graphs."""

    def name(self, name: str) -> str:
        """The contender's, after its plan's."""
        return name + AHEAD * self.ahead + LATE * self.late + (GRAPHS if self.graphs else COMPILED * self.compiled)


DEFAULT = How()


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
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)  # as from_pretrained does: 20 B parameters in float32 would not fit first
        try:
            with device:
                self.dense: Any = size.transformer().eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)
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

    def elastic_contender(self, name: str, plan: Plan, how: How = DEFAULT) -> Contender:
        """An elastic twin under a plan; `How.name` tells what it is called."""
        config = preset(self.size.preset, decide_ahead=how.ahead, decision_lag=int(how.late))
        elastic = elasticize(self.twin(), config)
        elastic.stack.to(self.device)
        elastic.force(plan, routed=how.routed)
        if how.graphs:
            elastic.compile(fullgraph=True, mode="reduce-overhead")
        elif how.compiled:
            elastic.compile(fullgraph=True)
        name = how.name(name)
        self.elastic[name] = elastic
        reference = DENSE + COMPILED * (how.compiled or how.graphs)
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
        samples: dict[str, list[float]] = {}
        for name, timing in timings.items():
            samples[f"{name}_seconds"] = list(chain.from_iterable(timing.seconds))
            samples[f"{name}_beside_seconds"] = list(chain.from_iterable(timing.beside))
        return rows, samples


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
