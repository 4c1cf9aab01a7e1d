"""The pipeline of SD3 around a tiny transformer."""

from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline
from torch import Tensor

STEPS, SCALE = 5, 4.0


def pipeline_of(transformer: Any) -> StableDiffusion3Pipeline:
    """The pipeline of diffusers without its text encoders and VAE: embeddings in, latents out."""
    others = ("vae", "text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = StableDiffusion3Pipeline(transformer=transformer, scheduler=scheduler, **dict.fromkeys(others))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: StableDiffusion3Pipeline, images: int = 2, **given: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    embeddings = {
        name: torch.randn(images, *shape, generator=generator)
        for name, shape in (
            ("prompt_embeds", (5, 12)),
            ("negative_prompt_embeds", (5, 12)),
            ("pooled_prompt_embeds", (10,)),
            ("negative_pooled_prompt_embeds", (10,)),
        )
    }
    given = {"guidance_scale": SCALE, "num_inference_steps": STEPS} | given
    return pipe(**embeddings, height=64, width=64, generator=generator, output_type="latent", **given).images
