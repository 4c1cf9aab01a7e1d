"""Fewer denoising steps: the baseline that costs nothing, and that every cache must beat."""

from typing import Any

from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.errors import ConfigError


def spread_steps(steps: int, share: float) -> tuple[int, ...]:
    """The steps at which the transformer is called, evenly spread, the first among them.

    Args:
        steps: of a whole run.
        share: of them that is left out, in [0, 1); at least one step stays.

    Raises:
        ConfigError: a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"the share of steps left out is {share}; it must be in [0, 1)")
    kept = max(1, round(steps * (1 - share)))
    return tuple(index * steps // kept for index in range(kept))


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    return Applied(restart=lambda: None, steps=spread_steps(task.steps, setting))


baselines.add(
    "fewer-steps",
    Baseline(
        name="fewer-steps",
        about="Calls the dense model at some of the steps only, evenly spread.",
        source="no paper",
        setting="share of the steps left out",
        settings=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),
        apply=_apply,
    ),
)
