"""What an elastic training step costs beside a dense one: time and peak memory, forward and backward."""

import statistics
import time
from typing import Any

import torch
from torch import Tensor

from elastic_dit.bench.lane import Lane, record_of, settings
from elastic_dit.bench.race import Progress, silent
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.records import RunRecord
from elastic_dit.timing import spread, synchronize
from elastic_dit.verbs import elasticize


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
    """Elastic steps, each between two dense ones, without and with gradient checkpointing.

    Args:
        lane: the transformer.
        batch: samples of a step.
        repeats: timed elastic steps.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `race.Progress`.
    """
    rows: list[dict[str, Any]] = []
    samples: dict[str, list[float]] = {}
    for checkpointing in (False, True):
        dense, own = (Trainee(lane, batch, elastic=elastic, checkpointing=checkpointing) for elastic in (False, True))
        memories = {each.name: memory(each) for each in (dense, own)}
        before, seconds, after = [], [], []
        for number in range(repeats):
            progress(own.name, repeats * checkpointing + number, 2 * repeats)
            before.append(_seconds(dense))
            seconds.append(_seconds(own))
            after.append(_seconds(dense))
        beside = [statistics.mean(around) for around in zip(before, after, strict=True)]
        rows += [
            _row(dense.name, beside, dense.name, beside, memories),
            _row(own.name, seconds, dense.name, beside, memories),
        ]
        samples |= {f"{own.name}_seconds": seconds, f"{dense.name}_before": before, f"{dense.name}_after": after}
    return record_of(
        "training", lane, {"rows": rows}, samples, command, (config or {}) | settings(1, batch, repeats, 0)
    )


def _seconds(trainee: Trainee) -> float:
    """Of one step."""
    device = trainee.timestep.device
    synchronize(device)
    start = time.perf_counter()
    trainee.step()
    synchronize(device)
    taken = time.perf_counter() - start
    trainee.forget()
    return taken


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


def _row(
    name: str,
    seconds: list[float],
    reference: str,
    beside: list[float],
    memories: dict[str, tuple[int, int]],
) -> dict[str, Any]:
    """A trainee beside the dense steps around its own."""
    (peak, held), (dense_peak, dense_held) = memories[name], memories[reference]
    return {
        "name": name,
        "reference": reference,
        "step_seconds": spread(seconds),
        "ratio": spread([own / dense for own, dense in zip(seconds, beside, strict=True)]),
        "peak_bytes": peak,
        "memory_ratio": peak / dense_peak,
        "saved_bytes": held,
        "saved_ratio": held / dense_held,
    }
