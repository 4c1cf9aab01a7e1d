"""What a family feeds a transformer is what the pipeline itself feeds it: FLUX and Qwen-Image at toy size."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage
from PIL import Image
from torch.utils.data import default_collate

import elastic_dit
from elastic_dit.config import ElasticConfig
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import BackboneError
from elastic_dit.evaluation.sampling import shifted
from elastic_dit.pruning.noise_levels import Denoising
from elastic_dit.training.config import DataConfig, FlowConfig
from elastic_dit.training.data.cache import encode
from elastic_dit.training.families.base import Family, family_of
from elastic_dit.training.flow import draw, flow_loss

SIZE = 32  # pixels a side: 8x8 latents, 16 tokens
PROMPTS = ["a red fox", "two cats on a blue table"]
RUN = {"prompt": PROMPTS, "height": SIZE, "width": SIZE}


def two_steps(pipeline: Any, **changes: Any) -> Any:
    arguments = RUN | {"num_inference_steps": 2, "output_type": "pt"} | changes
    return pipeline(generator=torch.Generator().manual_seed(0), **arguments).images


def noisy_inputs(family: Family, images: list[Image.Image]) -> dict[str, Any]:
    latents = family.encode_images(images)
    noisy = draw(family.pack(latents), FlowConfig(), torch.Generator().manual_seed(0))
    return family.inputs(noisy.tokens, noisy.sigma, family.encode_prompts(PROMPTS), latents.shape)


def test_a_shift_takes_the_place_of_the_one_by_size(pipeline: Any) -> None:
    plain = two_steps(pipeline)
    pipeline.scheduler = shifted(pipeline.scheduler, 3.0)
    moved = two_steps(pipeline)
    levels = pipeline.scheduler.sigmas
    np.testing.assert_allclose(levels, [1, 3 * 0.5 / 2, 0], atol=1e-6)
    assert not torch.equal(plain, moved)
    denoising = Denoising(family_of(pipeline), {}, None, torch.Size((2, 4, 8, 8)), steps=2)
    np.testing.assert_allclose(denoising.sigmas(16), levels, atol=1e-6)


def test_encoded_packed_inputs_run_through_the_transformer(pipeline: Any, images: list[Image.Image]) -> None:
    family = family_of(pipeline)
    inputs = noisy_inputs(family, images)
    velocity = pipeline.transformer(**inputs, return_dict=False)[0]
    assert velocity.shape == inputs["hidden_states"].shape == (2, 16, 16)
    assert velocity.isfinite().all()
    assert velocity.std() > 0


def test_encoding_leaves_no_gradient_and_tells_samples_apart(pipeline: Any, images: list[Image.Image]) -> None:
    family = family_of(pipeline)
    latents, text = family.encode_images(images), family.encode_prompts(PROMPTS)
    for name, value in ({"latents": latents} | text).items():
        assert len(value) == 2
        assert not value.requires_grad
        assert not torch.equal(value[0], value[1]), name


def test_images_are_encoded_one_like_many(pipeline: Any, images: list[Image.Image]) -> None:
    family = family_of(pipeline)
    alone = torch.cat([family.encode_images([image]) for image in images])
    assert torch.equal(alone, family.encode_images(images))


def test_pack_is_undone_by_the_pipeline(pipeline: Any, images: list[Image.Image]) -> None:
    family = family_of(pipeline)
    latents = family.encode_images(images)
    unpacked = pipeline._unpack_latents(family.pack(latents), SIZE, SIZE, pipeline.vae_scale_factor)
    assert torch.equal(unpacked.reshape(latents.shape), latents)


@torch.no_grad()
def test_the_pipeline_decodes_our_latents_as_the_vae_does(pipeline: Any, images: list[Image.Image]) -> None:
    """With a velocity of zero the pipeline decodes what it is given: our scaling must undo its own."""
    family, vae = family_of(pipeline), pipeline.vae
    tokens = family.pack(family.encode_images(images))
    torch.nn.init.zeros_(pipeline.transformer.proj_out.weight)
    torch.nn.init.zeros_(pipeline.transformer.proj_out.bias)
    ours = two_steps(pipeline, latents=tokens)

    pixels = pipeline.image_processor.preprocess(images)
    video = pixels.unsqueeze(2) if isinstance(vae, AutoencoderKLQwenImage) else pixels
    decoded = vae.decode(vae.encode(video).latent_dist.mode(), return_dict=False)[0].reshape(pixels.shape)
    expected = pipeline.image_processor.postprocess(decoded, output_type="pt")
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_inputs_are_what_the_pipeline_feeds_its_transformer(
    pipeline: Any, captured: Callable[[Any], Any], dtype: torch.dtype
) -> None:
    pipeline.to(dtype)
    with captured(pipeline.transformer) as calls:
        two_steps(pipeline, num_inference_steps=7)  # enough noise levels for bfloat16 to round some
    assert len(calls) == 7
    family = family_of(pipeline)
    text = {name: value.float() for name, value in family.encode_prompts(PROMPTS).items()}  # as from the cache
    for step, theirs in enumerate(calls):
        sigma = pipeline.scheduler.sigmas[step].expand(2)
        shape = torch.Size([2, 4, SIZE // 4, SIZE // 4])
        ours = family.inputs(theirs["hidden_states"].float(), sigma, text, shape)
        said = {name: value for name, value in theirs.items() if value is not None and name != "return_dict"}
        empty = {name for name, value in said.items() if isinstance(value, dict) and not value}
        assert set(ours) == set(said) - empty
        for name, value in ours.items():
            if name == "encoder_hidden_states_mask":
                assert value.dtype == torch.bool
                assert torch.equal(value, theirs[name].bool())  # the transformer takes numbers or bool
            elif isinstance(value, torch.Tensor):
                assert value.dtype == theirs[name].dtype, name
                assert torch.equal(value, theirs[name]), name
            else:
                assert value == theirs[name], name


def test_one_euler_step_of_ours_is_the_pipelines(pipeline: Any, captured: Callable[[Any], Any]) -> None:
    with captured(pipeline.transformer) as calls:
        two_steps(pipeline)
    family, sigmas = family_of(pipeline), pipeline.scheduler.sigmas
    tokens = calls[0]["hidden_states"]
    shape = torch.Size([2, 4, SIZE // 4, SIZE // 4])
    inputs = family.inputs(tokens, sigmas[0].expand(2), family.encode_prompts(PROMPTS), shape)
    with torch.no_grad():
        velocity = pipeline.transformer(**inputs, return_dict=False)[0]
    after = tokens + (sigmas[1] - sigmas[0]) * velocity
    torch.testing.assert_close(after, calls[1]["hidden_states"])
    assert not torch.allclose(after, tokens)


@torch.no_grad()
def test_the_cache_gives_the_same_inputs(pipeline: Any, images: list[Image.Image], tmp_path: Path) -> None:
    """Through fp16 on disk and default batches, as in training, one caption replaced by the empty one."""
    family = family_of(pipeline)
    for image, prompt, name in zip(images, PROMPTS, "ab", strict=True):
        image.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(prompt)
    data = DataConfig(source="folder", path=str(tmp_path), resolution=SIZE, cache=tmp_path / "cache")
    stored = encode(family, data, str(tmp_path), quiet=True)
    batch = default_collate([stored[0], stored[1]])
    for name, value in stored.empty_text().items():
        batch[name] = torch.stack([batch[name][0], value])
    latents = family.encode_images(images)
    direct = family.encode_prompts([PROMPTS[0], ""])
    cached = {name.removeprefix("text."): value for name, value in batch.items() if name.startswith("text.")}

    tokens, sigma = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    expected = family.inputs(tokens, sigma, direct, latents.shape)
    inputs = family.inputs(tokens, sigma, cached, batch["latents"].shape)
    torch.testing.assert_close(batch["latents"], latents, atol=2e-3, rtol=2e-3)
    mask = inputs.get("encoder_hidden_states_mask")
    if mask is not None:
        assert mask.dtype == torch.bool
        assert torch.equal(mask, expected["encoder_hidden_states_mask"])
    velocity = pipeline.transformer(**inputs, return_dict=False)[0]
    torch.testing.assert_close(velocity, pipeline.transformer(**expected, return_dict=False)[0], atol=5e-3, rtol=5e-3)


def test_elasticize_changes_no_bit_and_restore_neither(pipeline: Any) -> None:
    dense = two_steps(pipeline)
    elastic = elastic_dit.elasticize(pipeline)
    assert torch.equal(two_steps(pipeline), dense)
    assert elastic.trace.open_rate == 1
    blocks = len(elastic.routers)
    elastic.force(Plan([[False] * blocks] * 2))
    assert not torch.equal(two_steps(pipeline), dense)  # the hooks are really in the way
    elastic_dit.restore(pipeline)
    assert torch.equal(two_steps(pipeline), dense)
    assert not any("elastic" in name or "router" in name for name in pipeline.transformer.state_dict())


def test_forecasts_of_order_zero_are_a_coarser_walk(pipeline: Any) -> None:
    """The last velocity again at every second step is Euler's method over every second noise level."""
    elastic = elastic_dit.elasticize(pipeline, ElasticConfig.of(max_forecast=1))
    walk = two_steps(pipeline, num_inference_steps=4, sigmas=[1.0, 0.8, 0.5, 0.2])
    assert elastic.trace.flops_share == pytest.approx(0.5, abs=0.05)  # and the routers
    elastic_dit.restore(pipeline)
    coarse = two_steps(pipeline, sigmas=[1.0, 0.5])
    torch.testing.assert_close(walk, coarse, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(coarse, two_steps(pipeline, sigmas=[1.0, 0.8]), atol=1e-4)


def test_guidance_is_taken_again_in_the_branch_without_the_prompt(pipeline: Any) -> None:
    elastic = elastic_dit.elasticize(pipeline, ElasticConfig.of(max_guidance_reuse=1, guidance_reuse_below=1.0))
    two_steps(pipeline, num_inference_steps=4, true_cfg_scale=3.0, negative_prompt=[" "] * len(PROMPTS))
    with_prompt, without = elastic.trace.branches
    assert elastic.trace.array("reuse", with_prompt).mean(axis=(1, 2)).tolist() == [0, 0, 0, 0]
    assert elastic.trace.array("reuse", without).mean(axis=(1, 2)).tolist() == [0, 1, 0, 1]
    pipeline(PROMPTS[0], num_inference_steps=1, height=16, width=16, true_cfg_scale=3.0, negative_prompt=" ")
    assert elastic.trace.array("reuse").max() == 0, "a new run"


def test_without_guidance_it_is_a_pipeline_without(pipeline: Any) -> None:
    """Where it begins below the last noise level, the image is that of the branch with the prompt alone."""
    guidance: dict[str, Any] = {"true_cfg_scale": 3.0, "negative_prompt": [" "] * len(PROMPTS)}
    unguided, guided = two_steps(pipeline), two_steps(pipeline, **guidance)
    elastic = elastic_dit.elasticize(pipeline)
    elastic.guidance_from = 0.01
    torch.testing.assert_close(two_steps(pipeline, **guidance), unguided, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(guided, unguided, atol=1e-3)
    with_prompt, without = elastic.trace.branches
    assert elastic.trace.array("reuse", with_prompt).max() == 0
    assert elastic.trace.array("reuse", without).min() == 1


def test_a_training_step_reaches_routers_and_backbone(pipeline: Any, images: list[Image.Image]) -> None:
    family = family_of(pipeline)
    elastic = elastic_dit.elasticize(pipeline, ElasticConfig())
    elastic.train_mode()
    latents = family.encode_images(images)
    noisy = draw(family.pack(latents), FlowConfig(), torch.Generator().manual_seed(0))
    inputs = family.inputs(noisy.tokens, noisy.sigma, family.encode_prompts(PROMPTS), latents.shape)
    velocity = pipeline.transformer(**inputs, return_dict=False)[0]
    loss = flow_loss(velocity, noisy, FlowConfig()).mean() + elastic.losses().total
    loss.backward()
    for router in elastic.routers:
        gradient = router.gate_head.bias.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
    weight = pipeline.transformer.proj_out.weight.grad
    assert weight is not None
    assert weight.abs().sum() > 0


def test_generate_gives_each_prompt_an_image_of_its_own_seed(pipeline: Any) -> None:
    family = family_of(pipeline)
    images = family.generate(PROMPTS, seed=3, size=SIZE)
    assert [image.size for image in images] == [(SIZE, SIZE)] * 2
    assert images[0].tobytes() != images[1].tobytes()
    (again,) = family.generate(PROMPTS[:1], seed=3, size=SIZE)
    difference = np.asarray(images[0], int) - np.asarray(again, int)
    assert abs(difference).max() <= 1  # the same, but for the rounding of another batch size


def test_an_unknown_pipeline_is_named_with_the_known_ones() -> None:
    class SomePipeline:
        pass

    with pytest.raises(BackboneError, match=r"SomePipeline.*EmojiFluxPipeline, FluxPipeline, QwenImagePipeline"):
        family_of(SomePipeline())
