"""What an elastic training step costs beside a dense one: time and peak memory, forward and backward."""

import statistics
import time
from typing import Any

import torch

from elastic_dit.bench.race import Progress, silent
from elastic_dit.bench.speed import Lane, record_of, settings
from elastic_dit.bench.timing import spread, synchronize
from elastic_dit.elasticize import ElasticModel, elasticize
from elastic_dit.records import RunRecord


class Trainee:
    """A transformer in training, dense or elastic: one step is a forward and a backward pass of all weights."""

    def __init__(self, lane: Lane, batch: int, *, elastic: bool, checkpointing: bool) -> None:
        self.name = ("elastic" if elastic else "dense") + ", checkpointing" * checkpointing
        self.transformer = lane.twin()
        self.inputs = lane.size.inputs(self.transformer, batch)
        self.timestep = torch.full((batch,), 0.5, device=lane.device, dtype=lane.dense.dtype)
        self.model: ElasticModel | None = None
        if elastic:
            self.model = elasticize(self.transformer, lane.size.preset)
            self.model.stack.to(lane.device)
            self.model.train_mode(gradient_checkpointing=checkpointing)
        elif checkpointing:
            self.transformer.enable_gradient_checkpointing()

    def step(self) -> None:
        """Gradients of a quadratic loss and, if elastic, of the budget; they are thrown away."""
        self.transformer.requires_grad_(True).train()
        loss = self.transformer(**self.inputs, timestep=self.timestep, return_dict=False)[0].square().mean()
        if self.model is not None:
            loss = loss + self.model.losses().total
        loss.backward()

    def forget(self) -> None:
        """Drop the gradients: trainees share their weights."""
        self.transformer.zero_grad(set_to_none=True)
        if self.model is not None:
            self.model.stack.zero_grad(set_to_none=True)


def training(
    lane: Lane,
    *,
    batch: int,
    repeats: int,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> RunRecord:
    """Dense and elastic steps in turn, without and with gradient checkpointing.

    Args:
        lane: the transformer.
        batch: samples of a step.
        repeats: timed steps of each.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `race.Progress`.
    """
    kinds = [(elastic, checkpointing) for checkpointing in (False, True) for elastic in (False, True)]
    trainees = [Trainee(lane, batch, elastic=e, checkpointing=c) for e, c in kinds]
    seconds: dict[str, list[float]] = {each.name: [] for each in trainees}
    peaks: dict[str, int] = {}
    for number in range(-1, repeats):
        for each in trainees[number % 4 :] + trainees[: number % 4]:
            progress(each.name, (number + 1) * len(trainees), (repeats + 1) * len(trainees))
            if number < 0:
                peaks[each.name] = peak_bytes(each)
            else:
                synchronize(lane.device)
                start = time.perf_counter()
                each.step()
                synchronize(lane.device)
                seconds[each.name].append(time.perf_counter() - start)
            each.forget()
    weights = sum(p.nbytes for p in lane.dense.parameters())
    rows = [_row(name, seconds, peaks, weights) for name in seconds]
    measured = {f"{name}_seconds": values for name, values in seconds.items()}
    record = record_of("training", lane, rows, measured, command, (config or {}) | settings(1, batch, repeats, 0))
    return record


def peak_bytes(trainee: Trainee) -> int:
    """Peak memory of a step: weights, gradients and activations."""
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    tracker.track_external(trainee.transformer, *([] if trainee.model is None else [trainee.model.stack]))
    with tracker:
        trainee.step()
    return max(sum(v for k, v in kinds.items() if k == "Total") for kinds in tracker.get_tracker_snapshot("peak").values())


def _row(name: str, seconds: dict[str, list[float]], peaks: dict[str, int], weights: int) -> dict[str, Any]:
    """A trainee beside the dense one with the same checkpointing. Activations: the peak but for weights and gradients."""
    reference = name.replace("elastic", "dense")
    ratios = [own / dense for own, dense in zip(seconds[name], seconds[reference], strict=True)]
    ratio = statistics.median(seconds[name]) / statistics.median(seconds[reference])
    return {
        "name": name,
        "reference": reference,
        "step_seconds": spread(seconds[name]),
        "ratio": {"median": ratio, "min": min(ratios), "max": max(ratios)},
        "peak_bytes": peaks[name],
        "memory_ratio": peaks[name] / peaks[reference],
        "activation_ratio": (peaks[name] - 2 * weights) / (peaks[reference] - 2 * weights),
    }
