"""How close a model's images are to the dense one's: the same prompts, seeds and steps for all; N prompts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from elastic_dit.evaluation.fidelity import fidelity
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.variants import Progress, interval, variants

ENDLESS = 99.0
"""PSNR in dB that stands for equal images, whose true one is infinite."""


def judge_images(
    pipe: Any,
    adapters: Sequence[str],
    budgets: Sequence[float],
    prompts: Sequence[str],
    settings: SampleSettings,
    *,
    batch: int,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> tuple[list[dict[str, Any]], dict[str, list[float]]]:
    """A row for each model but the dense one, and the raw values by image.

    FLOPs are a share of the dense blocks' in the same run, routers included; what is reused costs nothing.

    Args:
        pipe: the dense pipeline; adapters are put on its transformer in turn.
        adapters: folders or Hub ids.
        budgets: see `variants`.
        prompts: N texts; prompt i has seed `seed + i`.
        settings: steps, guidance and size.
        batch: images in a forward.
        seed: of the first prompt.
        progress: see `Progress`.
    """
    dense: list[Image.Image] = []
    rows: list[dict[str, Any]] = []
    raw: dict[str, list[float]] = {}
    for name, budget, elastic in variants(pipe.transformer, adapters, budgets):
        images: list[Image.Image] = []
        spent = whole = 0.0
        for start in range(0, len(prompts), batch):
            progress(f"images, {name}", start, len(prompts))
            some = prompts[start : start + batch]
            images += sample_images(pipe, some, range(seed + start, seed + start + len(some)), settings)
            if elastic is not None:
                spent, whole = spent + elastic.trace.flops_spent, whole + elastic.trace.flops_dense
        if elastic is None:
            dense = images
            continue
        means, values = closeness(images, dense)
        raw |= {f"{name}_{budget}_{key}": each for key, each in values.items()}
        rows.append({"name": name, "budget": budget, "flops_share": spent / whole} | means)
    return rows, raw


def closeness(
    images: Sequence[Image.Image], dense: Sequence[Image.Image]
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """Mean PSNR and SSIM with their 95% intervals, and the raw values by image."""
    close = [fidelity(*pair) for pair in zip(images, dense, strict=True)]
    psnr = [ENDLESS if one.psnr is None else one.psnr for one in close]
    ssim = [one.ssim for one in close]
    means: dict[str, Any] = {}
    for name, values in (("psnr", np.array(psnr)), ("ssim", np.array(ssim))):
        means |= {name: float(values.mean()), f"{name}_interval": interval(values)}
    return means, {"psnr_db": psnr, "ssim": ssim}
