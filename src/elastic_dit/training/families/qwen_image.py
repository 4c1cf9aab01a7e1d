"""Qwen-Image: Qwen2.5-VL text of any length, latents of a video VAE with one frame, packed 2x2."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from elastic_dit.training.families.base import Family, Text, families

NEGATIVE_PROMPT = " "
"""Turns on classifier-free guidance in sample grids; the pipeline runs none without a negative prompt."""


@families.register("qwen-image")
class QwenImageFamily(Family):
    """`QwenImagePipeline`. B batch, c latent channels, h, w latent size, T = h/2 * w/2 tokens of 4c channels."""

    pipeline_classes = ("QwenImagePipeline",)
    max_sequence_length: ClassVar[int] = 512
    """Text tokens that are stored for each caption; the pipeline cuts at as many."""

    @torch.no_grad()
    def encode_images(self, images: list[Image.Image]) -> Tensor:
        """Images to latents (B, c, h, w), normalised channel by channel."""
        vae = self.pipeline.vae
        pixels = self.pipeline.image_processor.preprocess(images).to(vae.device, vae.dtype)  # (B, 3, H, W)
        frames = pixels.unsqueeze(2)  # (B, 3, 1, H, W)
        # the mean, not a draw: a cached draw would be the same noise in every epoch. One by one for memory.
        latents = torch.cat([vae.encode(frame).latent_dist.mode() for frame in frames.split(1)]).squeeze(2)
        mean = latents.new_tensor(vae.config.latents_mean).view(1, -1, 1, 1)
        std = latents.new_tensor(vae.config.latents_std).view(1, -1, 1, 1)
        return (latents - mean) / std

    @torch.no_grad()
    def encode_prompts(self, prompts: list[str]) -> Text:
        """Text states (B, 512, 3584), zero on padding, and their mask (B, 512)."""
        states, mask = self.pipeline.encode_prompt(
            prompts, device=self.pipeline.text_encoder.device, max_sequence_length=self.max_sequence_length
        )
        if mask is None:  # the pipeline's way to say that nothing is padded
            mask = states.new_ones(states.shape[:2])
        missing = self.max_sequence_length - states.shape[1]
        return {"states": F.pad(states, (0, 0, 0, missing)), "mask": F.pad(mask, (0, missing))}

    def pack(self, latents: Tensor) -> Tensor:
        """Latents (B, c, h, w) to tokens (B, T, 4c)."""
        return self.pipeline._pack_latents(latents.contiguous(), *latents.shape)

    def inputs(self, tokens: Tensor, sigma: Tensor, text: Text, latent_shape: torch.Size) -> dict[str, Any]:
        """The arguments `QwenImagePipeline` passes; its timestep is sigma.

        Text is cut to the longest caption of the batch, as in the pipeline: stored padding costs no compute.
        """
        dtype, device = self.pipeline.transformer.dtype, tokens.device
        batch, _, height, width = latent_shape
        mask = text["mask"].to(device) > 0.5  # (B, 512); the cache keeps numbers
        longest = int(mask.sum(dim=1).max())
        mask = mask[:, :longest]
        return {
            "hidden_states": tokens.to(dtype),
            "encoder_hidden_states": text["states"][:, :longest].to(device, dtype),
            "encoder_hidden_states_mask": None if mask.all() else mask,
            "timestep": (sigma * 1000).to(dtype) / 1000,  # rounded where the pipeline rounds
            "img_shapes": [[(1, height // 2, width // 2)]] * batch,
        }

    def unused_layers(self) -> list[nn.Module]:
        """What the last block makes of the text, which no block reads."""
        last = self.pipeline.transformer.transformer_blocks[-1]
        return [last.attn.to_add_out, last.txt_mlp]

    def generate(self, prompts: list[str], seed: int, size: int) -> list[Image.Image]:
        """Images for a sample grid with classifier-free guidance, one generator a prompt."""
        generators = [torch.Generator().manual_seed(seed + index) for index in range(len(prompts))]
        return self.pipeline(
            prompt=prompts,
            negative_prompt=[NEGATIVE_PROMPT] * len(prompts),
            height=size,
            width=size,
            generator=generators,
        ).images
