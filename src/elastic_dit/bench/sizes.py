"""Transformers with random weights, at sizes that matter for speed, and inputs for them."""

import math
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
    blocks: int
    """Blocks of all kinds."""
    tokens: int
    """Image tokens (or latents of a shape), a square number where they have places."""
    text: int
    """Tokens of the conditioning."""
    build: Callable[[int], nn.Module]
    """Blocks to the transformer, with random weights."""
    inputs: Callable[[Any, int, int, int], dict[str, Any]]
    """(transformer, batch, tokens, text) to the inputs of its forward, but for the timestep."""
    preset: str = "qwen-image-turbo"
    """Settings of the elastic model. The schedule's rates are Qwen-Image turbo's, and so are tau, delta and K."""

    def transformer(self) -> nn.Module:
        """A new one."""
        return self.build(self.blocks)

    def feed(self, transformer: nn.Module, batch: int) -> dict[str, Any]:
        """What a step feeds it, but for the timestep."""
        return self.inputs(transformer, batch, self.tokens, self.text)


def flux_builder(**size: Any) -> Callable[[int], nn.Module]:
    """A builder of FLUX transformers, a third of the blocks double, from the class's other arguments."""

    def build(blocks: int) -> nn.Module:
        from diffusers import FluxTransformer2DModel

        double = round(blocks / 3)  # as in all sizes of FLUX
        return FluxTransformer2DModel(num_layers=double, num_single_layers=blocks - double, **size)

    return build


def flux_inputs(transformer: Any, batch: int, tokens: int, text: int) -> dict[str, Any]:
    """The inputs of a FLUX transformer: the image's tokens on a square grid."""
    config, draw, side = transformer.config, _drawer(transformer), math.isqrt(tokens)
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


def _qwen(blocks: int) -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(num_layers=blocks)


def _qwen_inputs(transformer: Any, batch: int, tokens: int, text: int) -> dict[str, Any]:
    draw, side = _drawer(transformer), math.isqrt(tokens)
    return {
        "hidden_states": draw(batch, side * side, transformer.config.in_channels),
        "encoder_hidden_states": draw(batch, text, transformer.config.joint_attention_dim),
        "encoder_hidden_states_mask": None,  # as its pipeline passes on a mask that covers nothing
        "img_shapes": [[(1, side, side)]] * batch,
    }


def _wan(blocks: int) -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=16,
        attention_head_dim=128,
        in_channels=64,
        out_channels=64,
        text_dim=1024,
        freq_dim=256,
        ffn_dim=8192,
        num_layers=blocks,
    )


def _wan_inputs(transformer: Any, batch: int, tokens: int, text: int) -> dict[str, Any]:
    draw, side = _drawer(transformer), math.isqrt(tokens)
    return {
        "hidden_states": draw(batch, transformer.config.in_channels, 1, side, side),
        "encoder_hidden_states": draw(batch, text, transformer.config.text_dim),
    }


def _drawer(transformer: Any) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)
    return lambda *shape: torch.randn(*shape, generator=generator).to(transformer.device, transformer.dtype)


CPU: dict[str, Any] = {
    "in_channels": 64,
    "attention_head_dim": 64,
    "joint_attention_dim": 768,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
    "axes_dims_rope": (8, 28, 28),
}
"""What the sizes for two CPU cores have in common."""

SIZES = {
    "flux-cpu": Size(
        "FLUX's proportions at 160 M parameters, 1,024 image and 128 text tokens: for two CPU cores",
        steps=4,
        branches=1,
        blocks=12,
        tokens=32**2,  # with the text 1.5 tokens for each channel, as FLUX.1-dev has at 1024 px
        text=128,
        build=flux_builder(num_attention_heads=12, **CPU),
        inputs=flux_inputs,
    ),
    "flux-cpu-small": Size(
        "FLUX's proportions at 113 M parameters, 256 image and 32 text tokens: for many measurements on two CPU cores",
        steps=12,
        branches=1,
        blocks=12,
        tokens=16**2,
        text=32,
        build=flux_builder(num_attention_heads=10, **CPU),
        inputs=flux_inputs,
    ),
    "flux.1-dev": Size(
        "FLUX.1-dev's 12 B parameters at 1024 px with 512 text tokens: for a GPU",
        steps=28,
        branches=1,
        blocks=57,
        tokens=64**2,
        text=512,
        build=flux_builder(guidance_embeds=True),
        inputs=flux_inputs,
    ),
    "qwen-image": Size(
        "Qwen-Image's 20 B parameters at 1328 px with 512 text tokens, two guidance passes: for a GPU",
        steps=30,
        branches=2,
        blocks=60,
        tokens=83**2,
        text=512,
        build=_qwen,
        inputs=_qwen_inputs,
    ),
    "hunyuan3d-2.0": Size(
        "A FLUX transformer with the sizes of Hunyuan3D-2.0's, 3,025 latents and 1,370 image tokens, two guidance "
        "passes: for a GPU",
        steps=5,
        branches=2,
        blocks=48,
        tokens=55**2,
        text=1370,
        build=flux_builder(
            in_channels=64,
            attention_head_dim=64,
            num_attention_heads=16,
            joint_attention_dim=1536,
            pooled_projection_dim=768,
            axes_dims_rope=(8, 28, 28),
        ),
        inputs=flux_inputs,
        preset="hunyuan3d",
    ),
    "hunyuan3d-2.1": Size(
        "A Wan transformer with the sizes of Hunyuan3D-2.1's blocks (self-attention, attention to the image, MLP; its "
        "experts left out), 4,096 latents and 1,370 image tokens, two guidance passes: for a GPU",
        steps=5,
        branches=2,
        blocks=21,
        tokens=64**2,
        text=1370,
        build=_wan,
        inputs=_wan_inputs,
        preset="hunyuan3d",
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
