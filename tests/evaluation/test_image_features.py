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
    distance,
    features_of,
)


def test_the_distance_grows_with_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(200, FEATURES, generator=generator)
    shifts = [distance(torch.randn(200, FEATURES, generator=generator) + shift, real) for shift in (0.0, 0.1, 0.3)]
    assert shifts[0].kernel == pytest.approx(0, abs=4 * shifts[0].kernel_error)
    assert shifts[0].kernel < shifts[1].kernel < shifts[2].kernel
    assert shifts[0].frechet < shifts[1].frechet < shifts[2].frechet


def test_the_error_is_that_of_repeated_samples() -> None:
    """Twenty independent pairs of samples: their spread is what one of them says of itself, within a factor of two."""
    generator = torch.Generator().manual_seed(0)

    def sample() -> torch.Tensor:
        return torch.randn(100, 1, generator=generator).repeat(1, FEATURES)

    found = [distance(sample(), sample()) for _ in range(20)]
    spread = np.std([one.kernel for one in found])
    assert 0.5 < np.mean([one.kernel_error for one in found]) / spread < 2


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
