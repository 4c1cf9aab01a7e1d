"""cache-dit's DBCache: the first n blocks always run, and tell whether the others need to."""

import logging
from typing import Any

from elastic_dit.backbones.base import backbone_of
from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.errors import BackboneError, ConfigError

FIRST_BLOCKS = 8 / 57
"""Share of the blocks that always run: F8B0, cache-dit's default, of FLUX.1-dev's 57."""
WARM_UP = 8 / 50
"""Share of the steps before the first skip: W8, cache-dit's default, of 50 steps."""


def _package() -> Any:
    try:
        import cache_dit
    except ImportError as error:
        raise ConfigError("baseline 'cache-dit' needs its package: it comes with elastic-dit[peers]") from error
    # It prints every setting it finds, through one handler that all its loggers share.
    for handler in logging.getLogger("CACHE_DIT").handlers:
        handler.setLevel(logging.ERROR)
    return cache_dit


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    package = _package()
    if task.branches > 2:
        raise ConfigError(f"cache-dit knows one or two guidance passes in a step; this run has {task.branches}")
    blocks = len(backbone_of(transformer).sites(transformer))
    config = package.DBCacheConfig(
        Fn_compute_blocks=max(1, round(FIRST_BLOCKS * blocks)),
        Bn_compute_blocks=0,
        max_warmup_steps=max(1, round(WARM_UP * task.steps)),
        residual_diff_threshold=setting,
        enable_separate_cfg=task.branches == 2,
        num_inference_steps=task.steps,
    )
    try:
        package.enable_cache(transformer, cache_config=config)
    except ValueError as error:
        raise BackboneError(f"cache-dit does not fit a {type(transformer).__name__}: {error}") from error
    return Applied(restart=lambda: package.refresh_context(transformer))


baselines.add(
    "cache-dit",
    Baseline(
        name="cache-dit",
        about="Runs the first blocks and adds the stored residual of the others while theirs has hardly changed.",
        source="DBCache of cache-dit (github.com/vipshop/cache-dit), its own package",
        setting="threshold on the relative change of the first blocks' residual",
        # 0.08 is cache-dit's default, 0.12 to 0.24 what it benchmarks; few-step runs change more between steps.
        settings=(0.04, 0.08, 0.12, 0.16, 0.24, 0.35, 0.5, 0.8, 1.2),
        apply=_apply,
        continuous=True,
    ),
)
