"""How close an image is to the dense model's: PSNR and SSIM."""

import math
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor


class Fidelity(NamedTuple):
    """Of one image against its reference."""

    psnr: float | None
    """Peak signal-to-noise ratio in dB; None where the images are equal."""
    ssim: float
    """Structural similarity, 1 where the images are equal."""


def fidelity(image: Image.Image, reference: Image.Image) -> Fidelity:
    """PSNR and SSIM of an image of at least 11 x 11 pixels; both images are read as 8-bit RGB."""
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    a, b = _pixels(image), _pixels(reference)
    psnr = float(peak_signal_noise_ratio(a, b, data_range=1.0))
    ssim = structural_similarity_index_measure(a, b, data_range=1.0)
    assert isinstance(ssim, Tensor)
    return Fidelity(psnr if math.isfinite(psnr) else None, float(ssim))


def mean_fidelity(values: list[Fidelity]) -> Fidelity:
    """Means over images; PSNR over the images that differ from their references."""
    psnr = [value.psnr for value in values if value.psnr is not None]
    return Fidelity(float(np.mean(psnr)) if psnr else None, float(np.mean([value.ssim for value in values])))


def _pixels(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in 0..1."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 255
