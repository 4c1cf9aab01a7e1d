"""Learning-to-Cache (arXiv 2406.01733): a table of which layers reuse their last output at which steps is learned.

Every other step is computed whole. At a step between, each attention and MLP layer returns beta f(x) + (1 - beta) c,
where c is what it returned a step before. The model is frozen; the betas learn to keep its prediction at a small sum of
theirs: mean squared error + lambda * sum(beta). Then layers with a small beta reuse c, and the others are computed.

As in the paper: layers before their gates, every other step, the objective, betas that are sigmoids of numbers within
5 of 0. Ours: one run to learn from and not noisy data, few large steps of Adam and not many small ones, lambda in units
of the error with everything cached, and no threshold on beta: the setting is the share of cells (step, layer) of the
steps between that reuse, the lowest betas first. So one training serves all settings, and compute falls with each.
FLUX's single blocks, whose attention and MLP leave through one projection, are one layer each.

S denoising steps, M layers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from elastic_dit.backbones.base import backbone_of
from elastic_dit.baselines.base import Applied, Baseline, Task, baselines
from elastic_dit.baselines.layer_reuse import EVERY_STEP, check_contexts, reuse_layers
from elastic_dit.errors import BackboneError, ConfigError

NAME = "learning-to-cache"
ITERATIONS = 8
"""Updates of the betas of a step."""
LEARNING_RATE = 0.6
WEIGHT = 0.5
"""Of the mean beta, beside an error that is 1 with everything cached."""
BOUND = 5.0
"""On the numbers that the betas are sigmoids of."""

Layer = list[nn.Module]
"""Modules of a block that are computed or reused together; what the last one returns is what they are all for."""
Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Arguments of one forward of the transformer."""
Output = TypeVar("Output", Tensor, tuple[Tensor, ...])


def layers_of(transformer: Any) -> list[Layer]:
    """The attention and MLP layers of all blocks, in running order."""
    found: list[Layer] = []
    for declared, block in backbone_of(transformer).sites(transformer):
        own = {name: child for name, child in block.named_children() if not any(part in name for part in EVERY_STEP)}
        ends = {mlp.down.partition(".")[0] for mlp in declared.mlps}
        if ends == {mlp.up.partition(".")[0] for mlp in declared.mlps}:  # each MLP is one child
            found += [[child] for child in own.values()]
        else:
            found.append([own[name] for name in sorted(own, key=lambda name: name in ends)])
    return found


def learn(transformer: Any, task: Task) -> Tensor:
    """The betas of steps 1, 3, 5..., (S // 2, M) in [0, 1].

    Args:
        transformer: a fresh one. No gradient is kept for its weights from now on.
        task: the run to learn from.

    Raises:
        BackboneError: the run does not call the transformer equally often at every step.
    """
    calls = calls_of(transformer.requires_grad_(False), task)
    if not calls or len(calls) % task.steps:
        raise BackboneError(f"{NAME} saw {len(calls)} calls of the transformer in a run of {task.steps} steps")
    branches, layers = len(calls) // task.steps, layers_of(transformer)

    def errors(step: int) -> list[Callable[[Tensor], Tensor]]:
        now = range(step * branches, (step + 1) * branches)
        return [error_of(transformer, layers, calls[index - branches], calls[index]) for index in now]

    between, none = range(1, task.steps, 2), torch.zeros(len(layers))
    cached = [float(error(none)) for step in between for error in errors(step)]
    unit = max(sum(cached) / max(1, len(cached)), torch.finfo(torch.float32).tiny)
    betas = [_betas(errors(step), len(layers), unit) for step in between]
    return torch.stack(betas) if betas else torch.zeros(0, len(layers))


def calls_of(transformer: Any, task: Task) -> list[Call]:
    """What the transformer is called with in a run."""
    calls: list[Call] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append((args, kwargs))

    handle = transformer.register_forward_pre_hook(record, with_kwargs=True)
    try:
        task.sample(transformer, lambda: None)
    finally:
        handle.remove()
    return calls


def _betas(errors: Sequence[Callable[[Tensor], Tensor]], layers: int, unit: float) -> Tensor:
    """Of one step, (M,); its guidance branches share them."""
    logits = torch.zeros(layers, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(ITERATIONS):
            betas = logits.sigmoid()
            loss = torch.stack([error(betas) for error in errors]).mean() / unit + WEIGHT * betas.mean()
            (logits.grad,) = torch.autograd.grad(loss, [logits])
            optimizer.step()
            logits.data.clamp_(-BOUND, BOUND)
    return logits.detach().sigmoid()


def error_of(transformer: Any, layers: Sequence[Layer], before: Call, now: Call) -> Callable[[Tensor], Tensor]:
    """From betas (M,) to the mean squared error of the prediction `now`, its caches filled by the call `before`."""

    def predict(call: Call) -> Tensor:
        args, kwargs = call
        return transformer(*args, **kwargs | {"return_dict": False})[0]

    cache: list[Any] = [None] * len(layers)
    with torch.no_grad():
        with _replaced(layers, lambda index, output: cache.__setitem__(index, output)):
            predict(before)
        wanted = predict(now)

    def error(betas: Tensor) -> Tensor:
        with _replaced(layers, lambda index, output: _blend(betas[index], output, cache[index])):
            return (predict(now).float() - wanted.float()).square().mean().to(betas.device)

    return error


def _blend(beta: Tensor, output: Output, cached: Output) -> Output:
    """beta f(x) + (1 - beta) c, of every tensor that a layer returns."""
    if isinstance(output, tuple):
        return tuple(_blend(beta, own, old) for own, old in zip(output, cached, strict=True))
    return cached + beta.to(output) * (output - cached)


@contextmanager
def _replaced(layers: Sequence[Layer], replace: Callable[[int, Any], Any]) -> Iterator[None]:
    """While entered, each layer returns `replace(index, output)` in place of its output, if that is not None."""

    def hook(index: int) -> Callable[[nn.Module, Any, Any], Any]:
        return lambda module, inputs, output: replace(index, output)

    handles = [layer[-1].register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def reused_cells(betas: Tensor, share: float) -> Tensor:
    """The cells that reuse, (S // 2, M) bool: this share of them, the lowest betas first.

    Args:
        betas: as `learn` returns them.
        share: in [0, 1]; a larger one reuses all that a smaller one does.
    """
    order = betas.flatten().argsort(stable=True)
    reused = torch.zeros(betas.numel(), dtype=torch.bool)
    reused[order[: round(share * betas.numel())]] = True
    return reused.view_as(betas)


def _apply(transformer: Any, setting: float, task: Task) -> Applied:
    if not 0 <= setting <= 1:
        raise ConfigError(f"the share of cells that reuse is {setting}; it must be in [0, 1]")
    check_contexts(transformer, NAME)
    if NAME not in task.learned:
        task.learned[NAME] = learn(transformer, task)
    reused = reused_cells(task.learned[NAME], setting)
    layers: list[tuple[nn.Module, Callable[[int], bool]]] = []
    for layer, column in zip(layers_of(transformer), reused.T.tolist(), strict=True):
        steps = frozenset(2 * row + 1 for row, cell in enumerate(column) if cell)
        layers += [(module, steps.__contains__) for module in layer]
    return reuse_layers(transformer, layers, NAME)


baselines.add(
    NAME,
    Baseline(
        name=NAME,
        about="Computes every other step whole; between, layers reuse their last output where a learned table says so.",
        source="arXiv 2406.01733; written here from the paper, its table learned from one run",
        setting="share of the layers at every other step that reuse",
        settings=(0.25, 0.5, 0.75, 1.0),
        apply=_apply,
        continuous=True,
    ),
)
