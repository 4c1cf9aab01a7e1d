"""How much each block of the dense model matters (the paper's Figure 2), by noise level, for easy and hard scenes.

L blocks, K noise levels, N samples. A block matters as much as the velocity changes without it.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elastic_dit.backbones import backbone_of
from elastic_dit.config import ElasticConfig
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.plan import Plan
from elastic_dit.evaluation.difficulty import quarters, scene_difficulty, spearman
from elastic_dit.evaluation.held_out import HeldOut, NoisyPairs
from elastic_dit.evaluation.variants import Array, Progress
from elastic_dit.records import Environment, RunRecord
from elastic_dit.training.families.base import Family
from elastic_dit.training.importance import order_channels
from elastic_dit.verbs import elasticize, restore

CHANGES = {"left_out": 0.0, "quarter": 0.25}
"""What is done to one block at a time: the width of its MLP, 0 where all of it is left out."""


def study_blocks(
    family: Family,
    scenes: Sequence[HeldOut],
    resolution: int,
    levels: Sequence[float],
    *,
    batch: int,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = lambda label, done, total: None,
) -> RunRecord:
    """Leave out each block in turn, then narrow its MLP, on the easiest and the hardest quarter of true images.

    The MLP channels of the transformer stay in their order of importance, which changes nothing it computes.

    Args:
        family: of the dense pipeline.
        scenes: of which the two quarters are used.
        resolution: side of the images in pixels.
        levels: K noise levels.
        batch: images in a forward.
        seed: of the noise.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `Progress`.
    """
    transformer = family.pipeline.transformer
    easy, hard = quarters([scene_difficulty(one.prompt) for one in scenes])
    chosen = [scenes[index] for index in (*easy, *hard)]
    of = {"easy": slice(0, len(easy)), "hard": slice(len(easy), len(chosen))}
    pairs = NoisyPairs(family, chosen, resolution, batch, seed)
    blocks = len(backbone_of(transformer).sites(transformer))
    elastic = elasticize(transformer, ElasticConfig.of(route=(1.0,) * blocks))
    try:
        order_channels(elastic, [arguments for sigma in levels for arguments, _ in pairs.at(sigma)])
        found = {name: [] for name in CHANGES}
        for number, sigma in enumerate(levels):
            inputs = [arguments for arguments, _ in pairs.at(sigma)]
            dense = _predict(elastic, inputs, (1.0,) * blocks)
            for turn, (name, width) in enumerate(CHANGES.items()):
                errors: list[Array] = []
                for block in range(blocks):
                    done = (number * len(CHANGES) + turn) * blocks + block
                    progress(f"noise level {sigma:g}", done, len(levels) * len(CHANGES) * blocks)
                    route = [width if index == block else 1.0 for index in range(blocks)]
                    errors.append(_change(_predict(elastic, inputs, route), dense))
                found[name].append(np.stack(errors))
        counts = dict(Counter(site.declared.path for site in elastic.sites))
    finally:
        restore(transformer)
    changes = {name: np.stack(parts) for name, parts in found.items()}  # (K, L, N)
    return RunRecord(
        kind="study-blocks",
        command=command,
        environment=Environment.here(transformer.device),
        config=(config or {})
        | {"scenes": len(scenes), "used": {name: part.stop - part.start for name, part in of.items()}, "seed": seed}
        | {"resolution": resolution, "batch": batch, "levels": list(levels), "blocks": counts},
        results={
            name: {group: values[..., part].mean(-1).tolist() for group, part in of.items()}
            | {"agreement": [_agreement(one) for one in values]}
            for name, values in changes.items()
        },
        samples={
            f"{name}_sigma_{sigma:g}_block_{block + 1}_change": values[number, block].tolist()
            for name, values in changes.items()
            for number, sigma in enumerate(levels)
            for block in range(blocks)
        },
    )


@torch.no_grad()
def _predict(elastic: ElasticModel, inputs: Sequence[dict[str, Any]], route: Sequence[float]) -> Tensor:
    """The velocity under a route (N, T, C)."""
    elastic.force(Plan.static(route))
    predicted: list[Tensor] = []
    for arguments in inputs:
        elastic.reset()
        predicted.append(elastic.transformer(**arguments, return_dict=False)[0].float())
    return torch.cat(predicted)


def _change(velocity: Tensor, dense: Tensor) -> Array:
    """Squared error over the squared dense velocity, (N,)."""
    error = (velocity - dense).square().sum(dim=(1, 2)) / dense.square().sum(dim=(1, 2))
    return error.double().cpu().numpy()


def _agreement(changes: Array) -> float:
    """Whether the same blocks matter in all samples: each one's order of blocks against the others' mean; (L, N)."""
    total = changes.sum(axis=1)
    return float(np.mean([spearman(own, total - own) for own in changes.T]))
