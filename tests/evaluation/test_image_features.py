"""Distances, the caption regression and ranks, on features whose answer is known; and the published network."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from elastic_dit.errors import CheckpointError
from elastic_dit.evaluation.image_features import (
    FEATURES,
    CaptionRegression,
    EfficientNetLite0,
    caption_ranks,
    features_of,
    frechet_distance,
    kernel_distances,
    kernel_error,
)


def test_the_distance_grows_with_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, FEATURES, generator=generator)
    shifted = [torch.randn(200, FEATURES, generator=generator) + shift for shift in (0.0, 0.1, 0.3)]
    none, some, much = (kernel_distances(features, real) for features in shifted)
    assert none.mean() == pytest.approx(0, abs=4 * none.std())
    assert none.mean() < some.mean() < much.mean()
    frechet = [frechet_distance(features, real) for features in shifted]
    assert frechet == sorted(frechet)


def test_the_error_is_that_of_repeated_samples() -> None:
    """Twenty independent pairs of samples: their spread is what one of them says of itself, within a factor of two."""
    generator = torch.Generator().manual_seed(0)

    def sample() -> torch.Tensor:
        return torch.randn(100, 1, generator=generator).repeat(1, FEATURES)

    found = np.stack([kernel_distances(sample(), sample()) for _ in range(20)])
    spread = found.mean(axis=1).std()
    assert 0.5 < np.mean([kernel_error(halves[None]) for halves in found]) / spread < 2
    assert kernel_error(found) > spread / np.sqrt(20)  # runs that differ say so


def test_halves_of_the_same_prompts_are_halved_alike() -> None:
    """What a little noise on the same images changes is known far better than either distance."""
    generator = torch.Generator().manual_seed(0)
    real, images = (torch.randn(100, 1, generator=generator).repeat(1, FEATURES) for _ in range(2))
    one, other = (kernel_distances(some, real) for some in (images, images + 0.01))
    assert kernel_error((one - other)[None]) < 0.2 * kernel_error(one[None])


def test_the_regression_finds_a_linear_map(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    features, weights = torch.randn(800, 30, generator=generator), torch.randn(30, 8, generator=generator)
    captions = features @ weights + 3
    regression = CaptionRegression.fit(features[:600], captions[:600])
    torch.testing.assert_close(regression(features[600:]), captions[600:], rtol=0.05, atol=0.3)
    regression.save(tmp_path / "retrieval.safetensors")
    again = CaptionRegression.load(tmp_path / "retrieval.safetensors")
    torch.testing.assert_close(again(features), regression(features), rtol=0.01, atol=0.05)
    with pytest.raises(CheckpointError, match="judge train"):
        CaptionRegression.load(tmp_path / "none.safetensors")


def test_ranks() -> None:
    captions = torch.eye(4)
    predicted = torch.tensor([[1.0, 0.5, 0.0, 0.0], [1.0, 0.5, 0.2, 0.0]])
    assert caption_ranks(predicted, [0, 2], captions).tolist() == [0, 2]


@pytest.mark.skipif(importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="needs elastic-dit[judge]")
def test_the_network_tells_pictures_apart() -> None:
    flat = [Image.new("RGB", (64, 64), color) for color in ("red", "red", "blue")]
    red, again, blue = features_of(EfficientNetLite0(), flat)
    assert red.shape == (FEATURES,)
    torch.testing.assert_close(red, again)
    assert (red - blue).norm() > 0.1 * red.norm()
