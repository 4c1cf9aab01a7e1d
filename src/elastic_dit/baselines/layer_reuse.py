"""Layers that return their last output again at some steps: what FORA and Learning-to-Cache have in common."""

from collections.abc import Callable, Iterable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import nn

from elastic_dit.baselines.base import Applied
from elastic_dit.errors import BackboneError

EVERY_STEP = ("norm", "mod")
"""Parts of the names of a block's submodules that run at every step: what is reused has its own step's gates."""


class _Last(BaseState):
    """What a layer returned when it last ran, in one guidance branch."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.step, self.output = -1, None


class _ReuseHook(ModelHook):
    _is_stateful = True

    def __init__(self, reuses: Callable[[int], bool]) -> None:
        super().__init__()
        self.reuses = reuses
        self.branches = StateManager(_Last)  # pyright: ignore[reportArgumentType]  a class is meant

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        last: _Last = self.branches.get_state()
        last.step += 1
        if not self.reuses(last.step):
            forward: Any = self.fn_ref.original_forward
            last.output = forward(*args, **kwargs)
        return last.output

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.branches.reset()
        return module


def reuse_layers(transformer: Any, layers: Iterable[tuple[nn.Module, Callable[[int], bool]]], name: str) -> Applied:
    """Let layers of a transformer reuse their last output.

    Args:
        transformer: whose state diffusers' cache contexts keep apart by guidance branch.
        layers: each with a function of the step that says whether it reuses there; the first step is 0.
        name: of the hooks.

    Raises:
        BackboneError: the transformer has no cache contexts.
    """
    check_contexts(transformer, name)
    for layer, reuses in layers:
        HookRegistry.check_if_exists_or_initialize(layer).register_hook(_ReuseHook(reuses), name)
    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
    return Applied(restart=transformer._reset_stateful_cache)


def check_contexts(transformer: Any, name: str) -> None:
    """Refuse a transformer whose guidance branches nothing keeps apart.

    Raises:
        BackboneError: it has no cache contexts.
    """
    if not hasattr(transformer, "cache_context"):
        raise BackboneError(f"{name} needs diffusers' cache contexts; a {type(transformer).__name__} has none")
