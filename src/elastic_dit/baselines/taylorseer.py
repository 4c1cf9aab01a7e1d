"""TaylorSeer (arXiv 2503.06923): features of skipped steps are forecast from their differences at computed ones."""

from typing import Any

from diffusers.hooks import TaylorSeerCacheConfig

from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.baselines.from_diffusers import enable
from elastic_dit.errors import ConfigError

ORDER = 1
"""Of the Taylor series; diffusers' default."""
WARM_UP = 3
"""Steps computed before the first forecast; diffusers' default, for runs of 28 to 50 steps."""


def warm_up_steps(steps: int) -> int:
    """The steps computed before the first forecast.

    A forecast of order m needs m + 1 computed steps; a short run cannot spare more than that.
    """
    return max(ORDER + 1, min(WARM_UP, steps // 8))


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    if setting < 1 or setting != int(setting):
        raise ConfigError(f"the interval of TaylorSeer is {setting}; it must be a whole number of steps, 1 or more")
    config = TaylorSeerCacheConfig(
        cache_interval=int(setting),
        disable_cache_before_step=warm_up_steps(task.steps),
        max_order=ORDER,
        taylor_factors_dtype=transformer.dtype,
        # Forecasts the model's output and runs no block at all; without it diffusers forecasts attention alone.
        use_lite_mode=True,
    )
    return enable(transformer, config)


baselines.add(
    "taylorseer",
    Baseline(
        name="taylorseer",
        about="Computes every n-th step and forecasts the output of the others with a Taylor series.",
        source="arXiv 2503.06923; diffusers' TaylorSeerCache in its lite mode",
        setting="steps from one computed step to the next",
        settings=(2.0, 3.0, 4.0, 5.0, 6.0),
        apply=_apply,
    ),
)
