"""All scores of a set of generated images: SceneEval, FD and KD, retrieval, and fidelity to the dense model's."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from elastic_dit.evaluation.ablation import two_level_interval
from elastic_dit.evaluation.fidelity import fidelity
from elastic_dit.evaluation.image_features import (
    CaptionRegression,
    EfficientNetLite0,
    caption_ranks,
    features_of,
    frechet_distance,
    kernel_distances,
    kernel_error,
)
from elastic_dit.evaluation.images import ENDLESS
from elastic_dit.evaluation.judge_data import Pictures
from elastic_dit.evaluation.scene_eval import Prompt, judge_scenes
from elastic_dit.evaluation.sprite_detector import DETECTOR, SpriteDetector
from elastic_dit.evaluation.variants import RESAMPLES, Array, Progress
from elastic_dit.models.minilm import encode, load_minilm
from elastic_dit.training.data.scenes import TAGS

REGRESSION = "retrieval.safetensors"
"""In a judge's folder, beside the detector."""
RECALLS = (1, 5)
KERNEL = "kernel_of_halves"
"""The samples that are no images."""
BATCH, WORDS = 256, 32
"""Texts at a time, and the most tokens of one."""
ByTask = Mapping[str, Sequence[float] | Array]


class Scored(NamedTuple):
    """What one set of images is worth."""

    results: dict[str, Any]
    samples: dict[str, list[float]]
    """By name: a value for each image, in the order of the prompts; SceneEval's by task, KD's for each half of them."""


@dataclass(frozen=True)
class Tools:
    """What scores images, whatever they were made for."""

    detector: SpriteDetector
    regression: CaptionRegression
    network: nn.Module
    """Features (B, E) of images (B, 3, H, W) in 0..1."""

    @classmethod
    def load(cls, folder: Path) -> "Tools":
        """From a folder that `elastic-dit judge train` wrote.

        Raises:
            CheckpointError: no such folder, or another one.
        """
        detector = SpriteDetector.load(folder / DETECTOR)
        return cls(detector, CaptionRegression.load(folder / REGRESSION), EfficientNetLite0())


class Judge:
    """Scores images made for prompts.

    Args:
        tools: what scores.
        prompts: N prompts.
        real: real images of such scenes, of the same size.
        progress: see `Progress`.
    """

    def __init__(
        self,
        tools: Tools,
        prompts: Sequence[Prompt],
        real: Pictures,
        progress: Progress = lambda label, done, total: None,
    ) -> None:
        self.tools, self.prompts, self.progress = tools, prompts, progress
        self.pictures, self.real = real, features_of(tools.network, real.images, progress)
        self.captions = list(dict.fromkeys(prompt.caption for prompt in prompts))
        self.sentences = sentence_vectors(self.captions)
        self.own = [self.captions.index(prompt.caption) for prompt in prompts]

    @cached_property
    def digest(self) -> str:
        """Of all that its scores depend on beside the images."""
        detector, regression = self.tools.detector.state_dict(), vars(self.tools.regression)
        tensors = [*detector.values(), *regression.values(), self.real, self.sentences]
        hashed = hashlib.sha256(json.dumps(self.own).encode())
        for tensor in tensors:
            hashed.update(tensor.contiguous().numpy().tobytes())
        return hashed.hexdigest()

    def truth(self) -> dict[str, float]:
        """SceneEval of the real images by task: what a perfect model would have."""
        return _by_task(judge_scenes(self.pictures.prompts, self.tools.detector.detect(self.pictures.images)))

    def __call__(self, images: Sequence[Image.Image], dense: Sequence[Image.Image] | None = None) -> Scored:
        """Score N images, one a prompt.

        Args:
            images: what is scored.
            dense: the dense model's for the same prompts and seeds; None: these are.
        """
        by_task = judge_scenes(self.prompts, self.tools.detector.detect(images))
        features = features_of(self.tools.network, images, self.progress)
        ranks = caption_ranks(self.tools.regression(features), self.own, self.sentences)
        results: dict[str, Any] = {
            "scene_eval": _by_task(by_task),
            "overall": overall(by_task),
            "overall_interval": overall_interval(by_task),
            "retrieval": {f"R@{k}": float((ranks < k).mean()) for k in RECALLS},
        }
        halves = kernel_distances(features, self.real)
        results |= {"frechet": frechet_distance(features, self.real), "kernel": float(halves.mean())}
        results |= {"kernel_error": kernel_error(halves[None])}
        samples = {f"scene_eval_{tag}": list(values) for tag, values in by_task.items()}
        samples |= {"rank": ranks.tolist(), KERNEL: halves.tolist()}
        if dense is not None:
            close = [fidelity(*pair) for pair in zip(images, dense, strict=True)]
            samples["psnr_db"] = [ENDLESS if one.psnr is None else one.psnr for one in close]
            samples["ssim"] = [one.ssim for one in close]
            results |= {name: float(np.mean(samples[name])) for name in ("psnr_db", "ssim")}
        return Scored(results, samples)


def together(scored: Sequence[Scored]) -> dict[str, Any]:
    """The mean of all results over R runs of one recipe; intervals and errors are over runs and images."""
    means = _mean([one.results for one in scored])
    errors = {"overall_interval": overall_interval(_tasks(scored)), "kernel_error": kernel_error(_halves(scored))}
    return means | errors


def _mean(values: Sequence[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _mean([value[name] for value in values]) for name in values[0]}
    return np.mean(values, axis=0).tolist()


def _by_task(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {tag: float(np.mean(some)) for tag, some in values.items() if some}


def overall(by_task: ByTask) -> float:
    """GenEval's: the mean over the six tasks."""
    return float(np.mean([np.mean(by_task[tag]) for tag in TAGS]))


def overall_interval(by_task: ByTask, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of `overall`, by bootstrap over the images of each task, and over the runs (R, N) if several.

    Given the differences of two models image by image, that of their difference.
    """
    random = np.random.default_rng(seed)
    values = {tag: np.atleast_2d(np.asarray(by_task[tag], dtype=float)) for tag in TAGS}
    runs = len(values[TAGS[0]])
    drawn = random.multinomial(runs, np.full(runs, 1 / runs), RESAMPLES) / runs  # (resamples, R): weights of the runs
    means: Array = np.zeros(RESAMPLES)
    for tag in TAGS:
        count = values[tag].shape[1]
        chosen = values[tag][:, random.integers(0, count, (RESAMPLES, count))].mean(axis=2)  # (R, resamples)
        means += (drawn.T * chosen).sum(axis=0) / len(TAGS)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def difference(one: Sequence[Scored], other: Sequence[Scored]) -> dict[str, Any]:
    """SceneEval, R@5 and KD of the first less the second's, image by image or half by half, with 95% intervals.

    Args:
        one: its runs.
        other: its runs. Runs are paired in their order; fewer than the other has are taken again from the first on.
    """
    runs = max(len(one), len(other))
    one, other = ([some[index % len(some)] for index in range(runs)] for some in (one, other))
    theirs = _tasks(other)
    apart = {tag: mine - theirs[tag] for tag, mine in _tasks(one).items()}
    hits = [np.array([scored.samples["rank"] for scored in some]) < RECALLS[-1] for some in (one, other)]  # (R, N)
    recall = hits[0].astype(float) - hits[1]
    halves = _halves(one) - _halves(other)
    kernel, reach = float(halves.mean()), 1.96 * kernel_error(halves)
    return {
        "overall": overall(apart),
        "overall_interval": overall_interval(apart),
        "recall": float(recall.mean()),
        "recall_interval": two_level_interval(recall),
        "kernel": kernel,
        "kernel_interval": (kernel - reach, kernel + reach),
    }


def _tasks(scored: Sequence[Scored]) -> dict[str, Array]:
    """SceneEval's values by task, (R, N)."""
    return {tag: np.array([one.samples[f"scene_eval_{tag}"] for one in scored]) for tag in TAGS}


def _halves(scored: Sequence[Scored]) -> Array:
    """The kernel distances of all halves, (R, HALVES)."""
    return np.array([one.samples[KERNEL] for one in scored])


def sentence_vectors(texts: Sequence[str]) -> Tensor:
    """MiniLM's mean over the words (N, D)."""
    model, tokenizer = load_minilm()
    parts = [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]
    return torch.cat([encode(model, tokenizer, list(part), WORDS)[1] for part in parts])
