"""A denoising run of a bare transformer, step by step: Euler from noise, without a pipeline around it."""

import time
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from elastic_dit.bench.sizes import Size
from elastic_dit.timing import synchronize


class Trajectory:
    """The inputs of a run, fed to any number of transformers.

    Args:
        size: says what a step feeds.
        transformer: one with its config, device and dtype.
        batch: samples.
        steps: denoising steps.
    """

    def __init__(self, size: Size, transformer: Any, batch: int, steps: int) -> None:
        self.inputs = size.feed(transformer, batch)
        self.steps, self.branches = steps, size.branches
        self.noise: Tensor = self.inputs.pop("hidden_states")
        self.sigmas = torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()

    @torch.no_grad()
    def step(self, transformer: Any, latents: Tensor, index: int) -> tuple[Tensor, float]:
        """One step of one transformer.

        Args:
            transformer: what predicts the velocity.
            latents: before the step, the shape of `noise`.
            index: of the step.

        Returns:
            The latents after it, and the seconds in the transformer, all guidance passes.
        """
        sigma, below = self.sigmas[index], self.sigmas[index + 1]
        timestep = torch.full((len(latents),), sigma, device=latents.device, dtype=latents.dtype)
        seconds, velocity = 0.0, latents
        for branch in range(self.branches):
            named = hasattr(transformer, "cache_context")
            with transformer.cache_context(f"branch {branch}") if named else nullcontext():
                synchronize(latents.device)
                start = time.perf_counter()
                velocity = transformer(**self.inputs, hidden_states=latents, timestep=timestep, return_dict=False)[0]
                synchronize(latents.device)
                seconds += time.perf_counter() - start
        return latents + (below - sigma) * velocity, seconds
