"""TeaCache (arXiv 2411.19108): the blocks are skipped until the modulated input has changed enough.

At each step the first block's modulated input is compared with the step before. The relative L1 change, through a
polynomial fitted per model, estimates how much the output changes; while the sum stays below a threshold, all blocks
are skipped and the residual of the whole stack, stored when it last ran, is added to its input.

`teacache` takes the polynomial that the authors publish for FLUX.1-dev, whatever the FLUX; `teacache-fitted` fits one
to the model, the steps and the guidance that it is asked to speed up.
"""

import inspect
from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from torch import Tensor, nn

from elastic_dit.backbones.base import IMAGE, backbone_of
from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.errors import BackboneError

COEFFICIENTS = {
    "flux": (4.98651651e02, -2.83781631e02, 5.58554382e01, -3.82021401e00, 2.64230861e-01),
}
"""Of the polynomials that the authors publish, by backbone, the highest power first."""
HOOK, FITTED = "teacache", "teacache-fitted"
IDENTITY = (1.0, 0.0)
"""Where they publish none, the change counts as it is."""
ORDER = 2
"""Of the fitted polynomial. The authors fit one of the fourth order to many prompts; the points of one run are few."""


def _flux_modulated(block: Any, inputs: dict[str, Any]) -> Tensor:
    return block.norm1(inputs[IMAGE], emb=inputs["temb"])[0]  # (B, T, D)


def _qwen_modulated(block: Any, inputs: dict[str, Any]) -> Tensor:
    modulation = block.img_mod(inputs["temb"]).chunk(2, dim=-1)[0]  # (B, 3 D)
    return block._modulate(block.img_norm1(inputs[IMAGE]), modulation, inputs.get("modulate_index"))[0]  # (B, T, D)


MODULATED: dict[str, Callable[[Any, dict[str, Any]], Tensor]] = {
    "FluxTransformerBlock": _flux_modulated,
    "QwenImageTransformerBlock": _qwen_modulated,
}
"""The modulated input of a block, by its class."""


def rescaled(coefficients: tuple[float, ...], change: float) -> float:
    """The polynomial at a relative change."""
    return reduce(lambda value, coefficient: value * change + coefficient, coefficients, 0.0)


def relative_change(before: Tensor, after: Tensor) -> float:
    """The L1 distance of two tensors of one shape, over the norm of the first."""
    return float((after - before).abs().mean() / before.abs().mean())


class _Branch(BaseState):
    """One guidance branch of one run."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.step = -1
        self.distance = 0.0
        self.running = True
        self.change: float | None = None
        self.modulated: Tensor | None = None
        self.velocity: Tensor | None = None
        self.entered: Tensor | None = None
        self.residual: Tensor | None = None

    def begin(self, modulated: Tensor, coefficients: tuple[float, ...], threshold: float, steps: int) -> None:
        """Enter the next step: decide whether its blocks run. The first and the last step's always do."""
        self.step += 1
        if self.modulated is not None:
            self.change = relative_change(self.modulated, modulated)
            self.distance += rescaled(coefficients, self.change)
        self.modulated = modulated
        self.running = self.step in (0, steps - 1) or self.distance >= threshold
        if self.running:
            self.distance = 0.0


class _BlockHook(ModelHook):
    """On every block: lets it run, or passes its inputs on. The last one stores the residual of the stack."""

    _is_stateful = True

    def __init__(self, branches: StateManager, returns: tuple[str, ...], last: bool) -> None:
        super().__init__()
        self.branches, self.returns, self.last = branches, returns, last

    def initialize_hook(self, module: nn.Module) -> nn.Module:
        self.signature = inspect.signature(module.forward)
        return module

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        branch: _Branch = self.branches.get_state()
        if not branch.running:
            inputs = self.inputs(args, kwargs)
            return tuple(inputs[name] for name in self.returns)
        forward: Any = self.fn_ref.original_forward
        outputs = forward(*args, **kwargs)
        if self.last:
            branch.residual = outputs[self.returns.index(IMAGE)] - branch.entered
        return outputs

    def inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The block's arguments by name."""
        return self.signature.bind(*args, **kwargs).arguments

    def reset_state(self, module: nn.Module) -> nn.Module:
        self.branches.reset()
        return module


class _FirstBlockHook(_BlockHook):
    """Decides for all blocks, and adds the stored residual where they are skipped."""

    def __init__(self, decide: Callable[[_Branch, dict[str, Any]], None], *common: Any) -> None:
        super().__init__(*common)
        self.decide = decide

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        branch: _Branch = self.branches.get_state()
        inputs = self.inputs(args, kwargs)
        self.decide(branch, inputs)
        branch.entered = inputs[IMAGE]
        if not branch.running:
            # Only the image stream leaves the stack: the text stream may stay as it is.
            inputs = inputs | {IMAGE: inputs[IMAGE] + branch.residual}
        return super().new_forward(module, **inputs)


def _published(transformer: Any, setting: float, task: Task) -> Applied:
    coefficients = COEFFICIENTS.get(backbone_of(transformer).name, IDENTITY)
    return _apply(transformer, setting, task, coefficients, StateManager(_Branch))  # pyright: ignore[reportArgumentType]


def _fitted(transformer: Any, setting: float, task: Task) -> Applied:
    if FITTED not in task.learned:
        task.learned[FITTED] = fit(transformer, task)
    coefficients = task.learned[FITTED]
    return _apply(transformer, setting, task, coefficients, StateManager(_Branch))  # pyright: ignore[reportArgumentType]


def fit(transformer: Any, task: Task) -> tuple[float, ...]:
    """How the change of the first block's modulated input goes with that of the velocity, in one run.

    The transformer is as it was afterwards.

    Args:
        transformer: a fresh one.
        task: the run; each of its guidance branches counts.

    Returns:
        The coefficients, the highest power first.

    Raises:
        BackboneError: the modulated input of its blocks is not known.
    """
    branches = StateManager(_Branch)  # pyright: ignore[reportArgumentType]  a class is meant
    points: list[tuple[float, float]] = []

    def compare(module: nn.Module, inputs: Any, output: Any) -> None:
        branch: _Branch = branches.get_state()
        if branch.velocity is not None and branch.change is not None:
            points.append((branch.change, relative_change(branch.velocity, output[0])))
        branch.velocity = output[0]

    applied = _apply(transformer, 0.0, task, IDENTITY, branches)  # which skips nothing
    handle = transformer.register_forward_hook(compare)
    task.sample(transformer, applied.restart)
    handle.remove()
    for _, block in backbone_of(transformer).sites(transformer):
        HookRegistry.check_if_exists_or_initialize(block).remove_hook(HOOK, recurse=False)
    changes, velocities = zip(*points, strict=True)
    order = min(ORDER, len(set(changes)) - 1)
    return tuple(np.polyfit(changes, velocities, order).tolist())


def _apply(
    transformer: Any, setting: float, task: Task, coefficients: tuple[float, ...], branches: StateManager
) -> Applied:
    sites = backbone_of(transformer).sites(transformer)
    first = sites[0][1]
    kind = type(first).__name__
    if kind not in MODULATED:
        raise BackboneError(f"TeaCache does not know the modulated input of a {kind}; known: {', '.join(MODULATED)}")
    modulated = MODULATED[kind]

    def decide(branch: _Branch, inputs: dict[str, Any]) -> None:
        branch.begin(modulated(first, inputs), coefficients, setting, task.steps)

    for index, (declared, block) in enumerate(sites):
        common = (branches, declared.returns, index == len(sites) - 1)
        hook = _FirstBlockHook(decide, *common) if index == 0 else _BlockHook(*common)
        HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, HOOK)
    HookRegistry.check_if_exists_or_initialize(transformer).invalidate_child_registries_cache()
    return Applied(restart=transformer._reset_stateful_cache)


baselines.add(
    "teacache",
    Baseline(
        name="teacache",
        about="Skips all blocks while the change of the first one's modulated input, summed over steps, is small.",
        source="arXiv 2411.19108; written here from the paper, with the authors' polynomial of FLUX.1-dev",
        setting="threshold on the accumulated change",
        # Published for FLUX.1-dev: 0.25 (1.5x), 0.4 (1.8x), 0.6 (2.0x), 0.8 (2.25x). The small ones are for models
        # without a polynomial; the large ones for few steps, where FLUX's polynomial grows fast.
        settings=(0.05, 0.1, 0.15, 0.25, 0.4, 0.6, 0.8, 1.5, 3.0, 6.0, 12.0),
        apply=_published,
        continuous=True,
    ),
)

baselines.add(
    FITTED,
    Baseline(
        name=FITTED,
        about="The same with a polynomial fitted to the model in one run.",
        source="arXiv 2411.19108; written here from the paper",
        setting="threshold on the accumulated change",
        settings=(0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.5, 3.0),
        apply=_fitted,
        continuous=True,
    ),
)
