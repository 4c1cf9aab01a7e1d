"""All routers of a backbone, and what they share: the condition of Eq. 4.

B batch, D model width, C condition width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_dit.config import ElasticConfig
from elastic_dit.core.allocation import Allocator
from elastic_dit.core.budget_embedding import BudgetEmbedding
from elastic_dit.core.router import Router
from elastic_dit.core.step_selection import StepSelector


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
        self.low_rank = config.modulation == "low_rank"
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
        several = config.step_intervals is not None and len(config.step_intervals) > 1
        self.selector = StepSelector(dim, config.step_intervals or ()) if several else None
        self.ratios: Tensor
        self.register_buffer("ratios", torch.tensor(config.width_ratios), persistent=False)
