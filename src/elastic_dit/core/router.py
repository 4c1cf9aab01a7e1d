"""Eq. 4-6, section 3.2 "Router Architecture": from a block's input to its gate and width logits.

B batch, T tokens, D model width, R router hidden width, C condition width, S number of widths.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils._triton import has_triton_package

from elastic_dit.config import ElasticConfig
from elastic_dit.core.budget_dial import BEYOND, SOONEST, BudgetDial

ACTIVATIONS = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class RouterOutput(NamedTuple):
    """The logits of Eq. 6, float32."""

    gate_logit: Tensor
    """l, (B,)."""
    width_logits: Tensor
    """u, (B, S)."""


class Router(nn.Module):
    """One block's router. Its arithmetic is float32 whatever the backbone's dtype.

    In bfloat16 a probability near 1/2 rounds onto the threshold.
    """

    def __init__(self, config: ElasticConfig, dim: int, condition_dim: int) -> None:
        super().__init__()
        hidden = config.router_hidden_size
        self.modulation = nn.Linear(condition_dim, 2 * dim)  # gamma, delta
        self.proj = nn.Linear(dim, hidden)  # W
        self.gate_head = nn.Linear(hidden, 1)  # W_g
        self.width_head = nn.Linear(hidden, len(config.width_ratios))  # W_w
        self.activation = config.router_activation
        self.dial = BudgetDial(len(config.width_ratios)) if config.budget_range else None
        if config.init == "full_capacity":
            self._init_full_capacity(config)

    def forward(
        self, hidden_states: Tensor | None, condition: Tensor, mask: Tensor | None = None, budget: Tensor | None = None
    ) -> RouterOutput:
        """Eq. 4-6.

        Args:
            hidden_states: the block's input x, (B, T, D); None: x = 0, which leaves delta(t) alone in Eq. 4.
            condition: what gamma(t), delta(t) are read from, (B, C); see `router_stack.TimestepCondition`.
            mask: (B, T), true where a token counts in the mean; None counts all.
            budget: (B,), where the router was made for a range of budgets.
        """
        with torch.autocast(condition.device.type, enabled=False):
            gamma, delta = self.modulation(condition.float()).chunk(2, dim=-1)  # (B, D)
            # Eq. 4 scales and shifts x, Eq. 5 projects it: the same on W and b leaves x alone
            pooled = pool(hidden_states, gamma, self.proj.weight, self.proj(delta), mask, self.activation)  # (B, R)
            output = RouterOutput(self.gate_head(pooled).squeeze(-1), self.width_head(pooled))  # Eq. 6
            return output if self.dial is None else RouterOutput(*self.dial(*output, budget))

    def _init_full_capacity(self, config: ElasticConfig) -> None:
        """Section 3.3: at the start every block is open at full width (Table 5)."""
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        for head in (self.gate_head, self.width_head):
            # small, not zero: the first step already moves `proj`
            nn.init.normal_(head.weight, std=1e-3)
            nn.init.zeros_(head.bias)
        p = config.init_keep_prob
        nn.init.constant_(self.gate_head.bias, math.log(p / (1 - p)))
        with torch.no_grad():
            self.width_head.bias[-1] = config.init_width_logit

    @torch.no_grad()
    def start_at(self, width: float, config: ElasticConfig) -> None:
        """Begin open at a width, or closed where it is 0: the biases say so, and learning may change it."""
        p = config.init_keep_prob if width else 1 - config.init_keep_prob
        self.gate_head.bias.fill_(math.log(p / (1 - p)))
        apart = [abs(ratio - (width or 1.0)) for ratio in config.width_ratios]
        self.width_head.bias.zero_()
        self.width_head.bias[apart.index(min(apart))] = config.init_width_logit

    @torch.no_grad()
    def start_along(self, path: Sequence[tuple[float, float]], config: ElasticConfig) -> None:
        """Begin with a width for every budget, exactly: logits are linear in it, and so each change has its slope.

        Args:
            path: (share, width): below this budget the block runs at this width, not at all where it is 0; shares and
                widths fall.
            config: where the full budget starts.
        """
        assert self.dial is not None
        ratios, closes = config.width_ratios, BEYOND
        narrows = [BEYOND] * (len(ratios) - 1)  # what is missing where each width takes over from the next wider one
        for share, width in path:
            missing = max(1 - share, SOONEST)
            if not width:
                closes = missing
            for index in range(ratios.index(width) if width else len(narrows), len(narrows)):
                narrows[index] = min(narrows[index], missing)
        p = config.init_keep_prob
        gate, apart = math.log(p / (1 - p)), config.init_width_logit
        self.gate_head.bias.fill_(gate)
        self.width_head.bias.copy_(apart * torch.arange(len(ratios)))
        self.dial.start_at(gate / closes, [apart / missing for missing in narrows])


def with_noise(output: RouterOutput, scale: float, generator: torch.Generator | None) -> RouterOutput:
    """The logits with noise under which a decision is a draw: Gumbel-max for widths, its difference for the gate.

    At scale 1 a block opens with probability p and a width is chosen with probability q (Gumbel-sigmoid,
    arXiv 1611.00712); training only.
    """
    gate, widths = output
    uniform = torch.rand(len(gate), 2 + widths.shape[-1], generator=generator).to(gate)  # (B, 2 + S)
    gumbel = -(-uniform.clamp(1e-6, 1 - 1e-6).log()).log()
    return RouterOutput(gate + scale * (gumbel[:, 0] - gumbel[:, 1]), widths + scale * gumbel[:, 2:])


def pool(
    x: Tensor | None, gamma: Tensor, weight: Tensor, shift: Tensor, mask: Tensor | None, activation: str
) -> Tensor:
    """Eq. 4-5 and the token mean of Eq. 6, (B, T, D) to (B, R): in one kernel where that can be.

    Args:
        x: hidden states (B, T, D); None: x = 0.
        gamma: of Eq. 4, (B, D).
        weight: W, (R, D).
        shift: delta W + b, (B, R).
        mask: (B, T), true where a token counts in the mean; None counts all.
        activation: a key of `ACTIVATIONS`.
    """
    if x is None:
        return ACTIVATIONS[activation](shift)
    if fuses(x):
        from elastic_dit.core.fused_router import fused_pool, scale

        (scaled,) = scale(weight.unsqueeze(0), gamma.unsqueeze(0), x.dtype)
        return fused_pool(x, scaled, shift, mask, activation)
    return plain_pool(x, gamma, weight, shift, mask, activation)


def plain_pool(x: Tensor, gamma: Tensor, weight: Tensor, shift: Tensor, mask: Tensor | None, activation: str) -> Tensor:
    """`pool` by torch's operators."""
    x = F.layer_norm(x.float(), x.shape[-1:], eps=1e-6)  # (B, T, D)
    scaled = (1 + gamma).unsqueeze(1) * weight  # (B, R, D)
    h = ACTIVATIONS[activation](torch.baddbmm(shift.unsqueeze(1), x, scaled.mT))  # (B, T, R)
    return masked_mean(h, mask)  # (B, R): the mean and the heads commute


def fuses(x: Tensor) -> bool:
    """Whether one Triton kernel takes the place of `plain_pool`.

    It has no backward pass, and hides its arithmetic from whoever looks at operators: torch.compile, which fuses
    them itself, fake tensors, and those who count FLOPs.
    """
    if not x.is_cuda or torch.is_grad_enabled() or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return False
    return has_triton_package() and torch.cuda.get_device_capability(x.device) >= (8, 0)


def masked_mean(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over tokens, (B, T, R) to (B, R), of the tokens where `mask` (B, T) is true."""
    if mask is None:
        return x.mean(dim=1)
    weight = mask.to(x.dtype).unsqueeze(-1)  # (B, T, 1)
    return (x * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def mean_over_ranks(values: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What one rank with all tokens would pool or say, where each has an equal share of them: the heads are linear.

    Without it ranks would take different routes and wait for one another forever.
    """
    dist.all_reduce(values, group=group)  # pyright: ignore[reportUnknownMemberType]
    return values / group.size()
