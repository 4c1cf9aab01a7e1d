"""What ranges of noise levels count for, measured on the small model's pipeline with random weights."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import Batches, whole
from elastic_dit.pruning.noise_levels import Denoising, denoising_of, weigh
from elastic_dit.training.data.cache import EncodedDataset
from elastic_dit.training.families.base import Family
from elastic_dit.training.flow import NoisyBatch

STEPS = 4


def batches_at(denoising: Denoising) -> Batches:
    tokens = denoising.family.pack(torch.randn(denoising.latent_shape, generator=torch.Generator().manual_seed(1)))
    sigma = torch.full((len(tokens),), 0.5)
    inputs = denoising.family.inputs(tokens, sigma, denoising.text, denoising.latent_shape)
    return [(inputs, NoisyBatch(tokens, tokens, sigma))]


@pytest.fixture
def measured(family: Family, pairs: EncodedDataset) -> Callable[[int], tuple[ElasticModel, Denoising]]:
    def make(steps: int) -> tuple[ElasticModel, Denoising]:
        denoising = denoising_of(family, pairs, 4, steps, guidance=3.0)
        return whole(family.pipeline, batches_at(denoising)), denoising

    return make


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_denoising_is_what_the_pipeline_does(family: Family, pairs: EncodedDataset, guidance: float) -> None:
    denoising = denoising_of(family, pairs, 2, STEPS, guidance)
    prompts = ["a cat", "two dogs"]
    text = family.encode_prompts(prompts)
    empty = family.encode_prompts(["", ""]) if denoising.empty else None
    denoising = Denoising(family, text, empty, denoising.latent_shape, STEPS, guidance)
    noise = torch.randn(denoising.latent_shape, generator=torch.Generator().manual_seed(0))
    wanted: Tensor = family.pipeline(
        prompts,
        height=16,
        width=16,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=family.pack(noise),
        output_type="latent",
    ).images
    with torch.no_grad():
        torch.testing.assert_close(denoising.run(lambda step: None), wanted, rtol=1e-4, atol=1e-5)


def test_levels_share_steps_and_worth(measured: Callable[[int], tuple[ElasticModel, Denoising]]) -> None:
    elastic, denoising = measured(8)
    levels = weigh(elastic, denoising, 3)
    assert [level.visits for level in levels] == pytest.approx([2 / 8, 3 / 8, 3 / 8])
    assert sum(level.worth for level in levels) == pytest.approx(1)
    assert all(level.worth > 0 for level in levels)


def test_worth_is_what_an_error_does_to_the_image(
    measured: Callable[[int], tuple[ElasticModel, Denoising]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a velocity does not depend on x, errors add up: three steps move the image three times as far as one."""
    elastic, denoising = measured(4)
    forced: list[Plan | None] = [None]
    monkeypatch.setattr(ElasticModel, "force", lambda self, plan: forced.append(plan))

    def velocity(self: Denoising, tokens: Tensor, sigma: float, text: object) -> Tensor:
        return torch.full_like(tokens, float(forced[-1] is not None))

    monkeypatch.setattr(Denoising, "velocity", velocity)
    levels = weigh(elastic, denoising, 2)  # noise levels 1/4 | 1/2, 3/4, 1: the square of 1 and of 3 steps
    assert [level.worth for level in levels] == pytest.approx([0.1, 0.9])


def test_more_levels_than_steps(measured: Callable[[int], tuple[ElasticModel, Denoising]]) -> None:
    elastic, denoising = measured(2)
    with pytest.raises(ConfigError, match="2 steps visit 2 of 4 levels of noise; ask for fewer"):
        weigh(elastic, denoising, 4)
