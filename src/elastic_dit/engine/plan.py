"""A plan: fixed decisions in place of the routers'. S steps, L blocks, B batch."""

from typing import Any

import numpy as np
import numpy.typing as npt

from elastic_dit.core.block import Decision
from elastic_dit.errors import PlanError


class Plan:
    """A route table, for one image or for each sample of a batch.

    Args:
        keep: (S, L) or (S, L, B) bool; false skips the block.
        reuse: the same shape, bool; true adds the stored residual where Algorithm 1 allows it. Default: never.
        width: the same shape, ratios in (0, 1]; the MLP's width where the block runs. Default: 1.

    Raises:
        PlanError: shapes differ, or a width is outside (0, 1].
    """

    def __init__(self, keep: Any, reuse: Any = None, width: Any = None) -> None:
        self.keep: npt.NDArray[np.bool_] = np.asarray(keep, dtype=bool)
        shape = self.keep.shape
        self.reuse: npt.NDArray[np.bool_] = np.zeros(shape, bool) if reuse is None else np.asarray(reuse, dtype=bool)
        self.width: npt.NDArray[np.float64] = np.ones(shape) if width is None else np.asarray(width, dtype=float)
        if self.keep.ndim not in (2, 3):
            raise PlanError(f"a plan is (steps, blocks) or (steps, blocks, batch); keep has shape {shape}")
        for name in ("reuse", "width"):
            if getattr(self, name).shape != shape:
                raise PlanError(f"{name} has shape {getattr(self, name).shape}; expected keep's, {shape}")
        if not ((self.width > 0) & (self.width <= 1)).all():
            raise PlanError("width ratios must lie in (0, 1]")

    @property
    def steps(self) -> int:
        """S."""
        return self.keep.shape[0]

    @property
    def blocks(self) -> int:
        """L."""
        return self.keep.shape[1]

    def decision(self, step: int, block: int, batch: int) -> Decision:
        """The decision of one block at one step, for a batch.

        Raises:
            PlanError: the plan has no such step, or another batch size.
        """
        if step >= self.steps:
            raise PlanError(f"the plan has {self.steps} steps, but the run asks for step {step + 1}")
        rows = [table[step, block] for table in (self.keep, self.reuse, self.width)]
        if self.keep.ndim == 3 and self.keep.shape[2] != batch:
            raise PlanError(f"the plan is for {self.keep.shape[2]} samples, but the batch has {batch}")
        keep, reuse, width = (np.broadcast_to(row, (batch,)).tolist() for row in rows)
        return Decision(keep, reuse, width, [float(k) for k in keep])
