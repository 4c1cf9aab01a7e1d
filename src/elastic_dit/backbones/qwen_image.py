"""Qwen-Image: double blocks only; its text may be padded."""

from typing import Any

import torch
from torch import nn

from elastic_dit.backbones.base import IMAGE, MLP, TEXT, Backbone, BlockList, backbones


def _tiny() -> tuple[nn.Module, Any]:
    from diffusers import QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        in_channels=8,
        out_channels=2,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        axes_dims_rope=(4, 6, 6),
    )

    def inputs(batch: int = 2, seed: int = 0, size: int = 4) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(seed)
        mask = torch.ones(batch, 6, dtype=torch.bool)
        mask[0, 4:] = False
        return {
            "hidden_states": torch.randn(batch, size * size, 8, generator=generator),
            "encoder_hidden_states": torch.randn(batch, 6, 12, generator=generator),
            "encoder_hidden_states_mask": mask,
            "timestep": torch.full((batch,), 0.7),
            "img_shapes": [[(1, size, size)]] * batch,
        }

    return transformer, inputs


backbones.add(
    "qwen-image",
    Backbone(
        name="qwen-image",
        transformers=("QwenImageTransformer2DModel",),
        blocks=(
            BlockList(
                path="transformer_blocks",
                returns=(TEXT, IMAGE),
                mlps=(
                    MLP(up="img_mlp.net.0.proj", down="img_mlp.net.2"),
                    MLP(up="txt_mlp.net.0.proj", down="txt_mlp.net.2", stream="text"),
                ),
                batched=("temb", "encoder_hidden_states_mask", "joint_attention_kwargs", "modulate_index"),
            ),
        ),
        timestep_embedder="time_text_embed",
        text_mask="encoder_hidden_states_mask",
        tiny=_tiny,
    ),
)
