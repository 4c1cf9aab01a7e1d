"""Forwards in which no block runs: their velocity follows from earlier ones, or from this step's first branch."""

import torch
from torch import Tensor

from elastic_dit.config import ElasticConfig
from elastic_dit.engine.run import Branch, Run


def forecast(config: ElasticConfig, run: Run, branch: Branch, sigma: float) -> Tensor | None:
    """The velocity of the forward that has begun at noise level sigma, or None where it must run."""
    if not any(run.due(branch) or [True]):
        return branch.velocity
    velocity = _of_step(config, branch, sigma)
    if velocity is None:
        velocity = _of_guidance(config, run, branch, sigma)
        if velocity is not None and config.max_forecast:  # whole steps go on from what this one was taken for
            branch.velocities.store(sigma, velocity, config.forecast_order)
    if velocity is not None:
        velocity = branch.velocity = _held(run, branch, velocity)
    return velocity


def remember(config: ElasticConfig, run: Run, branch: Branch, sigma: float, velocity: Tensor) -> Tensor:
    """A forward ran, and may be what others follow from; its velocity, with those that samples keep meanwhile."""
    velocity = _held(run, branch, velocity)
    branch.velocity = velocity.detach()
    if config.max_forecast:
        branch.velocities.store(sigma, velocity, config.forecast_order)
    first = _first(run, branch)
    if config.max_guidance_reuse and first is not None:
        branch.guidance.store(first, velocity)
    return velocity


def _held(run: Run, branch: Branch, velocity: Tensor) -> Tensor:
    """A velocity (B, ...), but for samples whose turn it is not that which they had."""
    due = run.due(branch)
    if due is None or branch.velocity is None:
        return velocity
    return torch.where(_by_sample(due, velocity), velocity, branch.velocity)


def _of_step(config: ElasticConfig, branch: Branch, sigma: float) -> Tensor | None:
    most, order = config.max_forecast, config.forecast_order
    if most and sigma < config.forecast_below and branch.velocities.can_forecast(most, order):
        return branch.velocities.forecast(sigma, order)
    return None


def _of_guidance(config: ElasticConfig, run: Run, branch: Branch, sigma: float) -> Tensor | None:
    most, first = config.max_guidance_reuse, _first(run, branch)
    if first is None:
        return None
    if sigma > config.guidance_from:
        return first
    if most and sigma < config.guidance_reuse_below and branch.guidance.can_reuse(most):
        return branch.guidance.reuse(first, _fade(config, run, first))
    return None


def _fade(config: ElasticConfig, run: Run, like: Tensor) -> float | Tensor:
    """What is left of the guidance since the step before; of samples that skipped some, since those before, too."""
    if run.intervals is None:
        return config.guidance_fade
    steps = [interval if run.step % interval == 0 else 0 for interval in run.intervals]
    return _by_sample([config.guidance_fade**step for step in steps], like)


def _first(run: Run, branch: Branch) -> Tensor | None:
    """The velocity of this step's first branch; None in that branch, or where it did not come first."""
    first = run.branches[0]
    return first.velocity if branch is not first and first.last_step == run.step else None


def _by_sample(values: list[bool] | list[float], like: Tensor) -> Tensor:
    """One value a sample, (B, 1, ...)."""
    return torch.tensor(values, device=like.device).view(-1, *[1] * (like.ndim - 1))
