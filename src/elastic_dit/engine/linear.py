"""Eq. 16 on the linear layers that occur in practice: plain ones, peft's LoRA layers, and any other.

peft's LoRA layers report the base weight as `.weight`, so slicing that alone would drop the LoRA in
silence. A layer of another kind (quantised, say) runs whole: right, but no faster.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_dit.core.width import prefix_linear_columns, prefix_linear_rows


def prefix_rows(layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor, keep: int, hidden: int) -> Tensor:
    """The first `keep` of `hidden` output channels of a layer (of each half, if it has two).

    Args:
        layer: the projection D -> F or D -> 2F.
        forward: its own, unhooked forward.
        x: (B, T, D).
        keep: channels wanted.
        hidden: F.
    """
    if type(layer) is nn.Linear:
        return prefix_linear_rows(layer, x, keep, hidden)
    if _is_lora(layer):
        base: Any = layer.base_layer
        out = prefix_linear_rows(base, x, keep, hidden)
        for down, up, scale in _lora_pairs(layer):
            low = down(x.to(down.weight.dtype))
            out = out + scale * prefix_linear_rows(up, low, keep, hidden).to(out.dtype)
        return out
    halves = forward(x).split(hidden, dim=-1)
    return torch.cat([half[..., :keep] for half in halves], dim=-1)


def prefix_columns(layer: nn.Module, forward: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    """A layer applied to the first channels of its input, which are all that `h` (B, T, n) holds."""
    if type(layer) is nn.Linear:
        return prefix_linear_columns(layer, h)
    if _is_lora(layer):
        base: Any = layer.base_layer
        out = prefix_linear_columns(base, h)
        for down, up, scale in _lora_pairs(layer):
            low = prefix_linear_columns(down, h.to(down.weight.dtype))
            out = out + scale * up(low).to(out.dtype)
        return out
    full: int = layer.in_features  # type: ignore[assignment]
    return forward(F.pad(h, (0, full - h.shape[-1])))


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
