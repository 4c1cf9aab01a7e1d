"""What adaptive compute could gain at most: one model that knows every budget, and the best way to share one out.

Each forward can be had at several budgets, and its loss at each is measured. Then a total is shared out over groups of
forwards so that the mean loss is least: over noise levels, over prompts, over single samples. A router that sees what a
group has in common can do as well at best; that equal shares are as good says that there is nothing to see. Shares are
chosen with one noise and scored with another, so that chance is no gain. And what can be seen is tried: the losses are
predicted from a block's input by linear regression on other scenes. K noise levels, N scenes, B budgets, G groups, F
features.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.difficulty import scene_difficulty
from elastic_dit.evaluation.flow_loss import flow_losses
from elastic_dit.evaluation.held_out import HeldOut, NoisyPairs
from elastic_dit.evaluation.variants import Array, Progress, interval
from elastic_dit.pruning.allocation import RIDGE, reading
from elastic_dit.records import Environment, RunRecord
from elastic_dit.training.families.base import Family
from elastic_dit.verbs import load, restore

Groups = npt.NDArray[np.int64]
"""The group of each forward, (K, N), numbered from 0."""

WAYS = ("equal", "noise level", "prompt", "sample", "sample and noise level")
"""What shares may differ by. A prompt is known by what it asks for (`scene_difficulty`)."""
SEEN = "prediction"
"""Shares that differ by what can be predicted of each forward."""


def study_allocation(
    family: Family,
    adapter: str,
    scenes: Sequence[HeldOut],
    resolution: int,
    levels: Sequence[float],
    budgets: Sequence[float],
    *,
    batch: int,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = lambda label, done, total: None,
) -> RunRecord:
    """Measure the flow loss of true images with noise at every budget, and share each mean budget out.

    Args:
        family: of the dense pipeline.
        adapter: folder or Hub id; its routers know a range of budgets.
        scenes: N, with true images.
        resolution: side of the images in pixels.
        levels: K noise levels.
        budgets: at least three, rising: the lowest and the highest are ends that shares may reach.
        batch: images in a forward.
        seed: of the noise; the scoring noise has the next.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `Progress`.

    Raises:
        ConfigError: the adapter knows one budget alone, or not these.
    """
    transformer = family.pipeline.transformer
    if len(budgets) < 3:
        raise ConfigError(f"{len(budgets)} budgets leave nothing to share out; expected three or more")
    restore(transformer)
    noises = [NoisyPairs(family, scenes, resolution, batch, seed + number) for number in range(2)]
    progress("dense", 0, 0)
    with reading(transformer) as read:
        dense = [_losses(family, None, noise, levels)[0] for noise in noises]  # 2 x (K, N)
    seen = torch.cat(read).double().cpu().reshape(2, len(levels), len(scenes), -1).numpy()  # (2, K, N, F)
    elastic = load(transformer, adapter)
    try:
        if elastic.config.budget_range is None:
            raise ConfigError(f"{adapter} knows one budget; expected routers that know a range, to share one out")
        own = elastic.config.model_dump()
        losses: list[list[Array]] = []
        shares: list[float] = []
        for number, budget in enumerate(budgets):
            progress(f"budget {budget:g}", number, len(budgets))
            elastic.budget = budget
            measured = [_losses(family, elastic, noise, levels) for noise in noises]
            losses.append([loss for loss, _ in measured])
            shares.append(float(np.mean([share for _, share in measured])))
    finally:
        restore(transformer)
    excess = np.array(losses).transpose(1, 2, 3, 0) - np.array(dense)[..., None]  # (2, K, N, B)
    difficulty = [scene_difficulty(scene.prompt) for scene in scenes]
    results = {
        "shares": shares,
        "rows": [
            {
                "budget": budget,
                "flops_share": share,
                "ways": shared_out(excess, np.array(shares), share, difficulty, seen),
            }
            for budget, share in zip(budgets[1:-1], shares[1:-1], strict=True)
        ],
    }
    return RunRecord(
        kind="study-allocation",
        command=command,
        environment=Environment.here(transformer.device),
        config=(config or {})
        | {"adapter": adapter, "elastic": own, "scenes": len(scenes), "levels": list(levels), "seed": seed}
        | {"budgets": list(budgets), "batch": batch, "resolution": resolution},
        results=results,
        samples={"difficulty": [float(value) for value in difficulty]}
        | {
            f"noise_{noise}_sigma_{level:g}_budget_{budget:g}_excess": excess[noise, k, :, b].tolist()
            for noise in range(2)
            for k, level in enumerate(levels)
            for b, budget in enumerate(budgets)
        },
    )


def shared_out(
    excess: Array, shares: Array, total: float, difficulty: Sequence[int], seen: Array
) -> dict[str, dict[str, Any]]:
    """What each of `WAYS` to share out a mean share of FLOPs loses to the dense model.

    Args:
        excess: loss over dense with either noise, (2, K, N, B).
        shares: of FLOPs at each budget, rising, (B,).
        total: the mean share.
        difficulty: of each scene, (N,).
        seen: features of each forward, (2, K, N, F).
    """
    levels, samples = excess.shape[1:3]
    by_level, by_sample = np.indices((levels, samples))
    asked = np.unique(difficulty, return_inverse=True)[1]
    single = by_level * samples + by_sample
    ways: list[Groups] = [
        np.zeros((levels, samples), dtype=np.int64),
        by_level,
        np.broadcast_to(asked, (levels, samples)),
        by_sample,
        single,
    ]
    found: dict[str, dict[str, Any]] = {}
    equal = np.zeros(samples)
    for name, groups in zip(WAYS, ways, strict=True):
        # what is chosen with one noise is scored with the other, both ways round
        scores = [
            score(excess[1 - one], shares, allocate(excess[one], groups, shares, total), groups) for one in (0, 1)
        ]
        scored = np.mean(scores, axis=(0, 1))  # (N,)
        equal = equal if found else scored
        found[name] = {"excess": float(scored.mean()), "beside_equal": interval(scored - equal)}
        if name == "noise level":
            found[name]["spent"] = np.mean([allocate(each, groups, shares, total) for each in excess], axis=0).tolist()
    scores = [
        score(
            excess[1 - one],
            shares,
            allocate(predict(seen[one], excess[one], seen[1 - one]), single, shares, total),
            single,
        )
        for one in (0, 1)
    ]
    scored = np.mean(scores, axis=(0, 1))
    found[SEEN] = {"excess": float(scored.mean()), "beside_equal": interval(scored - equal)}
    return found


def predict(seen: Array, excess: Array, new: Array) -> Array:
    """The losses over dense at each budget (K, N, B) of forwards with features `new`, at one noise level at a time.

    Each half of the scenes is predicted by a ridge regression on the other.

    Args:
        seen: features of measured forwards, (K, N, F).
        excess: their losses, (K, N, B).
        new: features of the same scenes with another noise, (K, N, F).
    """
    found = np.empty_like(excess)
    half = np.arange(excess.shape[1]) % 2
    for level, part in product(range(len(excess)), (0, 1)):
        known, losses = seen[level][half != part], excess[level][half != part]
        mean, scale = known.mean(axis=0), known.std(axis=0) + 1e-6
        x, y = (known - mean) / scale, losses - losses.mean(axis=0)
        weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ y)  # (F, B)
        found[level][half == part] = (new[level][half == part] - mean) / scale @ weights + losses.mean(axis=0)
    return found


def allocate(excess: Array, groups: Groups, shares: Array, total: float) -> Array:
    """The share of FLOPs of each group (G,), with the least mean loss for a mean share.

    Groups are raised one after the other to the next budget on the lower convex hull of their losses, where a FLOP
    saves most; the last one in part.

    Args:
        excess: (K, N, B).
        groups: (K, N).
        shares: rising, (B,).
        total: between the first and the last of the shares.
    """
    count = int(groups.max()) + 1
    size = np.bincount(groups.ravel(), minlength=count) / groups.size  # (G,)
    flat = excess.reshape(-1, len(shares))
    loss = np.stack([np.bincount(groups.ravel(), column, count) for column in flat.T], axis=-1) / groups.size  # (G, B)
    raises = [
        ((loss[group, a] - loss[group, b]) / (size[group] * (shares[b] - shares[a])), group, a, b)
        for group in range(count)
        for a, b in _hull(loss[group], shares)
    ]
    spent = np.full(count, shares[0])
    left = total - float(shares[0])
    for _, group, a, b in sorted(raises, key=lambda each: -each[0]):
        rise = min(float(shares[b] - shares[a]), left / float(size[group]))
        if rise <= 0:
            break
        spent[group] += rise
        left -= rise * float(size[group])
    return spent


def score(excess: Array, shares: Array, spent: Array, groups: Groups) -> Array:
    """The loss over dense of each forward (K, N) at the share of its group; linear between two budgets."""
    wanted = spent[groups]  # (K, N)
    above = np.clip(np.searchsorted(shares, wanted), 1, len(shares) - 1)
    part = (wanted - shares[above - 1]) / (shares[above] - shares[above - 1])
    low, high = (np.take_along_axis(excess, place[..., None], axis=-1)[..., 0] for place in (above - 1, above))
    return low + part * (high - low)


def _hull(loss: Array, shares: Array) -> list[tuple[int, int]]:
    """The edges of the lower convex hull from the first budget on, as long as the loss falls along them."""
    edges: list[tuple[int, int]] = []
    place = 0
    while place < len(shares) - 1:
        slopes = (loss[place + 1 :] - loss[place]) / (shares[place + 1 :] - shares[place])
        after = place + 1 + int(slopes.argmin())
        if slopes.min() >= 0:
            break
        edges.append((place, after))
        place = after
    return edges


def _losses(
    family: Family, elastic: ElasticModel | None, noise: NoisyPairs, levels: Sequence[float]
) -> tuple[Array, float]:
    """The flow loss of each scene at each noise level (K, N), and the share of FLOPs."""
    measured = [flow_losses(family.pipeline.transformer, elastic, noise.at(level)) for level in levels]
    return np.stack([loss for loss, _ in measured]), float(np.mean([share for _, share in measured]))
