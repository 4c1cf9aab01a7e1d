"""The models of a comparison, one after the other on one transformer: dense, then each adapter at each budget."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from elastic_dit.checkpoint import read
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.verbs import load, restore

RESAMPLES = 2000
Progress = Callable[[str, int, int], None]
"""Called with what runs, and parts of it done and to do."""
Array = npt.NDArray[np.float64]


class Variant(NamedTuple):
    """One model of a comparison; the transformer is it until the next one is asked for."""

    name: str
    budget: float | None
    elastic: ElasticModel | None


def variants(transformer: Any, adapters: Sequence[str], budgets: Sequence[float]) -> Iterator[Variant]:
    """Dense, and each adapter: at each budget in its range if its routers know one, else as it is.

    Args:
        transformer: the dense one; it is dense again at the end.
        adapters: folders or Hub ids.
        budgets: those outside an adapter's range are left out.

    Raises:
        ConfigError: an adapter would be left out as a whole; before anything is measured.
    """
    known = {adapter: known_budgets(adapter, budgets, read(adapter).config.budget_range) for adapter in adapters}
    restore(transformer)
    yield Variant("dense", None, None)
    for adapter in adapters:
        elastic = load(transformer, adapter)
        try:
            for budget in known[adapter]:
                if budget is not None:
                    elastic.budget = budget
                yield Variant(adapter, budget, elastic)
        finally:
            restore(transformer)


def known_budgets(
    adapter: str, budgets: Sequence[float], limits: tuple[float, float] | None
) -> Sequence[float] | Sequence[None]:
    """The budgets in an adapter's range; None alone where it has none.

    Raises:
        ConfigError: it has a range, and none of them lies in it.
    """
    if limits is None:
        return [None]
    low, high = limits
    known = [budget for budget in budgets if low <= budget <= high]
    if not known:
        asked = ", ".join(f"{budget:g}" for budget in budgets) or "none"
        raise ConfigError(f"{adapter} was trained for budgets from {low:g} to {high:g}; --budgets asks for {asked}")
    return known


def interval(values: Array, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean over samples, by bootstrap."""
    random = np.random.default_rng(seed)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
