"""Eq. 4-6 at inference: what does not depend on x is computed for all blocks at once, when a forward begins.

Routers have so little to do that calling their layers one by one takes most of the time, above all on a GPU.
B batch, L blocks, T tokens, D model width, R router hidden width, S number of widths.
"""

from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor

from elastic_dit.core.budget_dial import BudgetDial, turn
from elastic_dit.core.router import ACTIVATIONS, Router, pool
from elastic_dit.core.router_stack import RouterStack


class BlockRouter(NamedTuple):
    """What one block's router needs beside x."""

    gamma: Tensor
    """(B, D)."""
    weight: Tensor
    """W, (R, D)."""
    shift: Tensor
    """delta W + b, (B, R)."""
    heads: Tensor
    """W_g and W_w side by side, (R, 1 + S)."""
    offset: Tensor
    """Their biases, and what a budget below 1 adds, (B, 1 + S)."""


@dataclass(frozen=True)
class ReadyRouters:
    """All routers of a backbone at one timestep; the same as `Router.forward` says, without gradients."""

    gamma: Tensor
    """(L, B, D)."""
    weights: list[Tensor]
    """W of each block."""
    shift: Tensor
    """(L, B, R)."""
    heads: Tensor
    """(L, R, 1 + S)."""
    offset: Tensor
    """(L, B, 1 + S)."""
    activation: str

    @classmethod
    @torch.no_grad()
    def of(cls, stack: RouterStack, condition: Tensor, budget: Tensor | None = None) -> "ReadyRouters":
        """Get ready for a forward.

        Args:
            stack: the routers, at least one.
            condition: see `router_stack.TimestepCondition`, (B, C).
            budget: (B,), where the routers were made for a range of budgets.
        """
        routers = [cast(Router, router) for router in stack.routers]
        weights = [router.proj.weight for router in routers]
        with torch.autocast(condition.device.type, enabled=False):
            # with modulation = "full" these weights are no small ones: not stacked
            modulated = torch.stack([router.modulation(condition) for router in routers])  # (L, B, 2 D)
            gamma, delta = modulated.chunk(2, dim=-1)
            shift = torch.baddbmm(_stacked(routers, "proj", "bias").unsqueeze(1), delta, torch.stack(weights).mT)
            gate, width = (_stacked(routers, name, "weight") for name in ("gate_head", "width_head"))
            gate_bias, width_bias = (
                _stacked(routers, name, "bias").unsqueeze(1).expand(-1, len(condition), -1)
                for name in ("gate_head", "width_head")
            )
            if routers[0].dial is not None:
                assert budget is not None
                dials = [cast(BudgetDial, router.dial) for router in routers]
                gate_slopes = torch.stack([dial.gate_slope for dial in dials]).unsqueeze(1)  # (L, 1)
                width_slopes = torch.stack([dial.width_slopes for dial in dials]).unsqueeze(1)  # (L, 1, S - 1)
                gate_bias, width_bias = turn(gate_bias.squeeze(-1), width_bias, budget, gate_slopes, width_slopes)
                gate_bias = gate_bias.unsqueeze(-1)
            heads = torch.cat([gate, width], dim=1).mT  # (L, R, 1 + S)
            offset = torch.cat([gate_bias, width_bias], dim=-1)  # (L, B, 1 + S)
        return cls(gamma, weights, shift, heads, offset, routers[0].activation)

    def block(self, index: int) -> BlockRouter:
        """Of one block."""
        return BlockRouter(
            self.gamma[index], self.weights[index], self.shift[index], self.heads[index], self.offset[index]
        )

    def without_tokens(self) -> Tensor:
        """What all routers say where x = 0 in Eq. 4: the gate's logit, then those of the widths, (L, B, 1 + S)."""
        return torch.baddbmm(self.offset, ACTIVATIONS[self.activation](self.shift), self.heads)


def logits(x: Tensor, mask: Tensor | None, router: BlockRouter, activation: str) -> Tensor:
    """Eq. 4-6 for one block, (B, T, D) to the gate's logit and those of the widths, (B, 1 + S), float32."""
    with torch.autocast(x.device.type, enabled=False):
        pooled = pool(x, router.gamma, router.weight, router.shift, mask, activation)  # (B, R)
        return torch.addmm(router.offset, pooled, router.heads)


def _stacked(routers: list[Router], layer: str, part: str) -> Tensor:
    return torch.stack([getattr(getattr(router, layer), part) for router in routers])
