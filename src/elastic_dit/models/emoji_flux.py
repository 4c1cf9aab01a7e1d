"""A small text-to-image model in FLUX's architecture, as an ordinary diffusers pipeline.

Pixel space, patch 4: where FLUX has a VAE and 2x2 patches of latents, a token here is a 4x4 patch of
RGB pixels. MiniLM's token states take T5's place and their mean takes CLIP's.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.flux.pipeline_output import FluxPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from elastic_dit.errors import ConfigError
from elastic_dit.models.minilm import encode, load_minilm

PATCH = 4
BASE_SIZE = 64
TEXT_DIM = 384

SIZES: dict[str, dict[str, Any]] = {
    "small": {"num_layers": 2, "num_single_layers": 20, "num_attention_heads": 2},
    "tiny": {"num_layers": 1, "num_single_layers": 2, "num_attention_heads": 1},
}
"""`small` is the model we train and ship (22 blocks, width 96); `tiny` is for tests."""


def patchify(pixels: Tensor) -> Tensor:
    """Pixels (B, 3, H, W) to tokens (B, H/4 * W/4, 48)."""
    batch, channels, height, width = pixels.shape
    grid = pixels.view(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH * PATCH)


def unpatchify(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H/4 * W/4, 48) back to pixels (B, 3, H, W)."""
    grid = tokens.view(tokens.shape[0], height // PATCH, width // PATCH, -1, PATCH, PATCH)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(tokens.shape[0], -1, height, width)


def image_ids(height: int, width: int) -> Tensor:
    """Rotary positions (H/4 * W/4, 3) of the patches, in units of a 4-pixel patch of a 64-pixel frame.

    Positions are relative to the frame: a model trained at 32 pixels starts at 64 with its layout in place.
    """
    rows = (torch.arange(height // PATCH) + 0.5) * BASE_SIZE / height
    columns = (torch.arange(width // PATCH) + 0.5) * BASE_SIZE / width
    grid = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)  # (h, w, 2)
    return torch.cat([torch.zeros_like(grid[..., :1]), grid], dim=-1).reshape(-1, 3)


class EmojiFluxPipeline(DiffusionPipeline):
    """Text to a 64-pixel emoji image with a `FluxTransformer2DModel`; saves and loads like any pipeline.

    A folder without a text encoder (as ours are) gets the published MiniLM.
    """

    model_cpu_offload_seq = "text_encoder->transformer"
    _optional_components: ClassVar[list[str]] = ["text_encoder", "tokenizer"]

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        text_encoder: Any = None,
        tokenizer: Any = None,
    ) -> None:
        super().__init__()
        if text_encoder is None or tokenizer is None:
            text_encoder, tokenizer = load_minilm()
        self.register_modules(
            transformer=transformer,
            scheduler=scheduler,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
        )
        self.image_processor = VaeImageProcessor(vae_scale_factor=PATCH)
        self.max_sequence_length = 24

    @classmethod
    def from_size(cls, size: str = "small", seed: int = 0) -> "EmojiFluxPipeline":
        """A pipeline with fresh random weights, of a size named in `SIZES`."""
        if size not in SIZES:
            raise ConfigError(f"unknown size {size!r}; known: {', '.join(SIZES)}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            transformer = FluxTransformer2DModel(
                patch_size=1,
                in_channels=3 * PATCH * PATCH,
                attention_head_dim=48,
                joint_attention_dim=TEXT_DIM,
                pooled_projection_dim=TEXT_DIM,
                guidance_embeds=False,
                axes_dims_rope=(8, 20, 20),
                **SIZES[size],
            )
        _zero_init(transformer)
        return cls(transformer, FlowMatchEulerDiscreteScheduler(shift=1.0))

    def save_pretrained(self, save_directory: Any, *, text_encoder: bool = False, **kwargs: Any) -> None:
        """Save to a folder; the frozen text encoder stays out unless asked for."""
        parts = {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}
        if not text_encoder:
            self.register_modules(text_encoder=None, tokenizer=None)
        try:
            super().save_pretrained(save_directory, **kwargs)
        finally:
            self.register_modules(**parts)

    def encode_prompt(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """Text states (B, 24, 384) and pooled text (B, 384) for the transformer."""
        states, pooled = encode(self.text_encoder, self.tokenizer, prompts, self.max_sequence_length)
        return states.to(self.transformer.dtype), pooled.to(self.transformer.dtype)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        negative_prompt: str = "",
        height: int = BASE_SIZE,
        width: int = BASE_SIZE,
        num_inference_steps: int = 28,
        guidance_scale: float = 3.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> FluxPipelineOutput | tuple[Any]:
        """Generate one image a prompt.

        Args:
            prompt: one text or a list of B texts.
            negative_prompt: what guidance moves away from.
            height: pixels, a multiple of 4.
            width: pixels, a multiple of 4.
            num_inference_steps: denoising steps.
            guidance_scale: classifier-free guidance; 1 runs the conditional branch alone.
            generator: one for all or one a prompt.
            latents: starting noise in tokens (B, T, 48); drawn if None.
            output_type: "pil", "np", "pt" (images in 0..1) or "latent" (tokens).
            return_dict: whether to return `FluxPipelineOutput` or a tuple.
        """
        if height % PATCH or width % PATCH:
            raise ConfigError(f"height and width must be multiples of {PATCH}, got {height} x {width}")
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        device, dtype = self._execution_device, self.transformer.dtype
        scheduler: Any = self.scheduler
        bar: Any = self.progress_bar
        tokens: Any = latents
        if tokens is None:
            tokens = patchify(randn_tensor((len(prompts), 3, height, width), generator, device, torch.float32))
        branches = {"cond": self.encode_prompt(prompts)}
        if guidance_scale != 1:
            branches["uncond"] = self.encode_prompt([negative_prompt] * len(prompts))
        img_ids = image_ids(height, width).to(device)
        txt_ids = torch.zeros(self.max_sequence_length, 3, device=device)

        sigmas = np.linspace(1.0, 1 / num_inference_steps, num_inference_steps)
        scheduler.set_timesteps(sigmas=sigmas.tolist(), device=device)
        for timestep in bar(scheduler.timesteps):
            velocity = {}
            for name, (states, pooled) in branches.items():
                with self.transformer.cache_context(name):
                    velocity[name] = self.transformer(
                        hidden_states=tokens.to(dtype),
                        encoder_hidden_states=states,
                        pooled_projections=pooled,
                        timestep=(timestep / 1000).expand(len(prompts)).to(dtype),
                        img_ids=img_ids,
                        txt_ids=txt_ids,
                        return_dict=False,
                    )[0]  # (B, T, 48)
            guided = velocity["cond"]
            if "uncond" in velocity:
                guided = velocity["uncond"] + guidance_scale * (guided - velocity["uncond"])
            tokens = scheduler.step(guided.float(), timestep, tokens, return_dict=False)[0]

        images: Any = tokens
        if output_type != "latent":
            pixels = unpatchify(tokens, height, width)
            images = self.image_processor.postprocess(pixels, output_type=output_type)
        self.maybe_free_model_hooks()
        return FluxPipelineOutput(images=images) if return_dict else (images,)


def _zero_init(transformer: FluxTransformer2DModel) -> None:
    """adaLN-Zero (DiT, section 3.2): every block starts as the identity, which deep models need to train."""
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and (name.endswith(".linear") or name == "proj_out"):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
