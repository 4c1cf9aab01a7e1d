"""Eq. 18, 19 and Algorithm 1, section 3.3 "Block-wise Caching": stored block residuals and when to reuse them.

B batch rows. A bank belongs to one block, one guidance branch and one run; its rows are samples.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

Streams = tuple[Tensor | None, ...]
"""The tensors (B, T, D) a block updates, e.g. image and text tokens; None where a block has none."""


def in_band(keep_prob: Tensor, tau: float, delta: float) -> Tensor:
    """tau <= p <= tau + delta, (B,) bool: open, but only just."""
    return (keep_prob >= tau) & (keep_prob <= tau + delta)


@dataclass
class Stored:
    """One sample's residual in one block."""

    residual: Streams
    """B(x) - x, each (1, T, D) (Eq. 18)."""
    step: int
    """The step that computed it."""
    uses: int = 0
    """k: how often it was reused."""


@dataclass
class FeatureBank:
    """C^i of Algorithm 1, for every sample of a batch."""

    max_reuse: int
    """K."""
    max_age: int | None = None
    """Steps after which a residual is not reused any more; None: no limit."""
    rows: dict[int, Stored] = field(default_factory=dict[int, Stored])

    def can_reuse(self, row: int, step: int) -> bool:
        """C^i is not empty, k < K, and it is not too old."""
        stored = self.rows.get(row)
        if stored is None or stored.uses >= self.max_reuse:
            return False
        return self.max_age is None or step - stored.step <= self.max_age

    def reuse(self, row: int) -> Streams:
        """The stored residual of a row; counts one use (Algorithm 1 forgets to)."""
        stored = self.rows[row]
        stored.uses += 1
        return stored.residual

    def store(self, row: int, residual: Streams, step: int) -> None:
        """Eq. 18: keep a fresh residual; its use count starts at 0."""
        self.rows[row] = Stored(residual, step)

    @property
    def nbytes(self) -> int:
        """Memory of the stored residuals."""
        tensors = [t for stored in self.rows.values() for t in stored.residual if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)


def residual_of(before: Streams, after: Streams) -> Streams:
    """Eq. 18: B(x) - x, stream by stream."""
    return tuple(None if b is None or a is None else a - b for b, a in zip(before, after, strict=True))


def add_residual(before: Streams, residual: Streams) -> Streams:
    """Eq. 19: x + residual, stream by stream."""
    return tuple(b if b is None or r is None else b + r for b, r in zip(before, residual, strict=True))


def take(streams: Streams, rows: Tensor) -> Streams:
    """Some rows of each stream."""
    return tuple(None if s is None else s.index_select(0, rows) for s in streams)


def put(streams: Streams, rows: Tensor, values: Streams) -> Streams:
    """Each stream with some rows replaced; a stream missing on either side stays as it was."""
    return tuple(
        s if s is None or v is None else torch.index_copy(s, 0, rows, v) for s, v in zip(streams, values, strict=True)
    )
