"""Wall-clock time of a transformer's forwards, and what a report says of repeated measurements."""

import statistics
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn


class ForwardTimer:
    """While entered, times every forward of a module: all hooks on it included, all queued work waited for.

    Args:
        module: the transformer.
        on_forward: called after each forward, outside the timed part.
    """

    def __init__(self, module: nn.Module, on_forward: Callable[[], None] | None = None) -> None:
        self.seconds: list[float] = []
        self._module, self._on_forward = module, on_forward
        self._device = next(module.parameters()).device
        self._start = 0.0
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        self._handles = [
            self._module.register_forward_pre_hook(self._before),
            self._module.register_forward_hook(self._after),
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, inputs: Any) -> None:
        synchronize(self._device)
        self._start = time.perf_counter()

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        synchronize(self._device)
        self.seconds.append(time.perf_counter() - self._start)
        if self._on_forward is not None:
            self._on_forward()


def synchronize(device: torch.device) -> None:
    """Wait for all work queued on an accelerator; nothing on the CPU."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, lowest and highest of at least one measurement."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
