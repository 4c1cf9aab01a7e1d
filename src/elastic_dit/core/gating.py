"""Eq. 7, 8, 10, section 3.2 "Adaptive Block Skipping": from a gate logit to an open or a skipped block.

B batch, T tokens, D model width.
"""

from typing import overload

import torch
from torch import Tensor


def keep_probability(gate_logit: Tensor) -> Tensor:
    """p = sigmoid(l), (B,)."""
    return torch.sigmoid(gate_logit)


@overload
def is_open(keep_prob: Tensor, tau: float) -> Tensor: ...
@overload
def is_open(keep_prob: float, tau: float) -> bool: ...
def is_open(keep_prob: Tensor | float, tau: float) -> Tensor | bool:
    """1[p >= tau], of (B,) or of one sample: the one predicate of training and inference."""
    return keep_prob >= tau


def straight_through_gate(keep_prob: Tensor, tau: float) -> Tensor:
    """Eq. 7: g = 1[p >= tau] + p - sg(p). Its value is hard, its gradient is that of p; (B,)."""
    return is_open(keep_prob, tau).to(keep_prob.dtype) + (keep_prob - keep_prob.detach())


def gated_output(x: Tensor, block_output: Tensor, keep_gate: Tensor) -> Tensor:
    """Eq. 8: x + g (B(x) - x), for x and B(x) (B, T, D) and g (B,)."""
    gate = keep_gate.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
    return x + gate * (block_output - x)
