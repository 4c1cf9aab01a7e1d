"""Routers that start at a schedule: one route for each range of noise levels, as `elastic-dit prune --levels` finds.

Biases say one route; to say several, a router must read the noise level. So it is fitted before training, on what it
sees in the dense model, to the decisions and the certainty that `Router.start_at` would give it at each noise level.
B batch, L blocks, S number of widths.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_dit.config import ElasticConfig
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import ConfigError
from elastic_dit.training.flow import NoisyBatch

STEPS, ROWS, LEARNING_RATE = 600, 64, 1e-2
SPREAD = 8
"""Noise levels at which routers of the timestep see each batch."""

Batches = Sequence[tuple[dict[str, Any], NoisyBatch]]
"""The transformer's inputs, and what they were made from."""
Seen = tuple[Tensor | None, ...]
"""What one router was called with, all batches in a row."""


def imitate(elastic: ElasticModel, batches: Batches) -> None:
    """Fit all routers to `init_schedule`; the backbone stays as it is.

    Args:
        elastic: with fresh routers, in eval mode.
        batches: the transformer's inputs, and what they were made from, at all noise levels.

    Raises:
        ConfigError: there is no batch.
    """
    config = elastic.config
    assert config.init_schedule is not None
    if not batches:
        raise ConfigError("routers are fitted to init_schedule on training batches: importance_batches must not be 0")
    schedule = torch.tensor(config.init_schedule)  # (levels, L)
    watch = _watch_timesteps if config.router_input == "timestep" else _watch
    seen, sigma = watch(elastic, batches)
    level = _level(sigma, len(schedule))
    for index, (router, inputs) in enumerate(zip(elastic.routers, seen, strict=True)):
        _fit(router, inputs, *_targets(schedule[level, index], config))


def _level(sigma: Tensor, count: int) -> Tensor:
    """The range of each noise level, (B,)."""
    return (sigma.cpu() * count).long().clamp(0, count - 1)


def _spread(batches: Batches) -> Iterator[tuple[dict[str, Any], NoisyBatch]]:
    """The same texts at many noise levels, for routers that see nothing of x: they learn where a range ends."""
    generator = torch.Generator().manual_seed(0)
    for inputs, noisy in batches:
        yield inputs, noisy
        timestep = inputs["timestep"]
        for _ in range(SPREAD):
            sigma = torch.rand(len(noisy.sigma), generator=generator).to(noisy.sigma)
            scale = (sigma / noisy.sigma).view(-1, *[1] * (timestep.ndim - 1))  # timesteps are proportional to sigma
            yield inputs | {"timestep": timestep * scale.to(timestep)}, replace(noisy, sigma=sigma)


def _watch(elastic: ElasticModel, batches: Batches) -> tuple[list[Seen], Tensor]:
    """What each router is called with while the model runs dense, and the noise levels (B,)."""
    seen: list[list[Seen]] = [[] for _ in elastic.routers]
    asked = elastic._engine.routers
    asked.watch = lambda index, called_with: seen[index].append(called_with)
    try:
        sigma = _run(elastic, batches, Plan.static([1.0] * len(seen)))
    finally:
        asked.watch = None
    return [tuple(_joined(part) for part in zip(*own, strict=True)) for own in seen], sigma


def _watch_timesteps(elastic: ElasticModel, batches: Batches) -> tuple[list[Seen], Tensor]:
    """The same for routers that see nothing of x: one condition for all of them, and no block need run."""
    conditions: list[Tensor] = []
    assert elastic.stack.condition is not None

    def watch(condition: nn.Module, inputs: Any, output: Tensor) -> None:
        conditions.append(output)

    handle = elastic.stack.condition.register_forward_hook(watch)
    try:
        sigma = _run(elastic, list(_spread(batches)), Plan.static([0.0] * len(elastic.routers)))
    finally:
        handle.remove()
    condition, config = torch.cat(conditions), elastic.config
    budget = None if config.budget_range is None else condition.new_full((len(condition),), config.default_budget)
    return [(None, condition, None, budget)] * len(elastic.routers), sigma


def _run(elastic: ElasticModel, batches: Batches, plan: Plan) -> Tensor:
    """One forward of each batch under a plan, the routers looking on; the noise levels (B,)."""
    elastic.force(plan, routed=True)
    try:
        with torch.no_grad():
            for inputs, _ in batches:
                elastic.reset()
                elastic.transformer(**inputs, return_dict=False)
    finally:
        elastic.force(None)
    return torch.cat([noisy.sigma for _, noisy in batches])


def _joined(parts: Sequence[Tensor | None]) -> Tensor | None:
    return torch.cat([part for part in parts if part is not None]) if parts[0] is not None else None


def _targets(widths: Tensor, config: ElasticConfig) -> tuple[Tensor, Tensor]:
    """p (B,) and q (B, S) at the start, for the width (B,) at which a schedule runs a block, 0 where it does not."""
    opened = widths > 0
    keep = torch.where(opened, config.init_keep_prob, 1 - config.init_keep_prob)
    ratios = torch.tensor(config.width_ratios)
    nearest = (torch.where(opened, widths, 1.0).unsqueeze(-1) - ratios).abs().argmin(dim=-1)  # (B,)
    chosen = math.exp(config.init_width_logit)
    q = torch.full((len(widths), len(ratios)), 1.0).scatter_(1, nearest.unsqueeze(-1), chosen)
    return keep, q / q.sum(dim=-1, keepdim=True)


def _fit(router: nn.Module, inputs: Seen, keep: Tensor, widths: Tensor) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(router.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        rows = torch.randperm(len(keep), generator=generator)[:ROWS]
        output = router(*(None if part is None else part[rows.to(part.device)] for part in inputs))
        loss = F.binary_cross_entropy_with_logits(output.gate_logit, keep[rows].to(output.gate_logit))
        loss = loss + F.cross_entropy(output.width_logits, widths[rows].to(output.width_logits))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
