"""Validation flow loss (Eq. 2) against compute: the same samples, noise and noise levels for every model.

N samples. What is scored is the model as it is used: blocks are skipped, MLPs sliced. Each forward stands alone, so
no residual is reused.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from elastic_dit.elastic_model import ElasticModel
from elastic_dit.evaluation.variants import Array, Progress, interval, variants
from elastic_dit.records import Environment, RunRecord
from elastic_dit.training.config import FlowConfig
from elastic_dit.training.data.cache import EncodedDataset
from elastic_dit.training.families.base import Family
from elastic_dit.training.flow import NoisyBatch, flow_loss, mix

SIGMA_BINS = 4
EQUAL = 0.03
"""Models whose FLOPs differ by so much of the dense ones at most are compared with one another."""


def judge(
    family: Family,
    data: EncodedDataset,
    adapters: Sequence[str],
    budgets: Sequence[float],
    *,
    samples: int,
    batch: int,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = lambda label, done, total: None,
) -> RunRecord:
    """The loss of the dense model, and of each adapter: at each budget if its routers know a range, else as it is.

    Args:
        family: of the dense pipeline; adapters are put on its transformer in turn.
        data: held-out pairs.
        adapters: folders or Hub ids.
        budgets: see `variants`.
        samples: N, of the first pairs; noise levels are spread evenly over 0..1.
        batch: samples in a forward.
        seed: of noise and noise levels.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `Progress`.
    """
    transformer = family.pipeline.transformer
    inputs = list(noisy_batches(family, data, samples, batch, seed))
    sigma = torch.cat([noisy.sigma for _, noisy in inputs]).cpu().numpy().astype(float)
    rows: list[dict[str, Any]] = []
    raw: dict[str, list[float]] = {}
    dense = np.zeros(0)
    for name, budget, elastic in variants(transformer, adapters, budgets):
        progress(f"flow loss, {name}", 0, 0)
        losses, share = flow_losses(transformer, elastic, inputs)
        dense = losses if elastic is None else dense
        rows.append(_row(name, budget, losses, dense, share, sigma))
        raw["dense_loss" if elastic is None else f"{name}_{budget}_loss"] = losses.tolist()
    return RunRecord(
        kind="evaluate",
        command=command,
        environment=Environment.here(transformer.device),
        config=(config or {}) | {"samples": len(dense), "seed": seed},
        results={"rows": rows, "pairs": _pairs(rows, list(raw.values()))},
        samples=raw,
    )


def noisy_batches(
    family: Family, data: EncodedDataset, samples: int, batch: int, seed: int, *, in_order: bool = False
) -> Iterator[tuple[dict[str, Any], NoisyBatch]]:
    """The transformer's inputs, and what they were made from, batch by batch; noise levels rise if `in_order`."""
    generator = torch.Generator().manual_seed(seed)
    samples = min(samples, len(data))
    levels = (torch.arange(samples) + 0.5) / samples
    levels = levels if in_order else levels[torch.randperm(samples, generator=generator)]
    device = family.pipeline.transformer.device
    for start in range(0, samples, batch):
        some = range(start, min(start + batch, samples))
        pair = data.batch(some, device)
        clean = family.pack(pair["latents"])
        noisy = mix(clean, levels[start : start + len(some)].to(device), generator)
        text = {name.removeprefix("text."): value for name, value in pair.items() if name.startswith("text.")}
        yield family.inputs(noisy.tokens, noisy.sigma, text, pair["latents"].shape), noisy


@torch.no_grad()
def flow_losses(
    transformer: Any, elastic: ElasticModel | None, inputs: Sequence[tuple[dict[str, Any], NoisyBatch]]
) -> tuple[Array, float]:
    """Squared error of each sample (N,), and the share of the dense FLOPs that was spent."""
    losses: list[Tensor] = []
    spent = dense = 0.0
    for arguments, noisy in inputs:
        if elastic is not None:
            elastic.reset()
        predicted = transformer(**arguments, return_dict=False)[0]
        losses.append(flow_loss(predicted, noisy, FlowConfig()).cpu())
        if elastic is not None:
            spent, dense = spent + elastic.trace.flops_spent, dense + elastic.trace.flops_dense
    return torch.cat(losses).numpy().astype(float), spent / dense if dense else 1.0


def _pairs(rows: Sequence[dict[str, Any]], losses: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Two models of nearly equal compute at a time: the loss of the first less that of the second, by sample."""
    pairs: list[dict[str, Any]] = []
    for (first, a), (second, b) in combinations(enumerate(rows), 2):
        if abs(a["flops_share"] - b["flops_share"]) <= EQUAL:
            apart = np.subtract(losses[first], losses[second])
            found = {"difference": float(apart.mean()), "interval": interval(apart)}
            pairs.append({"first": first, "second": second} | found)
    return pairs


def _row(name: str, budget: float | None, losses: Array, dense: Array, share: float, sigma: Array) -> dict[str, Any]:
    """One model: its loss, what it has over the dense one's on the same samples, and the loss by noise level."""
    place = np.minimum((sigma * SIGMA_BINS).astype(int), SIGMA_BINS - 1)
    return {
        "name": name,
        "budget": budget,
        "flops_share": share,
        "loss": float(losses.mean()),
        "loss_interval": interval(losses),
        "excess": float((losses - dense).mean()),
        "excess_interval": interval(losses - dense),
        "by_sigma": [float(losses[place == index].mean()) for index in range(SIGMA_BINS)],
    }
