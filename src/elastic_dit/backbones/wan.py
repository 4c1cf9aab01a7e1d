"""Wan 2.1 and 2.2 video: one token stream, text by cross-attention, the timestep embedding (B, 6, D)."""

from typing import Any

import torch
from torch import nn

from elastic_dit.backbones.base import IMAGE, MLP, TEXT, Backbone, BlockList, backbones


def _tiny() -> tuple[nn.Module, Any]:
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=64,
        num_layers=3,
        rope_max_seq_len=16,
    )

    def inputs(batch: int = 2, seed: int = 0, size: int = 4) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        return {
            "hidden_states": torch.randn(batch, 4, 2, 2 * size, 2 * size, generator=generator),
            "encoder_hidden_states": torch.randn(batch, 5, 12, generator=generator),
            "timestep": torch.full((batch,), 700),
        }

    return transformer, inputs


backbones.add(
    "wan",
    Backbone(
        name="wan",
        transformers=("WanTransformer3DModel",),
        blocks=(
            BlockList(
                path="blocks",
                returns=(IMAGE,),
                mlps=(MLP(up="ffn.net.0.proj", down="ffn.net.2"),),
                batched=("temb", TEXT),
            ),
        ),
        timestep_embedder="condition_embedder",
        timestep_scale=1000.0,
        tiny=_tiny,
    ),
)
