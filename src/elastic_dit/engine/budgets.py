"""What each sample of a forward is to spend, in shares of the dense FLOPs; for routers that know a range of budgets."""

from collections.abc import Sequence

import torch
from torch import Tensor

from elastic_dit.config import ElasticConfig
from elastic_dit.errors import ConfigError


class Budgets:
    """The dial, what it means for each row of a forward, and what is left over from one forward to the next."""

    def __init__(self, config: ElasticConfig) -> None:
        self.config = config
        self.dial = torch.tensor([config.default_budget])
        """Of each sample (B,), or of all (1,)."""
        self.unspent: list[float] = []
        """By sample, what its run so far took less than its budgets; a budget below 1 is what it has on average."""
        self.allocated: Tensor | None = None
        """The budget of each row of this forward (B,), where it was shared out."""

    def asked(self, batch: int) -> Tensor:
        """The budget that each row was given (B,); see `of`."""
        if self.allocated is not None:
            return self.allocated.repeat(batch // len(self.allocated))
        if batch % len(self.dial):
            raise ConfigError(f"budgets were given for {len(self.dial)} samples, but the batch has {batch}")
        return self.dial.repeat(batch // len(self.dial))

    def of(self, batch: int) -> Tensor:
        """The budget of each row in this forward (B,), also where a pipeline's batch holds several guidance branches.

        Routes come in steps, and a router says no more than which of them is nearest: what one forward took too much or
        too little, the next one has less or more.

        Raises:
            ConfigError: budgets were given for another number of samples.
        """
        wanted = self.asked(batch)
        if not self.unspent or self.config.budget_range is None:
            return wanted
        unspent = torch.tensor(self.unspent).to(wanted)
        rows = unspent.repeat(batch // len(unspent))  # some models append rows for a second, clean timestep
        return torch.where(wanted < 1, (wanted + rows).clamp(*self.config.budget_range), wanted)

    def left(self, spent: Sequence[Sequence[float]], dense: float) -> list[float]:
        """What each sample has not spent of its budgets after this forward; a reused block counts as if it had run.

        Args:
            spent: FLOPs of each block, by sample.
            dense: those of all blocks for one sample, dense.
        """
        batch = len(spent[0])
        told, before = self.asked(batch).tolist(), self.unspent or [0.0] * batch
        shares = [sum(block[row] for block in spent) / dense for row in range(batch)]
        return [old + budget - own for old, budget, own in zip(before, told, shares, strict=True)]
