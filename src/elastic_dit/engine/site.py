"""One block of a transformer as the core sees it: streams in, streams out, on some rows, at some width."""

import inspect
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

from elastic_dit.backbones.base import IMAGE, MLP, BlockList
from elastic_dit.config import ElasticConfig
from elastic_dit.core.block import Decision, Rows
from elastic_dit.core.cache import Streams
from elastic_dit.core.eager import eager
from elastic_dit.core.width import channels
from elastic_dit.engine.compiled import CompiledBlock, mark_rows
from elastic_dit.engine.linear import DownProjection, UpProjection, is_elastic, make_elastic, make_plain
from elastic_dit.errors import BackboneError

HOOK = "elastic_dit"
ROWS: ContextVar[Rows] = ContextVar("rows", default=None)
"""Which rows of the batch the block that runs now has; None: all. For what is inside it and knows the whole batch."""


class Site:
    """A block, its declaration, and its place in the running order."""

    def __init__(self, index: int, declared: BlockList, block: nn.Module, config: ElasticConfig) -> None:
        self.index, self.declared, self.block = index, declared, block
        self.ratios = config.width_ratios
        self.quality_reaches_width = config.width_gradient == "straight_through"
        # SD3's last block has no text MLP
        there = [mlp for mlp in declared.mlps if getattr(block, mlp.up.partition(".")[0]) is not None]
        self.mlps = [mlp for mlp in there if mlp.stream in config.width_streams]
        if any(is_elastic(block.get_submodule(mlp.up)) for mlp in self.mlps):
            raise BackboneError("another method chooses how wide this transformer's MLPs run: width_streams must be []")
        self.names = list(inspect.signature(block.forward).parameters)
        self.forward: Callable[..., Any] = block.forward
        """The block's own forward, below the hooks."""
        self.compiled: CompiledBlock | None = None
        """Runs the block once `compile` was called."""
        self.always_open = False
        self.signature = ""
        """Of the shapes of its parameters: blocks with the same one cost the same. A string keeps its hash."""
        self._projections: dict[MLP, tuple[Any, Any]] = {}
        self._widths: tuple[list[float], bool] | None = None

    def attach_mlps(self) -> None:
        """Make the MLPs' projections elastic; again where peft has put other layers in since.

        A layer that someone else has hooked (to load its weights only while it runs, say) stays whole.
        """
        self.signature = str([tuple(p.shape) for p in self.block.parameters()])
        for mlp in self.mlps:
            up, down = (self.block.get_submodule(path) for path in (mlp.up, mlp.down))
            if self._projections.get(mlp) == (up, down):
                continue
            for layer in self._projections.pop(mlp, ()):
                make_plain(layer)
            if "forward" not in up.__dict__ and "forward" not in down.__dict__:
                hidden = hidden_size(self.block, mlp)
                make_elastic(up, UpProjection, elastic_hidden=hidden)
                make_elastic(down, DownProjection, elastic_hidden=hidden, elastic_ratios=self.ratios)
                self._projections[mlp] = (up, down)
        self._widths = None
        self.set_widths([1.0], mixed=False)

    def detach_mlps(self) -> None:
        """Make the projections what they were."""
        for pair in self._projections.values():
            for layer in pair:
                make_plain(layer)
        self._projections.clear()

    @eager
    def set_widths(self, ratios: Sequence[float], mixed: bool) -> None:
        """How wide the MLPs run in the calls that follow (Eq. 16).

        Args:
            ratios: one a row, ascending.
            mixed: whether rows may differ.
        """
        self._set_widths(ratios, mixed)

    def _set_widths(self, ratios: Sequence[float], mixed: bool) -> None:
        if self._widths == (widths := (list(ratios), mixed)):
            return
        self._widths = widths
        for up, down in self._projections.values():
            keeps = [channels(ratio, up.elastic_hidden) for ratio in ratios]
            rows = mark_rows(torch.tensor(keeps)) if mixed else None
            vars(up).update(elastic_keep=keeps[-1], elastic_keeps=rows)  # setattr on a module is slow
            vars(down).update(elastic_keeps=rows)

    def set_masks(self, probs: Tensor | None) -> None:
        """What the MLPs are masked by in the training calls that follow: q (B, S), or None."""
        for _, down in self._projections.values():
            down.elastic_probs = probs

    def compile(self, options: dict[str, Any]) -> None:
        """From now on the block runs compiled."""
        self.compiled = CompiledBlock(self.forward, self.declared.returns, self.declared.batched, options)

    def run(self, arguments: dict[str, Any], any_rows: bool) -> Any:
        """The block at the widths that are set; `any_rows`: calls differ in how many rows they have."""
        if self.compiled is None:
            return self.forward(**arguments)
        return self.compiled(arguments, any_rows)

    def run_uniform(self, decision: Decision, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The block as all samples want it, once `set_route` has said how wide."""
        if decision.keep[0] and self.compiled is None:
            return self.forward(*args, **kwargs)
        call = self.call(args, kwargs)
        return call.output(call.run(call.x, None, decision.width) if decision.keep[0] else call.x)

    def call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "BlockCall":
        """One call of the block, its arguments by name."""
        return BlockCall(self, dict(zip(self.names, args, strict=False)) | kwargs)


class BlockCall:
    """A call of a block that may run on fewer rows or narrower, or not at all."""

    def __init__(self, site: Site, arguments: dict[str, Any]) -> None:
        self.site, self.arguments = site, arguments
        self.x: Streams = tuple(arguments[name] for name in site.declared.returns)
        self.image: Tensor = arguments[IMAGE]
        self.batch = len(self.image)
        self.any_rows = self.batch > 1
        """Whether calls of the block differ in how many rows they have."""

    def run(self, x: Streams, rows: Rows, ratios: Sequence[float]) -> Streams:
        """Inference: the block on some rows, each one's MLPs at its width ratio, ascending."""
        # compiled, rows that agree take the graph of those that do not
        self.site.set_widths(ratios, len(set(ratios)) > 1 or (self.any_rows and self.site.compiled is not None))
        try:
            return self._forward(x, rows, self.any_rows)
        finally:
            self.site.set_widths([1.0], mixed=False)

    def run_masked(self, x: Streams, probs: Tensor) -> Streams:
        """Training: the block on all rows, its MLPs masked by width probabilities (B, S)."""
        self.site.set_masks(probs if self.site.quality_reaches_width else probs.detach())
        try:
            return self._forward(x, None, any_rows=False)
        finally:
            self.site.set_masks(None)

    def output(self, streams: Streams) -> Any:
        """Streams in the form the block returns them."""
        return streams if len(self.site.declared.returns) > 1 else next(iter(streams))

    def _forward(self, x: Streams, rows: Rows, any_rows: bool) -> Streams:
        arguments = self.arguments | dict(zip(self.site.declared.returns, x, strict=True))
        if rows is not None:
            for name in self.site.declared.batched:
                arguments[name] = take_rows(arguments.get(name), rows, self.batch)
            arguments = {name: value for name, value in arguments.items() if name in self.arguments}
        before = ROWS.set(rows)
        try:
            out = self.site.run(arguments, any_rows)
        finally:
            ROWS.reset(before)
        return out if isinstance(out, tuple) else (out,)


@eager
def set_route(sites: Sequence[Site], route: Sequence[float]) -> None:
    """How wide the MLPs of all blocks run in the calls that follow; to say it block by block takes longer."""
    for site, width in zip(sites, route, strict=True):
        site._set_widths([width], mixed=False)


def hidden_size(block: nn.Module, mlp: MLP) -> int:
    """F of an MLP."""
    up: Any = block.get_submodule(mlp.up)
    return up.out_features // (2 if mlp.gated else 1)


def take_rows(value: Any, rows: Tensor, batch: int) -> Any:
    """Rows of every tensor in a (nested) argument that has the batch, or a multiple of it, first."""
    if isinstance(value, Tensor):
        copies = len(value) // batch if value.ndim and len(value) % batch == 0 else 0
        if copies == 0:
            return value
        return torch.cat([value[start : start + batch][rows] for start in range(0, copies * batch, batch)])
    if isinstance(value, dict):
        return {name: take_rows(item, rows, batch) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(take_rows(item, rows, batch) for item in value)
    return value


def unhook(module: nn.Module) -> None:
    """Remove our hook and every trace of the registry if it was ours alone."""
    registry = HookRegistry.check_if_exists_or_initialize(module)
    registry.remove_hook(HOOK, recurse=False)
    if not registry.hooks:
        del module._diffusers_hook
        forward = module.__dict__.get("forward")
        if getattr(forward, "__func__", None) is type(module).forward:
            del module.forward
