"""FasterCache (arXiv 2410.19355): attention is extrapolated from its last two outputs at every other step.

Its second half, which derives the unconditional pass from the conditional one, needs both passes in one batch; they
are separate calls here, so only attention is skipped.
"""

from typing import Any

from diffusers.hooks import FasterCacheConfig, HookRegistry, ModelHook
from diffusers.hooks.faster_cache import FasterCacheBlockHook, FasterCacheBlockState
from diffusers.hooks.hooks import BaseState, StateManager

from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.baselines.from_diffusers import enable
from elastic_dit.errors import ConfigError

SKIPPED_TIMESTEPS = (-1, 681)
"""Where attention may be skipped, of 0 to 1000; as published."""
TIMESTEPS = 1000


class _BranchState(BaseState):
    """What the attention layers remember of one guidance branch."""

    def __init__(self) -> None:
        self.layers: dict[FasterCacheBlockHook, FasterCacheBlockState] = {}

    def reset(self) -> None:
        self.layers.clear()


class _Branches(ModelHook):
    """Knows the timestep, and gives each guidance branch its own state: diffusers keeps one for all branches."""

    _is_stateful = True

    def __init__(self) -> None:
        super().__init__()
        self.timestep = float(TIMESTEPS)
        self.layers: list[FasterCacheBlockHook] = []
        self.branches = StateManager(_BranchState)  # pyright: ignore[reportArgumentType]  a class is meant

    def attention_weight(self, module: Any) -> float:
        """How far to extrapolate: from 0 to 1 through the run, as the paper has it."""
        return 1 - self.timestep / TIMESTEPS

    def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        timestep = float(kwargs["timestep"].flatten()[0])
        self.timestep = timestep * TIMESTEPS if timestep <= 1 else timestep  # FLUX and Qwen-Image count from 1
        states = self.branches.get_state().layers
        for layer in self.layers:
            layer.state = states.setdefault(layer, FasterCacheBlockState())
        return args, kwargs

    def reset_state(self, module: Any) -> Any:
        self.branches.reset()
        return module


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    if setting < 2 or setting != int(setting):
        raise ConfigError(f"the interval of FasterCache is {setting}; it must be a whole number of steps, 2 or more")
    branches = _Branches()
    config = FasterCacheConfig(
        spatial_attention_block_skip_range=int(setting),
        spatial_attention_timestep_skip_range=SKIPPED_TIMESTEPS,
        attention_weight_callback=branches.attention_weight,
        current_timestep_callback=lambda: branches.timestep,  # pyright: ignore[reportArgumentType]  a float will do
        is_guidance_distilled=True,
    )
    applied = enable(transformer, config)
    hooks = [hook for module in transformer.modules() if (hook := _attention_hook(module))]
    branches.layers = hooks
    # The last hook is the outermost: it knows the timestep before diffusers' asks.
    HookRegistry.check_if_exists_or_initialize(transformer).register_hook(branches, "fastercache_branches")
    return applied


def _attention_hook(module: Any) -> FasterCacheBlockHook | None:
    registry = getattr(module, "_diffusers_hook", None)
    hooks = registry.hooks.values() if registry else ()
    return next((hook for hook in hooks if isinstance(hook, FasterCacheBlockHook)), None)


baselines.add(
    "fastercache",
    Baseline(
        name="fastercache",
        about="Extrapolates attention from its last two outputs, and computes it at every n-th step.",
        source="arXiv 2410.19355; diffusers' FasterCache, its attention half",
        setting="steps from one computed attention to the next",
        # 2 is published.
        settings=(2.0, 3.0, 4.0, 6.0, 8.0),
        apply=_apply,
    ),
)
