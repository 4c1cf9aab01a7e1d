"""FLUX.1: double blocks, then single blocks whose MLP runs beside attention."""

from typing import Any

import torch
from torch import nn

from elastic_dit.backbones.base import IMAGE, MLP, TEXT, Backbone, BlockList, backbones


def _tiny() -> tuple[nn.Module, Any]:
    from diffusers import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=8,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=False,
        axes_dims_rope=(4, 6, 6),
    )

    def inputs(batch: int = 2, seed: int = 0, size: int = 4) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        grid = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij"), -1)
        return {
            "hidden_states": torch.randn(batch, size * size, 8, generator=generator),
            "encoder_hidden_states": torch.randn(batch, 5, 12, generator=generator),
            "pooled_projections": torch.randn(batch, 10, generator=generator),
            "timestep": torch.full((batch,), 0.7),
            "img_ids": torch.cat([torch.zeros(size, size, 1), grid], -1).reshape(-1, 3),
            "txt_ids": torch.zeros(5, 3),
        }

    return transformer, inputs


backbones.add(
    "flux",
    Backbone(
        name="flux",
        transformers=("FluxTransformer2DModel",),
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
            BlockList(
                path="single_transformer_blocks",
                returns=(TEXT, IMAGE),
                mlps=(MLP(up="proj_mlp", down="proj_out"),),
                batched=("temb", "joint_attention_kwargs"),
            ),
        ),
        timestep_embedder="time_text_embed",
        tiny=_tiny,
    ),
)
