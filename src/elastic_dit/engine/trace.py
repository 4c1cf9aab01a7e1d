"""What a run did: for each step, block, guidance branch and sample, the decision and its cost."""

from collections.abc import Hashable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Key = tuple[int, int, Hashable, int]
"""(step, block, branch, sample)."""


class Taken(NamedTuple):
    """What happened to one sample at one block."""

    keep_prob: float
    """p; 1 or 0 under a plan."""
    keep: bool
    """Open: run or reused."""
    reuse: bool
    """The stored residual was added."""
    width: float
    """Width ratio the MLP ran at; 0 where the block did not run."""
    flops: float
    """Spent here, the router included."""
    dense_flops: float
    """What the dense block costs."""
    left_out: bool = False
    """No block ran in this forward, or none for this sample."""


def left_out(dense_flops: float) -> Taken:
    """A block in a forward that no block ran in."""
    return Taken(keep_prob=1.0, keep=True, reuse=True, width=0.0, flops=0.0, dense_flops=dense_flops, left_out=True)


class Trace(Mapping[Key, Taken]):
    """The last run, as a mapping from (step, block, branch, sample); empty before the first."""

    def __init__(self) -> None:
        self._taken: dict[Key, Taken] = {}

    def __getitem__(self, key: Key) -> Taken:
        return self._taken[key]

    def __iter__(self) -> Iterator[Key]:
        return iter(self._taken)

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, key: Key, taken: Taken) -> None:
        """Record one decision."""
        self._taken[key] = taken

    @property
    def flops_spent(self) -> float:
        """FLOPs of all blocks that ran, and of the routers."""
        return sum(taken.flops for taken in self._taken.values())

    @property
    def flops_dense(self) -> float:
        """FLOPs of the same run with every block at full width."""
        return sum(taken.dense_flops for taken in self._taken.values())

    @property
    def flops_share(self) -> float:
        """Spent over dense."""
        return self.flops_spent / self.flops_dense if self else float("nan")

    @property
    def open_rate(self) -> float:
        """Share of (step, block, branch, sample) that were not skipped."""
        return _mean([taken.keep for taken in self._taken.values()])

    @property
    def reuse_rate(self) -> float:
        """Share of the open ones that reused a residual."""
        return _mean([taken.reuse for taken in self._taken.values() if taken.keep])

    @property
    def mean_width(self) -> float:
        """Mean width of those that ran."""
        return _mean([taken.width for taken in self._taken.values() if taken.keep and not taken.reuse])

    @property
    def branches(self) -> list[Hashable]:
        """The guidance branches, in order of appearance."""
        return list(dict.fromkeys(key[2] for key in self._taken))

    def array(
        self,
        field: Literal["keep_prob", "keep", "reuse", "width", "flops", "dense_flops", "left_out"],
        branch: Hashable = None,
    ) -> npt.NDArray[np.float64]:
        """One field as (steps, blocks, samples), of one branch (default: the first); NaN where it was not called."""
        if not self._taken:
            return np.zeros((0, 0, 0))
        branch = self.branches[0] if branch is None else branch
        own = {(s, b, n): taken for (s, b, name, n), taken in self._taken.items() if name == branch}
        if not own:
            raise KeyError(f"no branch {branch!r}; there are {self.branches}")
        steps, blocks = max(key[0] for key in self._taken) + 1, max(key[1] for key in self._taken) + 1
        values = np.full((steps, blocks, max(key[2] for key in own) + 1), np.nan)
        for key, taken in own.items():
            values[key] = getattr(taken, field)
        return values

    def sample_share(self, sample: int) -> float:
        """Spent over dense for one sample."""
        own = [taken for key, taken in self._taken.items() if key[3] == sample]
        return sum(taken.flops for taken in own) / sum(taken.dense_flops for taken in own)


def _mean(values: list[bool] | list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
