"""Eq. 18, 19 and Algorithm 1, section 3.3 "Block-wise Caching": stored block residuals and when to reuse them.

B batch rows. A bank belongs to one block, one guidance branch and one run; its rows are samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from elastic_dit.core.eager import eager

Streams = tuple[Tensor | None, ...]
"""The tensors (B, T, D) a block updates, e.g. image and text tokens; None where a block has none."""


def in_band(keep_prob: float, tau: float, delta: float) -> bool:
    """tau <= p <= tau + delta: open, but only just."""
    return tau <= keep_prob <= tau + delta


@dataclass
class CacheMemory:
    """What the banks of one run share: how much they may hold together, and where."""

    limit: int | None = None
    """Bytes; what does not fit is not stored, and its block runs again. None: no limit."""
    device: str | None = None
    """Where residuals wait, e.g. "cpu"; None: where they were computed."""
    used: int = 0
    """Bytes held now."""


@dataclass
class Stored:
    """One sample's residual in one block."""

    residual: Streams
    """B(x) - x, each (1, T, D) (Eq. 18)."""
    step: int
    """The step that computed it."""
    uses: int = 0
    """k: how often it was reused."""

    @property
    def nbytes(self) -> int:
        """Its memory."""
        return sum(t.nbytes for t in self.residual if t is not None)


@dataclass
class FeatureBank:
    """C^i of Algorithm 1, for every sample of a batch."""

    max_reuse: int
    """K."""
    max_age: int | None = None
    """Steps after which a residual is not reused any more; None: no limit."""
    memory: CacheMemory = field(default_factory=CacheMemory)
    """Shared with the other banks of the run."""
    rows: dict[int, Stored] = field(default_factory=dict[int, Stored])

    def can_reuse(self, row: int, step: int) -> bool:
        """C^i is not empty, k < K, and it is not too old."""
        stored = self.rows.get(row)
        if stored is None or stored.uses >= self.max_reuse:
            return False
        return self.max_age is None or step - stored.step <= self.max_age

    @eager
    def reuse(self, rows: Sequence[int], x: Streams) -> Streams:
        """Eq. 19: x + residual for some rows' streams; counts one use each (Algorithm 1 forgets to)."""
        for row in rows:
            self.rows[row].uses += 1
        parts = zip(*(self.rows[row].residual for row in rows), strict=True)
        return tuple(
            s if s is None or part[0] is None else s + _rows_from(part, s.device)
            for s, part in zip(x, parts, strict=True)
        )

    @eager
    def store(self, row: int, before: Streams, after: Streams, step: int) -> None:
        """Eq. 18: keep B(x) - x of one row's streams (1, T, D), in place of an older one; its use count starts at 0."""
        self.drop(row)
        size = sum(a.nbytes for b, a in zip(before, after, strict=True) if b is not None and a is not None)
        if self.memory.limit is not None and self.memory.used + size > self.memory.limit:
            return
        residual = residual_of(before, after)
        if self.memory.device is not None:
            residual = tuple(None if r is None else _wait(r, self.memory.device) for r in residual)
        self.rows[row] = Stored(residual, step)
        self.memory.used += size

    def drop(self, row: int) -> None:
        """Forget a row's residual."""
        stored = self.rows.pop(row, None)
        if stored is not None:
            self.memory.used -= stored.nbytes


def residual_of(before: Streams, after: Streams) -> Streams:
    """Eq. 18: B(x) - x, stream by stream."""
    return tuple(None if b is None or a is None else a - b for b, a in zip(before, after, strict=True))


def rows_of(streams: Streams, rows: slice) -> Streams:
    """A view of consecutive rows of each stream."""
    return tuple(None if s is None else s[rows] for s in streams)


def take(streams: Streams, rows: Tensor) -> Streams:
    """Some rows of each stream."""
    return tuple(None if s is None else s.index_select(0, rows) for s in streams)


def put(streams: Streams, rows: Tensor, values: Streams) -> None:
    """Write some rows of each stream that there is, in place."""
    for stream, value in zip(streams, values, strict=True):
        if stream is not None and value is not None:
            stream.index_copy_(0, rows, value)


def _rows_from(residuals: Sequence[Tensor], device: torch.device) -> Tensor:
    here = [residual.to(device, non_blocking=True) for residual in residuals]
    return here[0] if len(here) == 1 else torch.cat(here)


def _wait(residual: Tensor, device: str) -> Tensor:
    """A copy elsewhere. From a GPU it is asynchronous, and in order: a later copy back finds it complete."""
    there = torch.empty_like(residual, device=device, pin_memory=residual.is_cuda and device == "cpu")
    return there.copy_(residual, non_blocking=True)
