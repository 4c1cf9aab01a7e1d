"""MagCache (arXiv 2506.09045): the size of the residual, measured once on the model, tells which steps to skip."""

import statistics
from typing import Any

from diffusers.hooks import MagCacheConfig
from diffusers.hooks.mag_cache import MagCacheBlockHook, MagCacheState
from torch import Tensor

from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.baselines.from_diffusers import enable

MAX_SKIP_STEPS, RETENTION_RATIO = 5, 0.1
"""As published for FLUX.1-dev: E024K5R01, 2.8x at threshold 0.24."""


def calibrate(transformer: Any, task: Task) -> list[float]:
    """How the residual of all blocks grows from step to step, measured in one run.

    The transformer is as it was afterwards.

    Args:
        transformer: a fresh one.
        task: the run.

    Returns:
        One ratio a step, the first 1; the mean over guidance branches, as diffusers takes one list for all.

    Raises:
        BackboneError: diffusers' MagCache does not fit the transformer.
    """
    # One step more than a run has: at its last step diffusers would print the ratios and forget them.
    applied = enable(transformer, MagCacheConfig(calibrate=True, num_inference_steps=task.steps + 1))
    registries = [module._diffusers_hook for module in transformer.modules() if hasattr(module, "_diffusers_hook")]
    hooks = [hook for registry in registries for hook in registry.hooks.values()]
    tail = next(hook for hook in hooks if isinstance(hook, MagCacheBlockHook) and hook.is_tail)
    measure, branches = tail._perform_calibration_step, list[list[float]]()

    def keep(state: MagCacheState, current_residual: Tensor) -> None:  # a pipeline forgets the states when its run ends
        measure(state, current_residual)
        if len(state.calibration_ratios) == 1:
            branches.append(state.calibration_ratios)

    tail._perform_calibration_step = keep
    task.sample(transformer, applied.restart)
    transformer.disable_cache()
    return [statistics.fmean(step) for step in zip(*branches, strict=True)]


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    config = MagCacheConfig(
        threshold=setting,
        max_skip_steps=MAX_SKIP_STEPS,
        retention_ratio=RETENTION_RATIO,
        num_inference_steps=task.steps,
        mag_ratios=calibrate(transformer, task),
    )
    return enable(transformer, config)


baselines.add(
    "magcache",
    Baseline(
        name="magcache",
        about="Skips steps while the error that calibrated residual sizes predict stays below a threshold.",
        source="arXiv 2506.09045; diffusers' MagCache",
        setting="threshold on the accumulated error",
        # 0.06 is diffusers' default and the authors' for Qwen-Image-Edit, 0.24 the authors' for FLUX.1-dev.
        settings=(0.02, 0.06, 0.12, 0.24, 0.5, 1.0, 2.0),
        apply=_apply,
        continuous=True,
    ),
)
