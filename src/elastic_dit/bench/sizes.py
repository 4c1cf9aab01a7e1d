"""Transformers with random weights, at sizes that matter for speed, and inputs for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elastic_dit.errors import UnknownNameError


@dataclass(frozen=True)
class Size:
    """A transformer to build and what a step feeds it."""

    about: str
    """In words."""
    steps: int
    """Denoising steps of its pipeline."""
    branches: int
    """Guidance passes in a step."""
    build: Callable[[], nn.Module]
    """The transformer, with random weights."""
    inputs: Callable[[nn.Module, int], dict[str, Any]]
    """(transformer, batch) to the inputs of its forward, but for the timestep."""
    preset: str = "qwen-image-turbo"
    """Settings of the elastic model. The schedule's rates are Qwen-Image turbo's, and so are tau, delta and K."""


def _flux(**size: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from diffusers import FluxTransformer2DModel

        return FluxTransformer2DModel(**size)

    return build


def _flux_inputs(side: int, text: int) -> Callable[[Any, int], dict[str, Any]]:
    def inputs(transformer: Any, batch: int) -> dict[str, Any]:
        config = transformer.config
        draw = _drawer(transformer)
        grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), dim=-1)
        positions = torch.cat([torch.zeros(side, side, 1), grid], dim=-1).reshape(-1, 3).to(transformer.device)
        guidance = {"guidance": torch.full((batch,), 3.5, device=transformer.device)} if config.guidance_embeds else {}
        return guidance | {
            "hidden_states": draw(batch, side * side, config.in_channels),
            "encoder_hidden_states": draw(batch, text, config.joint_attention_dim),
            "pooled_projections": draw(batch, config.pooled_projection_dim),
            "img_ids": positions,
            "txt_ids": torch.zeros(text, 3, device=transformer.device),
        }

    return inputs


def _qwen() -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel()


def _qwen_inputs(transformer: Any, batch: int) -> dict[str, Any]:
    side, text = 83, 512  # 1328 px
    draw = _drawer(transformer)
    return {
        "hidden_states": draw(batch, side * side, transformer.config.in_channels),
        "encoder_hidden_states": draw(batch, text, transformer.config.joint_attention_dim),
        "encoder_hidden_states_mask": torch.ones(batch, text, dtype=torch.bool, device=transformer.device),
        "img_shapes": [[(1, side, side)]] * batch,
    }


def _drawer(transformer: Any) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(transformer.device, transformer.dtype)


SIZES = {
    "flux-cpu": Size(
        "FLUX's proportions at 160 M parameters, 576 image and 72 text tokens: for two CPU cores",
        steps=8,
        branches=1,
        build=_flux(
            in_channels=64,
            num_layers=4,
            num_single_layers=8,
            attention_head_dim=64,
            num_attention_heads=12,
            joint_attention_dim=768,
            pooled_projection_dim=768,
            guidance_embeds=True,
            axes_dims_rope=(8, 28, 28),
        ),
        inputs=_flux_inputs(side=24, text=72),
    ),
    "flux.1-dev": Size(
        "FLUX.1-dev's 12 B parameters at 1024 px with 512 text tokens: for a GPU",
        steps=28,
        branches=1,
        build=_flux(guidance_embeds=True),
        inputs=_flux_inputs(side=64, text=512),
    ),
    "qwen-image": Size(
        "Qwen-Image's 20 B parameters at 1328 px with 512 text tokens, two guidance passes: for a GPU",
        steps=30,
        branches=2,
        build=_qwen,
        inputs=_qwen_inputs,
    ),
}


def size(name: str) -> Size:
    """A size by name.

    Raises:
        UnknownNameError: no such size.
    """
    if name not in SIZES:
        raise UnknownNameError("size", name, SIZES)
    return SIZES[name]
