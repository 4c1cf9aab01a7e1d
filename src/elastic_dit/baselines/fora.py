"""FORA (arXiv 2407.01425): what attention and MLP add to every block is computed at every n-th step and reused between.

The normalisation and modulation of a block run at every step, so what is reused is scaled by the gates of its own step.
"""

from typing import Any

from elastic_dit.backbones.base import backbone_of
from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.baselines.layer_reuse import EVERY_STEP, reuse_layers
from elastic_dit.errors import ConfigError


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    if setting < 1 or setting != int(setting):
        raise ConfigError(f"the interval of FORA is {setting}; it must be a whole number of steps, 1 or more")
    layers = [
        layer
        for _, block in backbone_of(transformer).sites(transformer)
        for name, layer in block.named_children()
        if not any(part in name for part in EVERY_STEP)
    ]
    return reuse_layers(transformer, [(layer, lambda step: step % setting != 0) for layer in layers], "fora")


baselines.add(
    "fora",
    Baseline(
        name="fora",
        about="Computes attention and MLP of every block at every n-th step and reuses what they added between.",
        source="arXiv 2407.01425; written here from the paper",
        setting="steps from one computed step to the next",
        settings=(2.0, 3.0, 4.0, 5.0, 6.0),
        apply=_apply,
    ),
)
