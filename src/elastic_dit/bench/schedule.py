"""Route tables with the rates of a trained model, for benchmarks of speed on random weights."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from elastic_dit.engine.plan import Plan


@dataclass(frozen=True)
class Rates:
    """How often a model does what. The default is what the paper's ablation implies for Qwen-Image turbo."""

    open_rate: float = 0.81
    """Share of the blocks that are not skipped."""
    reuse_rate: float = 0.22
    """Share of the open ones that add a stored residual."""
    widths: tuple[float, ...] = (0.20, 0.25, 0.30, 0.25)
    """Shares of the widths 1/4, 1/2, 3/4 and 1 among those that run: 0.65 in the mean."""
    first: int = 2
    """Blocks at the start that are always open."""
    last: int = 3
    """Blocks at the end that are always open."""


RATIOS = (0.25, 0.5, 0.75, 1.0)


def sample_plan(steps: int, blocks: int, batch: int, rates: Rates, seed: int = 0) -> Plan:
    """A plan of `steps` x `blocks` x `batch` with exactly these rates, as near as whole numbers come.

    Nothing is reused before a residual is stored. K of the model's config may still turn a few reuses into
    runs; the trace says what happened.
    """
    random = np.random.default_rng(seed)
    shape = (steps, blocks, batch)
    free = np.ones(shape, bool)
    free[:, : rates.first] = free[:, blocks - rates.last :] = False
    keep = ~_choose(random, free, round((1 - rates.open_rate) * free.size))
    # a residual must have been computed before, at a step where the block was open
    stored = np.cumsum(keep, axis=0) - keep > 0
    reuse = _choose(random, keep & stored, round(rates.reuse_rate * int(keep.sum())))
    quantiles = (np.arange(keep.size) + 0.5) / keep.size
    width = np.take(RATIOS, np.searchsorted(np.cumsum(rates.widths), quantiles).clip(max=len(RATIOS) - 1))
    width = random.permutation(width)
    return Plan(keep, reuse, width.reshape(shape))


def _choose(random: np.random.Generator, among: npt.NDArray[np.bool_], count: int) -> npt.NDArray[np.bool_]:
    places = np.flatnonzero(among)
    chosen = np.zeros(among.shape, bool)
    chosen.flat[random.permutation(places)[: min(count, len(places))]] = True
    return chosen
