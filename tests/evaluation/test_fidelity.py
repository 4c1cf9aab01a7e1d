import numpy as np
import pytest
from PIL import Image

from elastic_dit.evaluation.fidelity import fidelity, mean_fidelity


def _image(offset: int = 0) -> Image.Image:
    ramp = np.arange(32 * 32 * 3, dtype=np.int64).reshape(32, 32, 3) % 200
    return Image.fromarray((ramp + offset).astype(np.uint8))


def test_equal_images_have_no_psnr_and_ssim_one() -> None:
    close = fidelity(_image(), _image())
    assert close.psnr is None
    assert close.ssim == pytest.approx(1)


def test_psnr_is_its_definition() -> None:
    close = fidelity(_image(5), _image())
    assert close.psnr == pytest.approx(20 * np.log10(255 / 5), abs=1e-3)
    assert 0.9 < close.ssim < 1


def test_a_worse_image_scores_lower() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    near, far = fidelity(_image(5), _image()), fidelity(Image.fromarray(noise), _image())
    assert near.psnr is not None
    assert far.psnr is not None
    assert far.psnr < near.psnr
    assert far.ssim < near.ssim


def test_the_mean_leaves_out_equal_images() -> None:
    close = [fidelity(_image(5), _image()), fidelity(_image(), _image())]
    assert mean_fidelity(close).psnr == close[0].psnr
    assert mean_fidelity(close).ssim == pytest.approx((close[0].ssim + close[1].ssim) / 2)
    assert mean_fidelity(close[1:]).psnr is None
