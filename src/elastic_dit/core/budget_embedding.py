"""What a budget adds to the timestep embedding, so that the backbone's adaLN knows what is left out; beyond the paper.

One set of weights cannot have the right scales and shifts for every route: slimmable networks (arXiv 1812.08928) keep a
batch normalisation for each width. A DiT has its scales and shifts from the timestep embedding, so that is told.
"""

import torch
from torch import Tensor, nn

POWERS = 3


class BudgetEmbedding(nn.Module):
    """A cubic in what is missing to the whole budget: nothing at 1, and nothing anywhere before training."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(POWERS, dim))

    def forward(self, budget: Tensor) -> Tensor:
        """Budgets (B,) to (B, D), float32."""
        missing = 1 - budget.float()
        return torch.stack([missing**power for power in range(1, POWERS + 1)], dim=-1) @ self.weight
