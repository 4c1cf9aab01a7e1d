"""Static depth pruning as in FLUX.1-lite: the first block list keeps 8 of its 19 blocks, for every step and sample.

FLUX.1-lite is FLUX.1-dev with 8 of its 19 double blocks and all 38 single ones, distilled afterwards
(https://huggingface.co/Freepik/flux.1-lite-8B). Its authors found the first double blocks to matter most; we know of
no list of the 8. It makes no difference to the speed; here they are evenly spread, the first among them.
"""

from typing import Any

from torch import nn

from elastic_dit.backbones.base import backbone_of
from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.errors import ConfigError


def kept_blocks(blocks: int, share: float) -> list[int]:
    """Which blocks of a list stay.

    Args:
        blocks: in the list.
        share: of them that is removed, in [0, 1); at least one block stays.

    Raises:
        ConfigError: a share outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ConfigError(f"the share of blocks removed is {share}; it must be in [0, 1)")
    kept = max(1, round(blocks * (1 - share)))
    return [index * blocks // kept for index in range(kept)]


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    parent, _, name = backbone_of(transformer).blocks[0].path.rpartition(".")
    owner = transformer.get_submodule(parent)
    blocks = getattr(owner, name)
    setattr(owner, name, nn.ModuleList(blocks[index] for index in kept_blocks(len(blocks), setting)))
    return Applied(restart=lambda: None)


baselines.add(
    "static-prune",
    Baseline(
        name="static-prune",
        about="Removes blocks of the first block list for good, as FLUX.1-lite does.",
        source="FLUX.1-lite (Freepik, 2024); the removal is ours, without its distillation",
        setting="share of the first block list removed",
        settings=(11 / 19,),
        apply=_apply,
    ),
)
