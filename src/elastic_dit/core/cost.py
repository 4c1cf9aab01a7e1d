"""What a decision costs in floating-point operations (FLOPs; one multiply-add is two).

B batch, L blocks.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elastic_dit.core.router import Router


class BlockCost(NamedTuple):
    """FLOPs of one block for one sample: `fixed + width * mlp`, affine in the MLP's width."""

    fixed: float
    """Attention, projections, modulation and every MLP that keeps its width."""
    mlp: float
    """The MLPs that shrink, at full width."""

    @property
    def dense(self) -> float:
        """The whole block."""
        return self.fixed + self.mlp

    def at(self, width: float) -> float:
        """The block at a width ratio."""
        return self.fixed + width * self.mlp


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of what `run` does, counted on fake tensors: nothing is computed.

    Attention is counted as its two matrix products, whatever kernel runs it (torch's counter does not
    know the CPU's fused kernel).
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad(), counter:
        run()
    return counter.get_total_flops()


def fake_mode() -> FakeTensorMode:
    """A mode under which real weights meet fake activations."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def measure_block(run: Callable[[float], object], batch: int, probe: float = 0.5) -> BlockCost:
    """The cost of a block from its FLOPs at full width and at a second width.

    Args:
        run: executes the block on a batch at a width ratio.
        batch: rows of that batch; FLOPs are linear in them.
        probe: the second width.
    """
    full, part = count_flops(lambda: run(1.0)) / batch, count_flops(lambda: run(probe)) / batch
    mlp = (full - part) / (1 - probe)
    return BlockCost(full - mlp, mlp)


def router_flops(router: Router, tokens: int) -> float:
    """FLOPs of one router for one sample of `tokens` tokens, 0 where it reads the timestep alone: Eq. 4-6."""
    heads = router.gate_head.weight.numel() + router.width_head.weight.numel()
    projected = tokens + 1  # and delta(t)
    return 2.0 * (router.modulation.weight.numel() + projected * router.proj.weight.numel() + heads)


def compute_share(keep: Tensor, width: Tensor, fixed: Tensor, mlp: Tensor) -> Tensor:
    """Share of the dense FLOPs each sample spends, (B,), for keep and width (B, L) and costs (L,)."""
    return (keep * (fixed + width * mlp)).sum(dim=-1) / (fixed + mlp).sum()
