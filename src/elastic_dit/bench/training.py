"""What an elastic training step costs beside a dense one: time and peak memory, forward and backward."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from elastic_dit.bench.lane import Lane, record_of, settings
from elastic_dit.bench.race import Progress, silent
from elastic_dit.bench.timing import spread, synchronize
from elastic_dit.elasticize import ElasticModel, elasticize
from elastic_dit.records import RunRecord


class Trainee:
    """A transformer in training, dense or elastic: one step is a forward and a backward pass of all weights."""

    def __init__(self, lane: Lane, batch: int, *, elastic: bool, checkpointing: bool) -> None:
        self.name = ("elastic" if elastic else "dense") + ", checkpointing" * checkpointing
        self.transformer = lane.twin()
        self.inputs = lane.size.feed(self.transformer, batch)
        self.timestep = torch.full((batch,), 0.5, device=lane.device, dtype=lane.dense.dtype)
        self.model: ElasticModel | None = None
        if elastic:
            self.model = elasticize(self.transformer, lane.size.preset)
            self.model.stack.to(lane.device)
            self.model.train_mode(gradient_checkpointing=checkpointing)
        elif checkpointing:
            self.transformer.enable_gradient_checkpointing()

    def step(self) -> None:
        """Gradients of a quadratic loss and, if elastic, of the budget."""
        self.loss().backward()

    def loss(self) -> Tensor:
        """The forward pass."""
        self.transformer.requires_grad_(True).train()
        loss = self.transformer(**self.inputs, timestep=self.timestep, return_dict=False)[0].square().mean()
        return loss if self.model is None else loss + self.model.losses().total

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
    memories: dict[str, tuple[int, int]] = {}
    for number in range(-1, repeats):
        for each in trainees[number % 4 :] + trainees[: number % 4]:
            progress(each.name, (number + 1) * len(trainees), (repeats + 1) * len(trainees))
            if number < 0:
                memories[each.name] = memory(each)
            else:
                synchronize(lane.device)
                start = time.perf_counter()
                each.step()
                synchronize(lane.device)
                seconds[each.name].append(time.perf_counter() - start)
            each.forget()
    rows = [_row(name, seconds, memories) for name in seconds]
    measured = {f"{name}_seconds": values for name, values in seconds.items()}
    return record_of(
        "training", lane, {"rows": rows}, measured, command, (config or {}) | settings(1, batch, repeats, 0)
    )


def memory(trainee: Trainee) -> tuple[int, int]:
    """Bytes at the peak of a step, weights and gradients included, and held after its forward pass, weights apart."""
    from torch.distributed._tools.mem_tracker import MemTracker

    trainee.step()  # the elastic model measures its blocks at its first step
    trainee.forget()
    tracker = MemTracker()
    tracker.track_external(trainee.transformer, *([] if trainee.model is None else [trainee.model.stack]))
    with tracker:
        loss = trainee.loss()
        held = _bytes(tracker, "current") - _weights(trainee)
        loss.backward()
    return _bytes(tracker, "peak"), held


def _bytes(tracker: Any, when: str) -> int:
    return sum(kinds["Total"] for kinds in tracker.get_tracker_snapshot(when).values())


def _weights(trainee: Trainee) -> int:
    modules = [trainee.transformer] if trainee.model is None else [trainee.transformer, trainee.model.stack]
    return sum(p.nbytes for module in modules for p in module.parameters())


def _row(name: str, seconds: dict[str, list[float]], memories: dict[str, tuple[int, int]]) -> dict[str, Any]:
    """A trainee beside the dense one with the same checkpointing."""
    reference = name.replace("elastic", "dense")
    ratios = [own / dense for own, dense in zip(seconds[name], seconds[reference], strict=True)]
    ratio = statistics.median(seconds[name]) / statistics.median(seconds[reference])
    (peak, held), (dense_peak, dense_held) = memories[name], memories[reference]
    return {
        "name": name,
        "reference": reference,
        "step_seconds": spread(seconds[name]),
        "ratio": {"median": ratio, "min": min(ratios), "max": max(ratios)},
        "peak_bytes": peak,
        "memory_ratio": peak / dense_peak,
        "saved_bytes": held,
        "saved_ratio": held / dense_held,
    }
