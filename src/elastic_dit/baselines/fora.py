"""FORA (arXiv 2407.01425): what attention and MLP add to every block is computed at every n-th step and reused between.

The normalisation and modulation of a block run at every step, so what is reused is scaled by the gates of its own step.
"""

from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from elastic_dit.backbones.base import backbone_of
from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.errors import BackboneError, ConfigError

EVERY_STEP = ("norm", "mod")
"""Parts of the names of a block's submodules that run at every step."""


class _Last(BaseState):
    """What a submodule returned when it last ran, in one guidance branch."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.step, self.output = -1, None


class _IntervalHook(ModelHook):
    """On attention and MLP layers: runs them at every n-th step."""

    _is_stateful = True

    def __init__(self, interval: int) -> None:
        super().__init__()
        self.interval = interval
        self.branches = StateManager(_Last)  # pyright: ignore[reportArgumentType]  a class is meant

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        last: _Last = self.branches.get_state()
        last.step += 1
        if last.step % self.interval == 0:
            forward: Any = self.fn_ref.original_forward
            last.output = forward(*args, **kwargs)
        return last.output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.branches.reset()
        return module


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    if setting < 1 or setting != int(setting):
        raise ConfigError(f"the interval of FORA is {setting}; it must be a whole number of steps, 1 or more")
    if not hasattr(transformer, "cache_context"):
        raise BackboneError(f"FORA needs diffusers' cache contexts; a {type(transformer).__name__} has none")
    for _, block in backbone_of(transformer).sites(transformer):
        for name, layer in block.named_children():
            if not any(part in name for part in EVERY_STEP):
                registry = HookRegistry.check_if_exists_or_initialize(layer)
                registry.register_hook(_IntervalHook(int(setting)), "fora")
    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
    return Applied(restart=transformer._reset_stateful_cache)


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
