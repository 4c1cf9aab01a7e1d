"""FLUX and Qwen-Image pipelines of the real classes, a few thousand times smaller, with random weights.

Nothing is downloaded: the tokenizers are the real ones with byte vocabularies made here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from PIL import Image
from tokenizers import pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SIZE = 32  # pixels a side: 8x8 latents with these VAEs, 16 tokens


def clip_tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *BYTES, *(f"{byte}</w>" for byte in BYTES)]
    return CLIPTokenizer({word: index for index, word in enumerate(words)}, [], model_max_length=20)


def t5_tokenizer() -> T5Tokenizer:
    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *letters], extra_ids=0)


def qwen_tokenizer() -> Qwen2Tokenizer:
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTES]
    vocab = {word: index for index, word in enumerate(words)}
    return Qwen2Tokenizer(vocab, [], additional_special_tokens=["<|im_start|>", "<|im_end|>"])


def make_flux(guidance: bool = True) -> FluxPipeline:
    """`guidance` as in FLUX.1-dev; without it as in FLUX.1-schnell."""
    torch.manual_seed(0)
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(clip),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=20,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    text_encoder_2 = T5EncoderModel(
        T5Config(vocab_size=len(t5), d_model=24, d_kv=8, d_ff=32, num_layers=2, num_heads=2, is_encoder_decoder=False)
    )
    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        sample_size=SIZE,
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.12,
        scaling_factor=1.5,
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=clip,
        text_encoder_2=text_encoder_2.eval(),
        tokenizer_2=t5,
        transformer=transformer.eval(),
    )


def make_qwen_image() -> QwenImagePipeline:
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    text_encoder = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
            },
            vision_config={
                "depth": 1,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
            },
        )
    )
    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.3, -0.2, 0.1, 0.0],
        latents_std=[1.5, 0.5, 2.0, 1.0],
    )
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=0.9),
        vae=vae.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        transformer=transformer.eval(),
    )


MAKERS: dict[str, Callable[[], Any]] = {
    "flux-dev": make_flux,
    "flux-schnell": lambda: make_flux(guidance=False),
    "qwen-image": make_qwen_image,
}


@pytest.fixture(params=MAKERS)
def pipeline(request: pytest.FixtureRequest) -> Any:
    return quiet(MAKERS[request.param]())


@pytest.fixture
def flux() -> FluxPipeline:
    return quiet(make_flux())


@pytest.fixture
def qwen_image() -> QwenImagePipeline:
    return quiet(make_qwen_image())


@pytest.fixture
def images() -> list[Image.Image]:
    """Two different pictures, not flat."""
    ramp = Image.linear_gradient("L").resize((SIZE, SIZE))
    disc = Image.radial_gradient("L").resize((SIZE, SIZE))
    return [Image.merge("RGB", (ramp, disc, ramp.rotate(90))), Image.merge("RGB", (disc, disc, ramp))]


def quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def captured() -> Callable[[Any], Any]:
    """`with captured(transformer) as calls`: the keyword arguments of every forward."""

    @contextmanager
    def capture(transformer: Any) -> Iterator[list[dict[str, Any]]]:
        calls: list[dict[str, Any]] = []
        handle = transformer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
        )
        try:
            yield calls
        finally:
            handle.remove()

    return capture
