"""One block of a transformer as the core sees it: streams in, streams out, on some rows, at some width."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elastic_dit.backbones.base import IMAGE, MLP, BlockList
from elastic_dit.config import ElasticConfig
from elastic_dit.core.block import Rows
from elastic_dit.core.cache import Streams
from elastic_dit.core.width import channels, straight_through_mask
from elastic_dit.engine.linear import prefix_columns, prefix_rows

HOOK = "elastic_dit"


class Width:
    """How wide a block's MLPs run in the call that is under way."""

    ratio: float = 1.0
    """Inference: slices (Eq. 16)."""
    probs: Tensor | None = None
    """Training: q (B, S), masks (Eq. 13)."""


class Site:
    """A block, its declaration, and its place in the running order."""

    def __init__(self, index: int, declared: BlockList, block: nn.Module, config: ElasticConfig) -> None:
        self.index, self.declared, self.block = index, declared, block
        self.ratios = config.width_ratios
        self.quality_reaches_width = config.width_gradient == "straight_through"
        self.width = Width()
        # SD3's last block has no text MLP
        there = [mlp for mlp in declared.mlps if getattr(block, mlp.up.partition(".")[0]) is not None]
        self.mlps = [mlp for mlp in there if mlp.stream in config.width_streams]
        self.names = list(inspect.signature(block.forward).parameters)
        self.forward: Callable[..., Any] = block.forward
        self.always_open = False
        self.signature: tuple[torch.Size, ...] = ()
        self._hooked: dict[str, nn.Module] = {}

    def attach_mlps(self) -> None:
        """Put the width hooks on the MLPs' projections; again when peft has swapped a layer since."""
        self.signature = tuple(p.shape for p in self.block.parameters())
        for mlp in self.mlps:
            hidden = hidden_size(self.block, mlp)
            for path, hook in ((mlp.up, UpHook(self, hidden)), (mlp.down, DownHook(self, hidden))):
                layer = self.block.get_submodule(path)
                if self._hooked.get(path) is not layer:
                    if path in self._hooked:
                        unhook(self._hooked[path])
                    HookRegistry.check_if_exists_or_initialize(layer).register_hook(hook, HOOK)
                    self._hooked[path] = layer

    def detach_mlps(self) -> None:
        """Take the width hooks off."""
        for layer in self._hooked.values():
            unhook(layer)
        self._hooked.clear()

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

    def run(self, x: Streams, rows: Rows, ratio: float) -> Streams:
        """Inference: the block on some rows, its MLPs at a width ratio."""
        self.site.width.ratio = ratio
        try:
            return self._forward(x, rows)
        finally:
            self.site.width.ratio = 1.0

    def run_masked(self, x: Streams, probs: Tensor) -> Streams:
        """Training: the block on all rows, its MLPs masked by width probabilities (B, S)."""
        self.site.width.probs = probs if self.site.quality_reaches_width else probs.detach()
        try:
            return self._forward(x, None)
        finally:
            self.site.width.probs = None

    def run_checkpointed(self, x: Streams, probs: Tensor) -> Streams:
        """The same, recomputed in the backward pass; the router's logits are not."""
        result: Streams = checkpoint(self.run_masked, x, probs, use_reentrant=False)
        return result

    def output(self, streams: Streams) -> Any:
        """Streams in the form the block returns them."""
        return streams if len(self.site.declared.returns) > 1 else next(iter(streams))

    def _forward(self, x: Streams, rows: Rows) -> Streams:
        arguments = self.arguments | dict(zip(self.site.declared.returns, x, strict=True))
        if rows is not None:
            for name in self.site.declared.batched:
                arguments[name] = take_rows(arguments.get(name), rows, self.batch)
            arguments = {name: value for name, value in arguments.items() if name in self.arguments}
        out = self.site.forward(**arguments)
        return out if isinstance(out, tuple) else (out,)


class UpHook(ModelHook):
    """D -> F at the width of the call."""

    def __init__(self, site: Site, hidden: int) -> None:
        super().__init__()
        self.width, self.hidden = site.width, hidden

    def new_forward(self, module: nn.Module, x: Tensor) -> Tensor:
        """Fewer output channels where the call asks for fewer."""
        forward: Any = self.fn_ref.original_forward
        if self.width.ratio == 1:
            return forward(x)
        return prefix_rows(module, forward, x, channels(self.width.ratio, self.hidden), self.hidden)


class DownHook(ModelHook):
    """F -> D on as many channels as arrive, or on masked ones."""

    def __init__(self, site: Site, hidden: int) -> None:
        super().__init__()
        self.width, self.hidden, self.ratios = site.width, hidden, site.ratios

    def new_forward(self, module: nn.Module, h: Tensor) -> Tensor:
        """h (B, T, n), n up to F plus the columns that always stay."""
        forward: Any = self.fn_ref.original_forward
        if self.width.probs is not None:
            mask = straight_through_mask(self.width.probs, self.hidden, self.ratios).to(h.dtype)  # (B, F)
            stay = h.shape[-1] - self.hidden
            mask = torch.nn.functional.pad(mask, (stay, 0), value=1.0) if stay else mask
            return forward(h * mask.unsqueeze(1))
        return forward(h) if self.width.ratio == 1 else prefix_columns(module, forward, h)


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
