"""FLUX.1: CLIP and T5 text, latents packed 2x2, a guidance embedding where the model is distilled."""

from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from elastic_dit.training.families.base import Family, Text, families

GUIDANCE_SCALE = 3.5
"""What a guidance-distilled model is told in training: the pipeline's default, which users sample with."""


@families.register("flux")
class FluxFamily(Family):
    """`FluxPipeline`. B batch, c latent channels, h, w latent size, T = h/2 * w/2 tokens of 4c channels."""

    pipeline_classes = ("FluxPipeline",)
    max_sequence_length: ClassVar[int] = 512
    """T5 tokens a caption is padded or cut to; FLUX attends to the padding too."""

    @torch.no_grad()
    def encode_images(self, images: list[Image.Image]) -> Tensor:
        """Images to latents (B, c, h, w), scaled as the transformer sees them."""
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(images).to(vae.device, vae.dtype)  # (B, 3, H, W)
        # the mean, not a draw: a cached draw would be the same noise in every epoch. One by one for memory.
        latents = torch.cat([vae.encode(image).latent_dist.mode() for image in pixels.split(1)])
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Text:
        """T5 states (B, 512, 4096) and CLIP's pooled state (B, 768)."""
        states, pooled, _ = self.pipeline.encode_prompt(
            prompts, device=self.pipeline.text_encoder.device, max_sequence_length=self.max_sequence_length
        )
        return {"states": states, "pooled": pooled}

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) to tokens (B, T, 4c)."""
        return self.pipeline._pack_latents(latents.contiguous(), *latents.shape)

    def inputs(self, tokens: Tensor, sigma: Tensor, text: Text, latent_shape: torch.Size) -> dict[str, Any]:
        """The arguments `FluxPipeline` passes; its timestep is sigma."""
        transformer = self.pipeline.transformer
        dtype, device = transformer.dtype, tokens.device
        batch, _, height, width = latent_shape
        states = text["states"].to(device, dtype)
        inputs = {
            "hidden_states": tokens.to(dtype),
            "encoder_hidden_states": states,
            "pooled_projections": text["pooled"].to(device, dtype),
            "timestep": (sigma * 1000).to(dtype) / 1000,  # rounded where the pipeline rounds
            "img_ids": self.pipeline._prepare_latent_image_ids(batch, height // 2, width // 2, device, dtype),
            "txt_ids": torch.zeros(states.shape[1], 3, device=device, dtype=dtype),
        }
        if transformer.config.guidance_embeds:
            inputs["guidance"] = torch.full((batch,), GUIDANCE_SCALE, device=device)
        return inputs
