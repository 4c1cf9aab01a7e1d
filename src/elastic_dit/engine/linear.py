"""Eq. 16 on the linear layers that occur in practice: plain ones, peft's LoRA layers, and any other.

A layer is given a subclass of its own class, as torch's parametrizations do: keys and hooks stay as they
are, and to torch.compile all blocks look alike but for one integer, so that they share one graph a width.

peft's LoRA layers report the base weight as `.weight`, so slicing that alone would drop the LoRA in
silence. A layer of another kind (quantised, say) runs whole: right, but no faster.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_dit.core.mixed_width import MixedRows, slices
from elastic_dit.core.width import masked_linear, prefix_linear_columns, prefix_linear_rows, straight_through_mask


class UpProjection:
    """D -> F, or D -> 2F where gated: fewer output channels where the call asks for fewer."""

    elastic_hidden: int
    """F."""
    elastic_keep: int
    """Channels wanted, up to F: those of the widest row."""
    elastic_keeps: Tensor | None
    """Channels of each row (B,), where they differ: see `core.mixed_width`."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, keep), or (B, T, 2 keep) where gated."""
        if not is_elastic(self):  # type: ignore[arg-type]
            return type(self).forward(self, x)  # plain again, but a hook that came meanwhile kept this method
        whole: Any = super().forward  # type: ignore[misc]
        if self.elastic_keep == self.elastic_hidden and self.elastic_keeps is None:
            return whole(x)
        if self.elastic_keeps is None or torch.compiler.is_compiling():
            return prefix_rows(self, whole, x, self.elastic_keep, self.elastic_hidden, self.elastic_keeps)
        parts = slices(self.elastic_keeps)
        return MixedRows.of([prefix_rows(self, whole, x[rows], own, self.elastic_hidden) for rows, own in parts])


class DownProjection:
    """F -> D, with columns before the last F that always stay: as many channels as arrive, or masked ones."""

    elastic_hidden: int
    """F."""
    elastic_ratios: tuple[float, ...]
    """The widths S."""
    elastic_keeps: Tensor | None
    """As in `UpProjection`."""
    elastic_probs: Tensor | None = None
    """Training: q (B, S), which the channels are masked by (Eq. 13)."""

    def forward(self, h: Tensor) -> Tensor:
        """(B, T, n) to (B, T, D)."""
        if not is_elastic(self):  # type: ignore[arg-type]
            return type(self).forward(self, h)  # as above
        whole: Any = super().forward  # type: ignore[misc]
        if self.elastic_probs is not None:
            mask = straight_through_mask(self.elastic_probs, self.elastic_hidden, self.elastic_ratios)  # (B, F)
            stay = h.shape[-1] - self.elastic_hidden
            mask = F.pad(mask, (stay, 0), value=1.0) if stay else mask
            if _own_class(self) is nn.Linear:
                return masked_linear(self, h, mask)  # type: ignore[arg-type]
            return whole(h * mask.to(h.dtype).unsqueeze(1))
        if isinstance(h, MixedRows):
            stay = self.in_features - self.elastic_hidden  # type: ignore[attr-defined]
            return torch.cat([prefix_columns(self, whole, part, part.shape[-1] - stay) for part in h.parts])
        missing = self.in_features - h.shape[-1]  # type: ignore[attr-defined]
        if missing == 0 and self.elastic_keeps is None:
            return whole(h)
        return prefix_columns(self, whole, h, self.elastic_hidden - missing, self.elastic_keeps)


def make_elastic(layer: nn.Module, kind: type, **state: Any) -> None:
    """Make a projection of a block elastic: `kind` says which, `state` is what its class declares."""
    layer.__class__ = _elastic_class(kind, type(layer))
    for name, value in state.items():
        setattr(layer, name, value)


def is_elastic(layer: nn.Module) -> bool:
    """Whether `make_elastic` was here."""
    return hasattr(layer, "elastic_own_class")


@contextmanager
def as_dense(block: nn.Module) -> Iterator[None]:
    """While entered, the layers that another method has made its own compute all that the dense model's do."""
    kinds = {layer: type(layer) for layer in block.modules() if is_elastic(layer)}
    others = {layer: kind for layer, kind in kinds.items() if not issubclass(kind, UpProjection | DownProjection)}
    for layer in others:
        layer.__class__ = _own_class(layer)
    try:
        yield
    finally:
        for layer, kind in others.items():
            layer.__class__ = kind


def make_plain(layer: nn.Module) -> None:
    """Undo `make_elastic`."""
    for name in [name for name in layer.__dict__ if name.startswith("elastic_")]:
        del layer.__dict__[name]
    layer.__class__ = _own_class(layer)


def prefix_rows(
    layer: Any, forward: Callable[[Tensor], Tensor], x: Tensor, keep: int, hidden: int, keeps: Tensor | None = None
) -> Tensor:
    """The first `keep` of `hidden` output channels of a layer (of each half, if it has two).

    Args:
        layer: the projection D -> F or D -> 2F.
        forward: its own forward, at full width.
        x: (B, T, D).
        keep: channels wanted, of the widest row.
        hidden: F.
        keeps: in a compiled block, channels of each row (B,) where they differ; beyond its own a row has anything.
    """
    if _own_class(layer) is nn.Linear:
        return prefix_linear_rows(layer, x, keep, hidden, keeps)
    if _is_lora(layer):
        out = prefix_linear_rows(layer.base_layer, x, keep, hidden, keeps)
        for down, up, scale in _lora_pairs(layer):
            low = down(x.to(down.weight.dtype))
            out = out + scale * prefix_linear_rows(up, low, keep, hidden, keeps).to(out.dtype)
        return out
    halves = forward(x).split(hidden, dim=-1)
    return torch.cat([half[..., :keep] for half in halves], dim=-1)


def prefix_columns(
    layer: Any, forward: Callable[[Tensor], Tensor], h: Tensor, keep: int, keeps: Tensor | None = None
) -> Tensor:
    """A layer applied to the first channels of its input, which are all that `h` holds.

    Args:
        layer: the projection F -> D, perhaps with columns before the F that stay.
        forward: its own forward, at full width.
        h: (B, T, n), n = keep + the columns that stay.
        keep: channels of the widest row.
        keeps: in a compiled block, channels of each row (B,) where they differ.
    """
    if _own_class(layer) is nn.Linear:
        return prefix_linear_columns(layer, h, keep, keeps)
    if _is_lora(layer):
        out = prefix_linear_columns(layer.base_layer, h, keep, keeps)
        for down, up, scale in _lora_pairs(layer):
            low = prefix_linear_columns(down, h.to(down.weight.dtype), keep, keeps)
            out = out + scale * up(low).to(out.dtype)
        return out
    if keeps is not None:
        last = keeps.to(h.device).view(-1, 1, 1) + (h.shape[-1] - keep)
        h = h.where(torch.arange(h.shape[-1], device=h.device) < last, 0)
    return forward(F.pad(h, (0, layer.in_features - h.shape[-1])))


@cache
def _elastic_class(kind: type, own: type) -> type:
    return type(f"Elastic{own.__name__}", (kind, own), {"elastic_own_class": own})


def _own_class(layer: Any) -> type:
    return getattr(layer, "elastic_own_class", type(layer))


def _is_lora(layer: Any) -> bool:
    """A peft LoRA layer that adds plain up(down(x)) to a plain linear layer, unmerged."""
    if type(getattr(layer, "base_layer", None)) is not nn.Linear or not hasattr(layer, "lora_A"):
        return False
    variants = getattr(layer, "lora_variant", {})
    return not layer.merged and not any(name in variants for name in layer.active_adapters)


def _lora_pairs(layer: Any) -> list[tuple[nn.Linear, nn.Linear, float]]:
    if layer.disable_adapters:
        return []
    return [
        (layer.lora_A[name], layer.lora_B[name], layer.scaling[name])
        for name in layer.active_adapters
        if name in layer.lora_A
    ]
