"""The small model that ships with us: pixels in place of latents."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from elastic_dit.models.emoji_flux import image_ids, patchify
from elastic_dit.training.families.base import Family, Text, families


@families.register("emoji-flux")
class EmojiFluxFamily(Family):
    """`EmojiFluxPipeline`."""

    pipeline_classes = ("EmojiFluxPipeline",)

    def encode_images(self, images: list[Image.Image]) -> Tensor:
        """Images to pixels (B, 3, H, W) in -1..1."""
        return self.pipeline.image_processor.preprocess(images)

    def encode_prompts(self, prompts: list[str]) -> Text:
        """MiniLM states (B, 24, 384) and their mean (B, 384)."""
        states, pooled = self.pipeline.encode_prompt(prompts)
        return {"states": states, "pooled": pooled}

    def pack(self, latents: Tensor) -> Tensor:
        """Pixels to 4x4 patches."""
        return patchify(latents)

    def inputs(self, tokens: Tensor, sigma: Tensor, text: Text, latent_shape: torch.Size) -> dict[str, Any]:
        """FLUX's arguments; its timestep is sigma."""
        height, width = latent_shape[-2:]
        return {
            "hidden_states": tokens,
            "encoder_hidden_states": text["states"],
            "pooled_projections": text["pooled"],
            "timestep": sigma,
            "img_ids": image_ids(height, width).to(tokens.device),
            "txt_ids": torch.zeros(text["states"].shape[1], 3, device=tokens.device),
        }
