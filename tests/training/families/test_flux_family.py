"""What only FLUX has: the guidance embedding and text of a fixed length."""

from typing import Any

import pytest
import torch

from elastic_dit.training.families.base import family_of
from elastic_dit.training.families.flux import GUIDANCE_SCALE


def inputs_of(pipeline: Any) -> dict[str, Any]:
    family = family_of(pipeline)
    text = family.encode_prompts(["a", "b"])
    return family.inputs(torch.zeros(2, 16, 16), torch.tensor([0.2, 0.9]), text, torch.Size([2, 4, 8, 8]))


def test_guidance_goes_only_to_distilled_models(pipeline: Any) -> None:
    distilled = pipeline.transformer.config.guidance_embeds
    inputs = inputs_of(pipeline)
    assert ("guidance" in inputs) == distilled
    if distilled:
        assert inputs["guidance"].tolist() == [GUIDANCE_SCALE] * 2


def test_captions_of_any_length_have_one_shape(flux: Any) -> None:
    family = family_of(flux)
    short = family.encode_prompts(["cat"])
    long = family.encode_prompts(["a very long caption about a cat " * 40])
    assert short["states"].shape == long["states"].shape == (1, 512, 24)
    assert short["pooled"].shape == long["pooled"].shape == (1, 16)


def test_positions_are_rows_and_columns(flux: Any) -> None:
    ids = inputs_of(flux)["img_ids"]
    assert ids.shape == (16, 3)
    assert ids[6].tolist() == [0, 1, 2]  # the seventh of 4x4 tokens


def test_timestep_is_sigma(flux: Any) -> None:
    torch.testing.assert_close(inputs_of(flux)["timestep"], torch.tensor([0.2, 0.9]))


@pytest.mark.parametrize("size", [(8, 8), (8, 12)])
def test_tokens_are_2x2_patches(flux: Any, size: tuple[int, int]) -> None:
    height, width = size
    latents = torch.arange(2 * 4 * height * width).float().reshape(2, 4, height, width)
    tokens = family_of(flux).pack(latents)
    assert tokens.shape == (2, height * width // 4, 16)
    assert torch.equal(tokens[1, 1].reshape(4, 2, 2), latents[1, :, :2, 2:4])
