"""Eq. 9, 14, 15, 17: the compute budget that training holds the routers to.

B batch, L blocks, S number of widths. The paper prints soft budgets; on soft means a budget is met
with nothing skipped (p just over tau everywhere), so ours are hard with straight-through gradients.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from elastic_dit.config import ElasticConfig
from elastic_dit.core.cost import compute_share
from elastic_dit.core.gating import is_open, straight_through_gate
from elastic_dit.core.width import selected_width, straight_through_width


class Routing(NamedTuple):
    """What the routers said in one training forward, and what each block costs."""

    keep_prob: Tensor
    """p, (B, L)."""
    width_probs: Tensor
    """q, (B, L, S)."""
    fixed_flops: Tensor
    """(L,)."""
    mlp_flops: Tensor
    """(L,)."""
    router_share: float = 0.0
    """FLOPs of all routers, as a share of the dense blocks'."""


class BudgetLoss(NamedTuple):
    """lambda * L_eff of Eq. 17, and what a log should show."""

    total: Tensor
    logs: dict[str, float]


Share = TypeVar("Share", float, Tensor)
Mean = Callable[[str, Tensor], Tensor]
"""Turns per-sample values (B,) into what the budget is put on: their global mean (), or themselves."""


class GlobalMean:
    """Mean over the global batch: samples, ranks, and the last forwards of a window (accumulation).

    Only this forward's own share carries a gradient. Its value is the global mean, so that the squared
    distance to the target has the global gradient once gradients are averaged over ranks and forwards.
    """

    def __init__(self, window: int = 1) -> None:
        self.window = window
        self.history: dict[str, deque[float]] = {}

    def __call__(self, name: str, values: Tensor) -> Tensor:
        """The global mean of (B,) values, ()."""
        own = values.mean()
        known = own.detach().clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(known)  # pyright: ignore[reportUnknownMemberType]
            known /= torch.distributed.get_world_size()
        if self.window > 1:
            past = self.history.setdefault(name, deque(maxlen=self.window - 1))
            now = float(known)
            known = (known + sum(past)) / (len(past) + 1)
            past.append(now)
        return own + (known - own.detach())


def gating_loss(mean_keep: Tensor, rho_g: float) -> Tensor:
    """Eq. 9: (mean p - rho_g)^2."""
    return (mean_keep - rho_g).square().mean()


def mean_open_width(widths: Tensor, keep_prob: Tensor, tau: float, mean: Mean) -> Tensor:
    """Eq. 14: the mean width of the open blocks, for widths (B, L)."""
    opened = is_open(keep_prob, tau).to(widths.dtype)
    total = mean("width", (opened * widths).sum(dim=-1))
    return total / mean("open", opened.sum(dim=-1)).clamp(min=1e-6)


def width_loss(mean_width: Tensor, rho_w: float) -> Tensor:
    """Eq. 15: (mean r - rho_w)^2."""
    return (mean_width - rho_w).square().mean()


def compute_target(config: ElasticConfig, fixed: Tensor, mlp: Tensor) -> float:
    """The share of FLOPs that rho_g and rho_w stand for."""
    return float(config.rho_g * (fixed + config.rho_w * mlp).sum() / (fixed + mlp).sum())


def sandwich(batch: int, low: float, high: float, generator: torch.Generator | None = None) -> Tensor:
    """Budgets (B,) for a training forward, rising: the lowest, all others spread evenly between, and the highest.

    The sandwich rule of slimmable networks (arXiv 1903.05134): the ends in every batch hold the whole range. One sample
    each is enough for them, or the middle, which is used most, learns least. Fewer than three samples are spread alone.
    """
    ends = 1 if batch > 2 else 0
    count = batch - 2 * ends
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    between = low + (high - low) * places
    return torch.cat([torch.full((ends,), low), between, torch.full((ends,), high)])


def budget_loss(
    routing: Routing,
    config: ElasticConfig,
    ratios: Tensor,
    mean: Mean,
    ramp: float = 1.0,
    budgets: Tensor | None = None,
) -> BudgetLoss:
    """lambda * L_eff of Eq. 17.

    Args:
        routing: of one training forward.
        config: which budget, its targets, tau and lambda.
        ratios: the width ratios, (S,).
        mean: the averaging; ignored where `budget_scope` is "sample".
        ramp: 0..1, how far the targets have gone from 1 to the budget.
        budgets: (B,), the share of FLOPs each sample was given, its routers' included, rising as in `sandwich`: each
            third of them is held to its mean on its own, else low shares at a high budget could make up for high ones
            at a low.
    """
    p, q = routing.keep_prob, routing.width_probs
    if config.budget_scope == "sample":
        mean = _per_sample
    if config.budget == "paper":
        r = (q * ratios).sum(dim=-1)  # (B, L)
        loss = gating_loss(mean("keep", p.mean(dim=-1)), config.rho_g)
        loss = loss + width_loss(mean_open_width(r, p, config.tau, mean), config.rho_w)
    else:
        gates = straight_through_gate(p, config.tau)  # (B, L)
        widths = straight_through_width(q, ratios)  # (B, L)
        if config.budget == "blocks":
            loss = gating_loss(mean("keep", gates.mean(dim=-1)), _ramped(config.rho_g, ramp))
            mean_width = mean_open_width(widths, p, config.tau, mean)
            loss = loss + width_loss(mean_width, _ramped(config.rho_w, ramp))
        else:
            share = compute_share(gates, widths, routing.fixed_flops, routing.mlp_flops)
            if budgets is None:
                target = compute_target(config, routing.fixed_flops, routing.mlp_flops)
                loss = (mean("share", share) - _ramped(target, ramp)).square().mean()
            else:
                # the whole budget is every block open, and the routers on top
                wanted = torch.where(budgets < 1, budgets - routing.router_share, budgets)  # (B,)
                excess = share - _ramped(wanted, ramp)
                thirds = [third for third in excess.tensor_split(3) if len(third)]
                loss = torch.stack([mean(f"excess {i}", own).square().mean() for i, own in enumerate(thirds)]).mean()
    committed = (p * (1 - p)).mean()
    total = config.budget_weight * loss + config.commitment * committed
    return BudgetLoss(total, {"budget_loss": float(loss.detach())} | routing_logs(routing, config, ratios))


@torch.no_grad()
def routing_logs(routing: Routing, config: ElasticConfig, ratios: Tensor) -> dict[str, float]:
    """What tells a working router from a gamed budget; one host synchronisation."""
    p, width = routing.keep_prob, selected_width(routing.width_probs, ratios)
    opened = is_open(p, config.tau).float()
    share = compute_share(opened, width, routing.fixed_flops, routing.mlp_flops)  # (B,)
    border = ((p >= config.tau) & (p <= config.tau + config.delta)).float()
    names = ("keep/mean_prob", "keep/open_rate", "keep/borderline", "width/mean", "flops/share", "flops/std")
    mean_width = (opened * width).sum() / opened.sum().clamp(min=1)
    values = torch.stack([p.mean(), opened.mean(), border.mean(), mean_width, share.mean(), share.std(correction=0)])
    numbers = cast(list[float], values.tolist())  # pyright: ignore[reportUnknownMemberType]
    return dict(zip(names, numbers, strict=True))


def _ramped(target: Share, ramp: float) -> Share:
    return 1 + (target - 1) * ramp


def _per_sample(name: str, values: Tensor) -> Tensor:
    return values
