"""Recipes against one another, over several seeds: means, and intervals that know both samples and seeds.

N samples, R runs of a recipe.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from elastic_dit.evaluation.variants import RESAMPLES, Array


def compare_recipes(
    runs: Mapping[str, Mapping[int, int]], losses: Sequence[Array], dense: Array, shares: Sequence[float]
) -> list[dict[str, Any]]:
    """A row for each recipe: what its runs lose to the dense model, and to the first recipe on the seeds of both.

    Args:
        runs: for each recipe, its seeds, and the place of each one's run in the other two.
        losses: of each run, by sample (N,), the same samples for all.
        dense: of the dense model, (N,).
        shares: FLOPs that each run spent, of dense.
    """
    reference = next(iter(runs.values()))
    rows: list[dict[str, Any]] = []
    for name, places in runs.items():
        own = np.stack([losses[index] for index in places.values()])  # (R, N)
        shared = [seed for seed in places if seed in reference]
        apart = np.stack([losses[places[seed]] - losses[reference[seed]] for seed in shared]) if shared else None
        rows.append(
            {
                "name": name,
                "seeds": list(places),
                "flops_share": float(np.mean([shares[index] for index in places.values()])),
                "excess": float((own - dense).mean()),
                "excess_by_run": (own - dense).mean(axis=1).tolist(),
                "excess_interval": two_level_interval(own - dense),
                "difference": None if apart is None else float(apart.mean()),
                "difference_interval": None if apart is None else two_level_interval(apart),
            }
        )
    return rows


def two_level_interval(values: Array, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of the mean of (R, N), by bootstrap of runs and of samples within all of them alike.

    With few runs it is a rough one: three seeds are drawn from three.
    """
    random = np.random.default_rng(seed)
    count, samples = values.shape
    means = np.empty(RESAMPLES)
    for index in range(RESAMPLES):
        rows = random.integers(0, count, count)
        columns = random.integers(0, samples, samples)
        means[index] = values[rows].mean(axis=0)[columns].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
