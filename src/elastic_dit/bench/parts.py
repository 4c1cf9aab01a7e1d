"""What parts of a block cost: its router, an MLP that is a slice of its weights, and all that is no matrix product.

One block of a size is enough for that, so real sizes fit a small machine too.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import profile

from elastic_dit.bench.lane import Lane, record_of, settings
from elastic_dit.bench.race import Progress, silent
from elastic_dit.bench.schedule import RATIOS
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.trajectory import Trajectory
from elastic_dit.core.cost import router_flops
from elastic_dit.core.width import channels
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.site import BlockCall, Site, hidden_size
from elastic_dit.records import RunRecord
from elastic_dit.timing import spread, synchronize
from elastic_dit.verbs import elasticize

BLOCKS = 3
"""The fewest of which each block list has one (FLUX: a double block and two single ones); the last is measured."""


def parts(
    size: Size,
    device: torch.device,
    dtype: torch.dtype,
    *,
    batch: int,
    repeats: int,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> RunRecord:
    """The last block, its router, and its MLP's second projection at each width: as a view, and from a copy.

    Args:
        size: whose block.
        device: where to run.
        dtype: of the weights.
        batch: samples.
        repeats: timed calls of each, in turn.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `race.Progress`.
    """
    lane = Lane(replace(size, blocks=BLOCKS), device, dtype)
    elastic = elasticize(lane.twin(), size.preset)
    elastic.stack.to(device)
    call = _last_call(elastic, Trajectory(lane.size, lane.dense, batch, steps=1))
    runs = _block_and_router(elastic, lane.dense, call) | _slices(elastic.sites[-1], call)
    seconds = _in_turn(runs, repeats, device, progress)
    router: Any = elastic.routers[-1]
    results = {
        "other_share": _other_share(runs["block"], device),
        "block_seconds": spread(seconds["block"]),
        "router_seconds": spread(seconds["router"]),
        "router_share": _beside(seconds["router"], seconds["block"]),
        "router_flops_share": router_flops(router, call.image.shape[1]) / elastic.costs[-1].dense,
        "slices": [
            {
                "width": ratio,
                "view_seconds": spread(seconds[f"view {ratio}"]),
                "copy_seconds": spread(seconds[f"copy {ratio}"]),
                "ratio": _beside(seconds[f"view {ratio}"], seconds[f"copy {ratio}"]),
            }
            for ratio in RATIOS
        ],
    }
    samples = {f"{name}_seconds": values for name, values in seconds.items()}
    return record_of("parts", lane, results, samples, command, (config or {}) | settings(1, batch, repeats, 0))


def _last_call(elastic: ElasticModel, trajectory: Trajectory) -> BlockCall:
    """What a forward calls the last block with."""
    site, calls = elastic.sites[-1], list[BlockCall]()
    hook = site.block.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(site.call(args, kwargs)), with_kwargs=True
    )
    trajectory.step(elastic.transformer, trajectory.noise, 0)
    hook.remove()
    return calls[0]


def _block_and_router(elastic: ElasticModel, dense: Any, call: BlockCall) -> dict[str, Callable[[], object]]:
    _, block = elastic.backbone.sites(dense)[-1]
    assert elastic.stack.condition is not None
    dim = elastic.backbone.dim(dense)
    condition = elastic.stack.condition(torch.randn(call.batch, dim, device=call.image.device))
    router = elastic.routers[-1]
    return {"block": lambda: block(**call.arguments), "router": lambda: router(call.image, condition)}


def _slices(site: Site, call: BlockCall) -> dict[str, Callable[[], object]]:
    """The second projection of the block's MLP on as many channels as each width leaves."""
    mlp = site.mlps[0]
    down: Any = site.block.get_submodule(mlp.down)
    hidden = hidden_size(site.block, mlp)
    stay = down.in_features - hidden
    streams = [stream for stream in call.x if stream is not None]
    tokens = (
        sum(stream.shape[1] for stream in streams) if stay else call.image.shape[1]
    )  # FLUX's single blocks join them
    runs: dict[str, Callable[[], object]] = {}
    for ratio in RATIOS:
        keep = stay + channels(ratio, hidden)
        h, view = call.image.new_empty(call.batch, tokens, keep).normal_(), down.weight[:, :keep]
        runs[f"view {ratio}"] = partial(F.linear, h, view, down.bias)
        runs[f"copy {ratio}"] = partial(F.linear, h, view.clone(memory_format=torch.contiguous_format), down.bias)
    return runs


@torch.no_grad()
def _in_turn(
    runs: dict[str, Callable[[], object]], repeats: int, device: torch.device, progress: Progress
) -> dict[str, list[float]]:
    """Seconds of each, after one call of each to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            progress(name, number, repeats + 1)
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


PRODUCTS = (
    "mm",
    "addmm",
    "bmm",
    "baddbmm",
    "_scaled_dot",
    "_flash_attention",
    "_efficient_attention",
    "_cudnn_attention",
)
"""What FLOPs are counted of: the operators whose names begin so."""


@torch.no_grad()
def _other_share(run: Callable[[], object], device: torch.device) -> float:
    """Share of a block's time that is in no matrix product and no attention, by torch's profiler: FLOPs miss it."""
    with profile() as seen:
        run()
    own = "self_cpu_time_total" if device.type == "cpu" else "self_device_time_total"
    times = {event.key: float(getattr(event, own)) for event in seen.key_averages() if event.key.startswith("aten::")}
    products = sum(time for key, time in times.items() if key.removeprefix("aten::").startswith(PRODUCTS))
    return 1 - products / sum(times.values())


def _beside(own: list[float], other: list[float]) -> dict[str, float]:
    """Time over the time of the other in the same turn."""
    return spread([a / b for a, b in zip(own, other, strict=True)])
