"""How often a model gets scenes right: several images of each prompt, by their mean. N prompts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from elastic_dit.evaluation.difficulty import correlation, scene_difficulty
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.scene_eval import Prompt, is_right
from elastic_dit.evaluation.sprite_detector import SpriteDetector
from elastic_dit.evaluation.variants import Progress


def scene_scores(
    pipe: Any,
    prompts: Sequence[Prompt],
    detector: SpriteDetector,
    settings: SampleSettings,
    *,
    images: int = 1,
    batch: int = 64,
    progress: Progress = lambda label, done, total: None,
) -> Tensor:
    """The share of each prompt's images that show what it asks for, (N,) in 0..1.

    Args:
        pipe: as it stands.
        prompts: drawn in their order, all of them once before any of them again.
        detector: says what an image shows.
        settings: steps, guidance, size and shift.
        images: of each prompt, each of its own seed.
        batch: images in a forward.
        progress: see `Progress`.
    """
    right: list[bool] = []
    for start in range(0, len(prompts) * images, batch):
        progress("scenes", start, len(prompts) * images)
        drawn = range(start, min(start + batch, len(prompts) * images))
        some = [prompts[number % len(prompts)] for number in drawn]
        found = detector.detect(sample_images(pipe, [one.caption for one in some], drawn, settings))
        right += [is_right(one.scene, seen) for one, seen in zip(some, found, strict=True)]
    return torch.tensor(right).view(images, len(prompts)).float().mean(dim=0)


def followed(spent: Tensor, scores: Tensor, prompts: Sequence[Prompt]) -> dict[str, tuple[float, float, float]]:
    """What the compute spent on prompts goes with: rank correlations, each with its 95% interval.

    Args:
        spent: on each prompt, (N,).
        scores: of each prompt from the most compute to the least, (N, S).
        prompts: N prompts.
    """
    against = {
        "scene_difficulty": torch.tensor([scene_difficulty(prompt) for prompt in prompts]),
        "failure": 1 - scores[:, 0],
        "gain": scores[:, 0] - scores[:, -1],
    }
    found = {name: correlation(spent[None].numpy(), values.numpy()) for name, values in against.items()}
    return {name: (one.value, *one.interval) for name, one in found.items()}
