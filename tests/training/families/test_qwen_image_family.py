"""What only Qwen-Image has: padded text with a mask, and guidance by a negative prompt in sample grids."""

from typing import Any

import pytest
import torch

import elastic_dit
from elastic_dit.training.families.base import family_of

SHORT, LONG = "a cat", "a cat beside a much longer description"


def inputs_of(pipeline: Any, prompts: list[str], seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 16, 16, generator=generator).expand(len(prompts), -1, -1)
    family = family_of(pipeline)
    sigma = torch.full((len(prompts),), 0.7)
    shape = torch.Size([len(prompts), 4, 8, 8])
    return family.inputs(tokens, sigma, family.encode_prompts(prompts), shape)


def test_stored_text_is_padded_to_one_length(qwen_image: Any) -> None:
    family = family_of(qwen_image)
    text = family.encode_prompts([SHORT, LONG])
    assert text["states"].shape == (2, 512, 16)
    lengths = text["mask"].sum(dim=1).tolist()
    assert lengths[1] - lengths[0] == len(LONG) - len(SHORT)  # the toy tokenizer spells
    for states, mask in zip(text["states"], text["mask"], strict=True):
        assert states[mask == 0].abs().max() == 0
        assert states[mask == 1].abs().amin(dim=0).max() > 0


def test_a_long_caption_is_cut_where_the_pipeline_cuts_it(qwen_image: Any) -> None:
    text = family_of(qwen_image).encode_prompts(["cat " * 500])
    assert text["states"].shape == (1, 512, 16)
    assert text["mask"].sum() == 512


def test_a_batch_is_as_long_as_its_longest_caption(qwen_image: Any) -> None:
    alone, together = inputs_of(qwen_image, [SHORT]), inputs_of(qwen_image, [SHORT, LONG])
    assert alone["encoder_hidden_states_mask"] is None  # nothing padded: the pipeline passes none either
    mask = together["encoder_hidden_states_mask"]
    assert mask.dtype == torch.bool
    assert mask.shape == together["encoder_hidden_states"].shape[:2]
    assert mask[1].all()
    assert mask[0].sum() == alone["encoder_hidden_states"].shape[1]


@torch.no_grad()
def test_padding_does_not_change_the_velocity(qwen_image: Any) -> None:
    alone = qwen_image.transformer(**inputs_of(qwen_image, [SHORT]), return_dict=False)[0]
    together = qwen_image.transformer(**inputs_of(qwen_image, [SHORT, LONG]), return_dict=False)[0]
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(together[1], together[0], atol=1e-4)


@pytest.mark.parametrize("router_input", ["image", "joint"])
@torch.no_grad()
def test_padding_does_not_change_a_router(qwen_image: Any, router_input: str) -> None:
    elastic = elastic_dit.elasticize(qwen_image, elastic_dit.ElasticConfig.of(router_input=router_input, init="random"))
    qwen_image.transformer(**inputs_of(qwen_image, [SHORT]))
    alone = elastic.trace.array("keep_prob")[..., 0]
    elastic.reset()
    qwen_image.transformer(**inputs_of(qwen_image, [SHORT, LONG]))
    together = elastic.trace.array("keep_prob")[..., 0]
    assert alone == pytest.approx(together, abs=1e-5)


def test_sample_grids_are_made_with_guidance(qwen_image: Any) -> None:
    elastic = elastic_dit.elasticize(qwen_image)
    family_of(qwen_image).generate([SHORT, LONG], seed=0, size=32)
    assert elastic.trace.branches == ["cond", "uncond"]
