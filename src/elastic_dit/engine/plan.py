"""A plan: fixed decisions in place of the routers'. S steps, L blocks, B batch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from elastic_dit.core.block import Decision
from elastic_dit.engine.trace import Trace
from elastic_dit.errors import PlanError


class Plan:
    """A route table, for one image or for each sample of a batch. A table of one step holds at every step.

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
        self._wanted = _wanted_later(self.keep, self.reuse)
        self._decisions: dict[tuple[int, int, int], Decision] = {}

    @classmethod
    def average(cls, traces: Sequence[Trace], width_ratios: Sequence[float]) -> "Plan":
        """The one route table nearest to what runs did: as many blocks open and reused as in their mean.

        Open are the (step, block) that most samples of all runs and branches opened; likewise reused; widths
        are the ratio nearest to the mean. Forwards that were left out as a whole decided nothing; where there are no
        others, blocks are open.

        Args:
            traces: of runs with the same number of steps.
            width_ratios: the widths to choose from.

        Raises:
            PlanError: no runs, or runs of different lengths.
        """
        runs = [(trace, branch) for trace in traces for branch in trace.branches]
        lengths = {len(trace.array("keep", branch)) for trace, branch in runs}
        if len(lengths) != 1:
            raise PlanError(f"expected runs of one length to average, got lengths {sorted(lengths)}")
        keep, reuse, width, left_out = (
            np.concatenate([trace.array(name, branch) for trace, branch in runs], axis=-1)  # (S, L, all samples)
            for name in ("keep", "reuse", "width", "left_out")
        )
        decided = left_out == 0  # nor in a branch that was not there at this step
        ran = decided & (keep == 1) & (reuse == 0)
        mean = np.divide(width.sum(-1, where=ran), ran.sum(-1), where=ran.any(-1), out=np.ones(keep.shape[:2]))
        nearest = np.abs(mean[..., None] - np.asarray(width_ratios)).argmin(-1)
        opened = _highest(_mean(keep, decided, 1.0))
        reused = _highest(np.where(opened, _mean(reuse, decided, 0.0), 0))
        return cls(opened, reused & opened, np.asarray(width_ratios)[nearest])

    @classmethod
    def static(cls, widths: Sequence[float]) -> "Plan":
        """The same at every step: the MLP width of each block (L,), 0 where it is skipped."""
        table = np.asarray([widths], dtype=float)
        return cls(table > 0, width=np.where(table > 0, table, 1.0))

    @classmethod
    def load(cls, file: str | Path) -> "Plan":
        """Read what `save` wrote.

        Raises:
            PlanError: the file is missing or holds no plan.
        """
        try:
            tables = json.loads(Path(file).read_text())
            return cls(tables["keep"], tables["reuse"], tables["width"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise PlanError(f"{file} holds no plan: {error}") from error

    def save(self, file: str | Path) -> None:
        """Write as JSON."""
        tables = {"keep": self.keep.tolist(), "reuse": self.reuse.tolist(), "width": self.width.tolist()}
        Path(file).write_text(json.dumps(tables))

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
        if self.steps == 1:
            step = 0
        if (step, block, batch) not in self._decisions:  # asked for in every run
            self._decisions[step, block, batch] = self._decide(step, block, batch)
        return self._decisions[step, block, batch]

    def _decide(self, step: int, block: int, batch: int) -> Decision:
        if step >= self.steps:
            raise PlanError(f"the plan has {self.steps} steps, but the run asks for step {step + 1}")
        rows = [table[step, block] for table in (self.keep, self.reuse, self.width, self._wanted)]
        if self.keep.ndim == 3 and self.keep.shape[2] != batch:
            raise PlanError(f"the plan is for {self.keep.shape[2]} samples, but the batch has {batch}")
        keep, reuse, width, store = (np.broadcast_to(row, (batch,)).tolist() for row in rows)
        return Decision(keep, reuse, width, [float(k) for k in keep], store)


def _mean(values: npt.NDArray[np.float64], where: npt.NDArray[np.bool_], otherwise: float) -> npt.NDArray[np.float64]:
    """Over the last axis, of those that count."""
    count = where.sum(-1)
    return np.divide(values.sum(-1, where=where), count, where=count > 0, out=np.full(count.shape, otherwise))


def _highest(share: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """The cells with the highest shares, as many as the shares add up to."""
    chosen = np.zeros(share.shape, bool)
    count = round(float(share.sum()))
    chosen.flat[np.argsort(-share, axis=None, kind="stable")[:count]] = True
    return chosen


def _wanted_later(keep: npt.NDArray[np.bool_], reuse: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Where a residual, if computed, is reused before the block runs again."""
    wanted = np.zeros_like(keep)
    later = np.zeros_like(keep[0]) if len(keep) else keep
    for step in reversed(range(len(keep))):
        wanted[step] = later
        later = np.where(keep[step], reuse[step], later)
    return wanted
