"""What a budget below 1 changes in a router's logits; beyond the paper.

B batch, L blocks, S number of widths.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SOONEST, BEYOND = 1e-3, 2.0
"""How much of a budget may be missing where a change comes: not nothing, and out of reach, though it may be learned."""

GAIN = 10.0
"""How many times the optimiser's step a slope moves: alone it must travel several logits, which weights do together."""


class BudgetDial(nn.Module):
    """What a budget below 1 adds to the logits of one block; beyond the paper.

    Monotone by construction: for the same input, a block that is open at some budget is open at every larger one,
    and its MLP no narrower. Each block learns how much.
    """

    def __init__(self, widths: int) -> None:
        super().__init__()
        self.gate_slope = nn.Parameter(torch.zeros(()))
        self.width_slopes = nn.Parameter(torch.zeros(widths - 1))

    @torch.no_grad()
    def start_at(self, gate: float, widths: Sequence[float]) -> None:
        """Begin with these slopes: of the gate, and of each width against the next wider one (S - 1); all above 0."""
        self.gate_slope.fill_(_softplus_of(gate) / GAIN)
        self.width_slopes.copy_(torch.tensor([_softplus_of(slope) / GAIN for slope in widths]))

    def forward(self, gate_logit: Tensor, width_logits: Tensor, budget: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (B,) and (B, S) at a budget (B,)."""
        return turn(gate_logit, width_logits, budget, self.gate_slope, self.width_slopes)


def turn(
    gate_logit: Tensor, width_logits: Tensor, budget: Tensor, gate_slope: Tensor, width_slopes: Tensor
) -> tuple[Tensor, Tensor]:
    """The logits at a budget: those of the full budget, less slope times what is missing to it.

    Args:
        gate_logit: of one block (B,), or of L blocks (L, B).
        width_logits: likewise, (B, S), or (L, B, S).
        budget: (B,).
        gate_slope: of the block's dial, (), or (L, 1).
        width_slopes: likewise, (S - 1,), or (L, 1, S - 1).
    """
    missing = 1 - budget.float()  # (B,)
    steps = F.softplus(GAIN * width_slopes)
    # from each width to the next wider one a step down: the narrowest gains most, the full width nothing
    gains = F.pad(steps.flip(-1).cumsum(-1).flip(-1), (0, 1))  # (S,), or (L, 1, S)
    return gate_logit - missing * F.softplus(GAIN * gate_slope), width_logits + missing.unsqueeze(-1) * gains


def _softplus_of(value: float) -> float:
    """x for which softplus(x) is `value`."""
    return value + math.log(-math.expm1(-value))
