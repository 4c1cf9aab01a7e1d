"""Eq. 1-2: rectified flow. Noise levels, noisy samples, the velocity to predict, and the weight of the error."""

from dataclasses import dataclass

import torch
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from elastic_dit.training.config import FlowConfig


@dataclass(frozen=True)
class NoisyBatch:
    """A draw of Eq. 2 for B samples of T tokens with C channels."""

    tokens: Tensor
    """x_t (B, T, C)."""
    velocity: Tensor
    """x_1 - x_0 (B, T, C)."""
    sigma: Tensor
    """Noise level t in 0..1, (B,)."""


def draw(clean: Tensor, config: FlowConfig, generator: torch.Generator) -> NoisyBatch:
    """Draw t and noise x_1, and set x_t = (1-t) x_0 + t x_1.

    Args:
        clean: x_0, tokens (B, T, C).
        config: how t is sampled.
        generator: a CPU generator; the draw depends on nothing else.
    """
    # diffusers' scripts use the density as an index into descending noise levels, hence 1 - u
    density = compute_density_for_timestep_sampling(
        config.timestep_sampling,
        len(clean),
        config.logit_mean,
        config.logit_std,
        config.mode_scale,
        generator=generator,
    )
    return mix(clean, (1 - density).to(clean.device, torch.float32), generator)


def mix(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> NoisyBatch:
    """x_t = (1-t) x_0 + t x_1 at given noise levels t (B,), with noise x_1 from a CPU generator."""
    noise = torch.randn(clean.shape, generator=generator).to(clean)
    t = sigma.view(-1, 1, 1).to(clean)
    return NoisyBatch((1 - t) * clean + t * noise, noise - clean, sigma)


def flow_loss(predicted: Tensor, batch: NoisyBatch, config: FlowConfig) -> Tensor:
    """Eq. 2: weighted squared error of the velocity, one value a sample (B,), float32."""
    error = (predicted.float() - batch.velocity.float()).square().mean(dim=(1, 2))
    if config.loss_weighting == "none":
        return error
    return error * compute_loss_weighting_for_sd3(config.loss_weighting, batch.sigma)
