"""First Block Cache: the first block always runs, and tells whether the others need to."""

from typing import Any

from diffusers.hooks import FirstBlockCacheConfig

from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.baselines.from_diffusers import enable


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    return enable(transformer, FirstBlockCacheConfig(threshold=setting))


baselines.add(
    "first-block-cache",
    Baseline(
        name="first-block-cache",
        about="Runs the first block and adds the stored residual of all others while its own has hardly changed.",
        source="ParaAttention (github.com/chengzeyi/ParaAttention), in diffusers",
        setting="threshold on the relative change of the first block's residual",
        # 0.05 is diffusers' default and 0.08 ParaAttention's for FLUX.1-dev; few-step runs change more between steps.
        settings=(0.02, 0.05, 0.08, 0.12, 0.2, 0.3, 0.5, 0.8, 1.2),
        apply=_apply,
        continuous=True,
    ),
)
