"""A trace as a record keeps it: shares by prompt, and routes as one short text a step."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from elastic_dit.engine.trace import Trace

SKIPPED, REUSED = ".", "~"


def compute_of(trace: Trace, sample: int | None = None) -> dict[str, float | None]:
    """What one sample of a run, or all of it, spent. A mean over nothing is None.

    `flops_share` counts blocks and routers over dense blocks; `reuse_rate` is a share of the open blocks;
    `mean_width` is over those that ran.
    """
    own = [taken for key, taken in trace.items() if sample is None or key[3] == sample]
    opened = [taken for taken in own if taken.keep]
    ran = [taken.width for taken in opened if not taken.reuse]
    spent, dense = sum(taken.flops for taken in own), sum(taken.dense_flops for taken in own)
    return {
        "flops": spent,
        "dense_flops": dense,
        "flops_share": _share(spent, dense),
        "open_rate": _share(len(opened), len(own)),
        "reuse_rate": _share(len(opened) - len(ran), len(opened)),
        "mean_width": _share(sum(ran), len(ran)),
    }


def route_of(trace: Trace, sample: int, width_ratios: Sequence[float]) -> dict[str, dict[str, list[str]]]:
    """What one sample did, by guidance branch: `decisions` and `keep_prob`, one text a step.

    A decision is one character a block: `.` skipped, `~` reused, or the place of its width in `width_ratios`,
    counted from 1. Probabilities are in thousandths, separated by spaces.
    """
    return {str(branch): _branch(trace, branch, sample, width_ratios) for branch in trace.branches}


def _branch(trace: Trace, branch: Any, sample: int, width_ratios: Sequence[float]) -> dict[str, list[str]]:
    keep, reuse, width, p = (_field(trace, name, branch, sample) for name in ("keep", "reuse", "width", "keep_prob"))
    place = np.abs(width[..., None] - np.asarray(width_ratios)).argmin(axis=-1) + 1  # (S, L)
    letters = np.where(keep == 0, SKIPPED, np.where(reuse == 1, REUSED, place.astype(str)))
    return {
        "decisions": ["".join(row) for row in letters],
        "keep_prob": [" ".join(str(value) for value in np.rint(row * 1000).astype(int)) for row in p],
    }


def _field(trace: Trace, name: Any, branch: Any, sample: int) -> npt.NDArray[np.float64]:
    return trace.array(name, branch)[:, :, sample]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
