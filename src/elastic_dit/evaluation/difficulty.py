"""How much a prompt asks for, and whether what is spent on it follows: rank correlation. N samples, K strata."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from elastic_dit.evaluation.scene_eval import Prompt, names_style
from elastic_dit.evaluation.variants import RESAMPLES, Array


class Correlation(NamedTuple):
    """A rank correlation."""

    value: float
    """Mean over the strata."""
    interval: tuple[float, float]
    """95%, by bootstrap over samples."""
    by_stratum: list[float]
    """Of each stratum."""


def scene_difficulty(prompt: Prompt) -> int:
    """Objects in the scene, plus attributes that the caption asks for.

    An attribute is a paint (one for each kind of thing), a number above one, a position, a style or a background that
    is named.
    """
    scene = prompt.scene
    paints = {item.label for item in scene.objects if item.repainted}
    others = (
        scene.count > 1,
        scene.relation is not None,
        names_style(prompt.caption, scene.style),
        names_background(prompt),
    )
    return len(scene.objects) + len(paints) + sum(others)


def names_background(prompt: Prompt) -> bool:
    """Whether the caption says what the scene is on: "on white", "on a striped green background"."""
    color = prompt.scene.background.color
    return re.search(rf"\bon (?:an? )?(?:\w+ )?{color}\b", prompt.caption, re.IGNORECASE) is not None


def quarters(difficulty: Sequence[float]) -> tuple[list[int], list[int]]:
    """The easiest and the hardest quarter, as indices; equals in their order."""
    order = sorted(range(len(difficulty)), key=difficulty.__getitem__)
    size = max(1, len(order) // 4)
    return sorted(order[:size]), sorted(order[-size:])


def correlation(spent: Array, difficulty: Array, seed: int = 0) -> Correlation:
    """Spearman's rank correlation within each stratum, and its mean: what strata have between them does not count.

    Args:
        spent: (K, N).
        difficulty: (K, N), or (N,) where it is the same in every stratum.
        seed: of the bootstrap, which draws the same samples in all strata.
    """
    difficulty = np.broadcast_to(difficulty, spent.shape)
    random = np.random.default_rng(seed)
    draws = [random.integers(0, spent.shape[1], spent.shape[1]) for _ in range(RESAMPLES)]
    means = [np.mean(_by_stratum(spent[:, draw], difficulty[:, draw])) for draw in draws]
    low, high = np.quantile(means, (0.025, 0.975))
    own = _by_stratum(spent, difficulty)
    return Correlation(float(np.mean(own)), (float(low), float(high)), own)


def spearman(first: Array, second: Array) -> float:
    """Rank correlation of two (N,); 0 where one of them is the same everywhere and tells nothing apart."""
    a, b = ranks(first), ranks(second)
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) and np.ptp(b) else 0.0


def ranks(values: Array) -> Array:
    """Places from 1 on in rising order, (N,); equal values share the mean of theirs."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _by_stratum(spent: Array, difficulty: Array) -> list[float]:
    return [spearman(*pair) for pair in zip(spent, difficulty, strict=True)]
