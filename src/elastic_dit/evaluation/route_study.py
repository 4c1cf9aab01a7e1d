"""What the routers decide (the paper's Figure 7), and whether compute follows difficulty. N samples, S steps, L blocks.

Difficulty is what a prompt asks for, or what the dense model gets wrong: its flow loss on the same sample at the same
noise level.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.trace import Trace
from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.difficulty import correlation, quarters, scene_difficulty
from elastic_dit.evaluation.flow_loss import flow_losses
from elastic_dit.evaluation.held_out import HeldOut, NoisyPairs
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.variants import Array, Progress
from elastic_dit.records import Environment, RunRecord
from elastic_dit.training.data.scenes import TAGS
from elastic_dit.training.families.base import Family
from elastic_dit.verbs import load, restore


def study_routes(
    family: Family,
    adapter: str,
    scenes: Sequence[HeldOut],
    settings: SampleSettings,
    levels: Sequence[float],
    *,
    reuse: bool,
    batch: int,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = lambda label, done, total: None,
) -> RunRecord:
    """Draw every scene with an adapter and look at what it spent where; then one forward a noise level.

    Args:
        family: of the dense pipeline.
        adapter: folder or Hub id; it has routers.
        scenes: N prompts with their true images.
        settings: how to sample; the side of the images is given.
        levels: noise levels of the single forwards.
        reuse: draw them a second time, with the adapter's own delta and K.
        batch: images in a forward.
        seed: of the noise on true images, and added to the prompts' own.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `Progress`.

    Raises:
        ConfigError: the adapter has no routers.
    """
    assert settings.height, "a study needs the side of its images"
    pipe, transformer = family.pipeline, family.pipeline.transformer
    restore(transformer)
    pairs = NoisyPairs(family, scenes, settings.height, batch, seed)
    losses = np.stack([flow_losses(transformer, None, pairs.at(sigma))[0] for sigma in levels])  # (K, N)
    elastic = load_routed(transformer, adapter)
    difficulty = np.array([scene_difficulty(one.prompt) for one in scenes], dtype=float)
    try:
        own = elastic.max_reuse
        runs: list[dict[str, Any]] = []
        samples: dict[str, list[float]] = {"difficulty": difficulty.tolist()}
        for number in [0, own] if reuse else [0]:
            elastic.max_reuse = number
            run, shares = _draw(pipe, elastic, scenes, difficulty, settings, batch, seed, progress)
            runs.append(run)
            samples[f"{'with' if number else 'no'}_reuse_flops_share"] = shares.tolist()
        elastic.max_reuse = own
        spent = np.stack([_shares(elastic, pairs.at(sigma)) for sigma in levels])  # (K, N)
    finally:
        restore(transformer)
    for sigma, loss, share in zip(levels, losses, spent, strict=True):
        samples |= {f"sigma_{sigma:g}_dense_loss": loss.tolist(), f"sigma_{sigma:g}_flops_share": share.tolist()}
    easy, hard = quarters(difficulty.tolist())
    return RunRecord(
        kind="study-routes",
        command=command,
        environment=Environment.here(transformer.device),
        config=(config or {})
        | vars(settings)
        | {"adapter": adapter, "elastic": elastic.config.model_dump(), "scenes": len(scenes), "seed": seed}
        | {
            "batch": batch,
            "levels": list(levels),
            "blocks": dict(Counter(site.declared.path for site in elastic.sites)),
        },
        results={
            "runs": runs,
            "difficulty": {
                name: [difficulty[group].min(), difficulty[group].max()] for name, group in groups(easy, hard)
            },
            "tasks": _tasks(scenes, difficulty, samples),
            "forwards": {
                "flops_share": spent.mean(axis=1).tolist(),
                "deviation": spent.std(axis=1).tolist(),
                "scene": correlation(spent, difficulty)._asdict(),
                "loss": correlation(spent, losses)._asdict(),
            },
        },
        samples=samples,
    )


def load_routed(transformer: Any, adapter: str) -> ElasticModel:
    """An adapter on its transformer.

    Raises:
        ConfigError: it has no routers.
    """
    elastic = load(transformer, adapter)
    if not len(elastic.routers):
        restore(transformer)
        raise ConfigError(f"{adapter} has a fixed route and no routers to study; expected an adapter with routers")
    return elastic


def groups(easy: list[int], hard: list[int]) -> tuple[tuple[str, list[int]], tuple[str, list[int]]]:
    """The two quarters by name."""
    return ("easy", easy), ("hard", hard)


def _draw(
    pipe: Any,
    elastic: ElasticModel,
    scenes: Sequence[HeldOut],
    difficulty: Array,
    settings: SampleSettings,
    batch: int,
    seed: int,
    progress: Progress,
) -> tuple[dict[str, Any], Array]:
    """One image a scene: what was spent, open and how wide; and the share of FLOPs of each image (N,)."""
    pipe.set_progress_bar_config(disable=True)
    label = "images, with reuse" if elastic.max_reuse else "images"
    shares: list[float] = []
    fields: dict[str, list[Array]] = {"keep": [], "reuse": [], "width": []}
    for start in range(0, len(scenes), batch):
        progress(label, start, len(scenes))
        some = [one.prompt for one in scenes[start : start + batch]]
        sample_images(pipe, [one.caption for one in some], [seed + one.seed for one in some], settings)
        shares += [elastic.trace.sample_share(index) for index in range(len(some))]
        for name, parts in fields.items():
            parts.append(_with_prompt(elastic.trace, name))
    keep, reused, width = (np.concatenate(parts, axis=-1) for parts in fields.values())  # (S, L, N)
    spent = np.array(shares)
    run = {
        "delta": elastic.delta,
        "max_reuse": elastic.max_reuse,
        "flops_share": float(spent.mean()),
        "deviation": float(spent.std()),
        "lowest": float(spent.min()),
        "highest": float(spent.max()),
        "open_rate": float(keep.mean()),
        "reuse_rate": float(reused.sum() / max(1.0, keep.sum())),
        "correlation": correlation(spent[None], difficulty)._asdict(),
    }
    for name, group in groups(*quarters(difficulty.tolist())):
        own = [array[..., group] for array in (keep, reused, width)]
        run[name] = {"flops_share": float(spent[group].mean())} | _maps(*own)
    return run, spent


def _with_prompt(trace: Trace, field: Any) -> Array:
    """One field of the first guidance branch, the one with the prompt: (S, L, B)."""
    return trace.array(field, "cond" if "cond" in trace.branches else None)


def _maps(keep: Array, reuse: Array, width: Array) -> dict[str, list[list[float | None]]]:
    """Open rate, and mean width where a sample ran, each (S, L); None where none did."""
    ran = (keep == 1) & (reuse == 0)
    count = ran.sum(-1)
    mean = np.where(ran, width, 0).sum(-1) / np.maximum(count, 1)
    widths = [[float(w) if n else None for w, n in zip(*row, strict=True)] for row in zip(mean, count, strict=True)]
    return {"open": keep.mean(-1).tolist(), "width": widths}


def _shares(elastic: ElasticModel, inputs: Sequence[Any]) -> Array:
    """FLOPs of each sample's one forward, as a share of dense (N,)."""
    found: list[float] = []
    for arguments, noisy in inputs:
        flow_losses(elastic.transformer, elastic, [(arguments, noisy)])
        found += [elastic.trace.sample_share(index) for index in range(len(noisy.sigma))]
    return np.array(found)


def _tasks(scenes: Sequence[HeldOut], difficulty: Array, samples: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Mean difficulty and compute of each task's scenes."""
    rows: list[dict[str, Any]] = []
    for tag in TAGS:
        own = [index for index, one in enumerate(scenes) if one.prompt.scene.tag == tag]
        row: dict[str, Any] = {"task": tag, "scenes": len(own), "difficulty": float(difficulty[own].mean())}
        shares = {name: values for name, values in samples.items() if name.endswith("_reuse_flops_share")}
        rows.append(row | {name: float(np.mean([values[index] for index in own])) for name, values in shares.items()})
    return rows
