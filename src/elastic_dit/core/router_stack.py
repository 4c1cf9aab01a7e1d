"""All routers of a backbone, and what they share: the condition of Eq. 4.

B batch, L blocks, D model width, R router hidden width, C condition width, S number of widths.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_dit.config import ElasticConfig
from elastic_dit.core.allocation import Allocator
from elastic_dit.core.budget_dial import BudgetDial, turn
from elastic_dit.core.budget_embedding import BudgetEmbedding
from elastic_dit.core.router import ACTIVATIONS, Router, RouterOutput


class TimestepCondition(nn.Module):
    """The input of every router's gamma(t), delta(t) (Eq. 4), from the backbone's own timestep embedding.

    SiLU, as in adaLN; then, unless `modulation` is "full", one projection to a low rank shared by all
    blocks: a full D -> 2D map per block would cost Qwen-Image 1.1 B parameters.
    """

    def __init__(self, config: ElasticConfig, temb_dim: int) -> None:
        super().__init__()
        low_rank = config.modulation == "low_rank"
        self.trunk = nn.Linear(temb_dim, config.modulation_rank) if low_rank else nn.Identity()
        self.dim = config.modulation_rank if low_rank else temb_dim

    def forward(self, temb: Tensor) -> Tensor:
        """(B, temb_dim) to (B, C), float32; a timestep embedding per token (B, T, temb_dim) is averaged."""
        with torch.autocast(temb.device.type, enabled=False):
            temb = temb.float() if temb.ndim == 2 else temb.float().mean(dim=1)
            return self.trunk(F.silu(temb))


class RouterStack(nn.Module):
    """All routers of a backbone, one a block in running order, and what they share; empty under a fixed route."""

    def __init__(self, config: ElasticConfig, dim: int, temb_dim: int, blocks: int) -> None:
        super().__init__()
        condition = TimestepCondition(config, temb_dim)
        routed = config.route is None
        self.condition = condition if routed else None
        self.routers = nn.ModuleList(Router(config, dim, condition.dim) for _ in range(blocks if routed else 0))
        for router, width in zip(self.routers, config.init_route or (), strict=False):
            assert isinstance(router, Router)
            router.start_at(width, config)
        for index, router in enumerate(self.routers if config.init_path else ()):
            assert isinstance(router, Router)
            router.start_along(
                [(share, width) for share, block, width in config.init_path or () if block == index], config
            )
        self.embedding = BudgetEmbedding(temb_dim) if config.budget_embedding else None
        self.allocator = Allocator(dim, config.budget_range) if config.budget_range and config.allocate_at else None
        self.ratios: Tensor
        self.register_buffer("ratios", torch.tensor(config.width_ratios), persistent=False)

    def without_tokens(self, condition: Tensor, budget: Tensor | None = None) -> RouterOutput:
        """What all L routers say where x = 0 in Eq. 4, logits (L, B) and (L, B, S).

        Each has so little to do then that calling them one by one would take most of the time.

        Args:
            condition: as in `Router.forward`, (B, C).
            budget: likewise, (B,).
        """
        routers = [cast(Router, router) for router in self.routers]
        activation = ACTIVATIONS[routers[0].activation]

        def linears(name: str, x: Tensor) -> Tensor:
            """One linear layer of every router, (L, B, in) to (L, B, out)."""
            layers = [cast(nn.Linear, getattr(router, name)) for router in routers]
            bias = torch.stack([layer.bias for layer in layers]).unsqueeze(1)
            return torch.baddbmm(bias, x, torch.stack([layer.weight for layer in layers]).mT)

        with torch.autocast(condition.device.type, enabled=False):
            # these weights are no small ones: not stacked
            delta = torch.stack([router.modulation(condition) for router in routers]).chunk(2, dim=-1)[1]  # (L, B, D)
            pooled = activation(linears("proj", delta))  # (L, B, R)
            output = RouterOutput(linears("gate_head", pooled).squeeze(-1), linears("width_head", pooled))
            if routers[0].dial is None:
                return output
            assert budget is not None
            dials = [cast(BudgetDial, router.dial) for router in routers]
            gate_slopes = torch.stack([dial.gate_slope for dial in dials]).unsqueeze(1)  # (L, 1)
            width_slopes = torch.stack([dial.width_slopes for dial in dials]).unsqueeze(1)  # (L, 1, S - 1)
            return RouterOutput(*turn(*output, budget, gate_slopes, width_slopes))
