"""Eq. 4-6 at inference: what does not depend on x is computed for all blocks at once, before the first one.

Routers have so little to do that calling their layers one by one takes most of the time, above all on a GPU.
B batch, L blocks, T tokens, D model width, R router hidden width, S number of widths.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from torch import Tensor, nn

from elastic_dit.core.budget_dial import BudgetDial, turn
from elastic_dit.core.router import ACTIVATIONS, Router, fuses, plain_pool
from elastic_dit.core.router_stack import RouterStack

if TYPE_CHECKING:
    from elastic_dit.core.fused_router import ScaledWeight


class BlockRouter(NamedTuple):
    """What one block's router needs beside x, but for its heads."""

    gamma: Tensor
    """(B, D)."""
    weight: Tensor
    """W, (R, D)."""
    shift: Tensor
    """delta W + b, (B, R)."""
    activation: str


@dataclass
class Reading:
    """What the routers of one forward pooled from its tokens."""

    pooled: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """By block, (B, R)."""
    without_tokens: Tensor | None = None
    """What they would have pooled without any, (L, B, R)."""


@dataclass
class ReadyRouters:
    """All routers of a backbone at one timestep; the same as `Router.forward` says, without gradients."""

    gamma: Tensor
    """(L, B, D)."""
    weights: Tensor
    """W of each block, (L, R, D)."""
    shift: Tensor
    """(L, B, R)."""
    heads: Tensor
    """W_g and W_w side by side, (L, R, 1 + S)."""
    offset: Tensor
    """Their biases, and what a budget below 1 adds, (L, B, 1 + S)."""
    activation: str
    _scaled: "dict[torch.dtype, list[ScaledWeight]]" = field(default_factory=dict[torch.dtype, "list[ScaledWeight]"])

    @cached_property
    def _shifts(self) -> tuple[Tensor, ...]:
        return self.shift.unbind()

    def pool(
        self, index: int, x: Tensor, mask: Tensor | None, plain: Callable[[Tensor, Tensor | None, BlockRouter], Tensor]
    ) -> Tensor:
        """Eq. 4-5 and the token mean of Eq. 6 for one block, (B, T, D) to (B, R), float32.

        Args:
            index: of the block.
            x: hidden states (B, T, D).
            mask: (B, T), true where a token counts in the mean; None counts all.
            plain: `plain_read`, or that compiled, for where the kernel does not run.
        """
        if not fuses(x):
            return plain(x, mask, self.block(index))
        from elastic_dit.core.fused_router import fused_pool, scale

        if x.dtype not in self._scaled:
            self._scaled[x.dtype] = scale(self.weights, self.gamma, x.dtype)
        return fused_pool(x, self._scaled[x.dtype][index], self._shifts[index], mask, self.activation)

    def block(self, index: int) -> BlockRouter:
        """Of one block."""
        return BlockRouter(self.gamma[index], self.weights[index], self.shift[index], self.activation)

    @cached_property
    def without_tokens(self) -> Tensor:
        """What all routers pool where x = 0 in Eq. 4, (L, B, R)."""
        return ACTIVATIONS[self.activation](self.shift)

    def recall(self, pooled: Tensor, without_tokens: Tensor) -> Tensor:
        """What tokens of another timestep would pool at this one, pooling as much more than none does, (L, B, R).

        Args:
            pooled: at the other timestep, (L, B, R).
            without_tokens: likewise.
        """
        return pooled + (self.without_tokens - without_tokens)

    def say(self, index: int, pooled: Tensor) -> Tensor:
        """Eq. 6 for one block: what was pooled (B, R) to the gate's logit and those of the widths, (B, 1 + S)."""
        with torch.autocast(pooled.device.type, enabled=False):
            return torch.addmm(self.offset[index], pooled, self.heads[index])

    def say_all(self, pooled: Tensor) -> Tensor:
        """The same for all blocks, (L, B, R) to (L, B, 1 + S)."""
        with torch.autocast(pooled.device.type, enabled=False):
            return torch.baddbmm(self.offset, pooled, self.heads)


class StackedRouters:
    """The weights of all routers side by side, copies of those that a stack had when it was made.

    Args:
        stack: the routers, at least one.
    """

    @torch.no_grad()
    def __init__(self, stack: RouterStack) -> None:
        self.routers = [cast(Router, router) for router in stack.routers]
        # a full modulation has more weights than all else together: not copied
        self.modulation = self._linear("modulation") if stack.low_rank else None
        self.proj, self.proj_bias = self._linear("proj")
        (gate, self.gate_bias), (width, self.width_bias) = self._linear("gate_head"), self._linear("width_head")
        self.heads = torch.cat([gate, width], dim=1).mT  # (L, R, 1 + S)
        self.slopes = None
        if self.routers[0].dial is not None:
            dials = [cast(BudgetDial, router.dial) for router in self.routers]
            gates: list[Tensor] = [dial.gate_slope for dial in dials]
            widths: list[Tensor] = [dial.width_slopes for dial in dials]
            self.slopes = torch.stack(gates).unsqueeze(1), torch.stack(widths).unsqueeze(1)  # (L, 1), (L, 1, S - 1)

    @torch.no_grad()
    def at(self, condition: Tensor, budget: Tensor | None = None) -> ReadyRouters:
        """Get ready for a forward.

        Args:
            condition: see `router_stack.TimestepCondition`, (B, C).
            budget: (B,), where the routers were made for a range of budgets.
        """
        batch = len(condition)
        with torch.autocast(condition.device.type, enabled=False):
            if self.modulation is None:
                modulated = torch.stack([router.modulation(condition) for router in self.routers])  # (L, B, 2 D)
            else:
                weight, bias = self.modulation
                modulated = torch.baddbmm(bias, condition.expand(len(weight), -1, -1), weight.mT)
            gamma, delta = modulated.chunk(2, dim=-1)
            shift = torch.baddbmm(self.proj_bias, delta, self.proj.mT)
            gate, width = self.gate_bias.expand(-1, batch, -1).squeeze(-1), self.width_bias.expand(-1, batch, -1)
            if self.slopes is not None:
                assert budget is not None
                gate, width = turn(gate, width, budget, *self.slopes)
            offset = torch.cat([gate.unsqueeze(-1), width], dim=-1)
        return ReadyRouters(gamma.contiguous(), self.proj, shift, self.heads, offset, self.routers[0].activation)

    def _linear(self, name: str) -> tuple[Tensor, Tensor]:
        """A linear layer of every router: weights (L, out, in), biases (L, 1, out)."""
        layers = [cast(nn.Linear, getattr(router, name)) for router in self.routers]
        return torch.stack([layer.weight for layer in layers]), torch.stack([layer.bias for layer in layers]).unsqueeze(
            1
        )


def plain_read(x: Tensor, mask: Tensor | None, router: BlockRouter) -> Tensor:
    """`ReadyRouters.pool` by torch's operators."""
    with torch.autocast(x.device.type, enabled=False):
        return plain_pool(x, router.gamma, router.weight, router.shift, mask, router.activation)
