"""Stable Diffusion 3: double blocks; the last one has no text output."""

from typing import Any

import torch
from torch import nn

from elastic_dit.backbones.base import IMAGE, MLP, TEXT, Backbone, BlockList, backbones


def _tiny() -> tuple[nn.Module, Any]:
    from diffusers import SD3Transformer2DModel

    transformer = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        caption_projection_dim=32,
        pooled_projection_dim=10,
        out_channels=4,
        pos_embed_max_size=8,
    )

    def inputs(batch: int = 2, seed: int = 0, size: int = 4) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {
            "hidden_states": torch.randn(batch, 4, 2 * size, 2 * size, generator=generator),
            "encoder_hidden_states": torch.randn(batch, 5, 12, generator=generator),
            "pooled_projections": torch.randn(batch, 10, generator=generator),
            "timestep": torch.full((batch,), 700.0),
        }

    return transformer, inputs


backbones.add(
    "sd3",
    Backbone(
        name="sd3",
        transformers=("SD3Transformer2DModel",),
        blocks=(
            BlockList(
                path="transformer_blocks",
                returns=(TEXT, IMAGE),
                mlps=(
                    MLP(up="ff.net.0.proj", down="ff.net.2"),
                    MLP(up="ff_context.net.0.proj", down="ff_context.net.2", stream="text"),
                ),
                batched=("temb", "joint_attention_kwargs"),
            ),
        ),
        timestep_embedder="time_text_embed",
        timestep_scale=1000.0,
        guidance_in_one_batch=True,
        tiny=_tiny,
    ),
)
