"""Eq. 11-13 and 16, section 3.2 "Adaptive MLP Width Reduction": how wide a block's MLP runs.

B batch, T tokens, D model width, F MLP hidden width, S number of widths.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from elastic_dit.core.mixed_width import padded_columns, padded_rows


def channels(ratio: float, hidden: int) -> int:
    """Number of channels s * F that a width ratio keeps, at least 1."""
    return max(1, round(ratio * hidden))


def width_probabilities(width_logits: Tensor) -> Tensor:
    """Eq. 11: q = softmax(u), (B, S)."""
    return width_logits.softmax(dim=-1)


def selected_width(width_probs: Tensor, ratios: Tensor) -> Tensor:
    """Eq. 12: the ratio of the highest probability, (B,)."""
    return ratios[width_probs.argmax(dim=-1)]


def straight_through_width(width_probs: Tensor, ratios: Tensor) -> Tensor:
    """The selected ratio with the gradient of the expected one, (B,): what a hard width budget sees."""
    expected = (width_probs * ratios).sum(dim=-1)
    return selected_width(width_probs, ratios) + (expected - expected.detach())


def prefix_mask(width: Tensor, hidden: int, ratios: Sequence[float]) -> Tensor:
    """m(s) of Eq. 13: 1 on the first s * F channels, (B, F) float32, for widths (B,) among `ratios`."""
    kept = torch.tensor([channels(ratio, hidden) for ratio in ratios], device=width.device)
    chosen = (width.unsqueeze(-1) - torch.tensor(ratios, device=width.device)).abs().argmin(dim=-1)
    return (torch.arange(hidden, device=width.device) < kept[chosen].unsqueeze(-1)).float()


def expected_prefix_mask(width_probs: Tensor, hidden: int, ratios: Sequence[float]) -> Tensor:
    """sum_j q_j m(s_j), (B, F): the probability that a channel is kept."""
    kept = [channels(ratio, hidden) for ratio in ratios]
    sizes = torch.tensor([b - a for a, b in zip([0, *kept], kept, strict=False)], device=width_probs.device)
    at_least = width_probs.flip(-1).cumsum(-1).flip(-1)  # (B, S): P(width >= s_j)
    return at_least.repeat_interleave(sizes, dim=-1, output_size=hidden)


def straight_through_mask(width_probs: Tensor, hidden: int, ratios: Sequence[float]) -> Tensor:
    """Eq. 13's mask (B, F) with the gradient of the expected mask, so that quality reaches the logits."""
    hard = prefix_mask(selected_width(width_probs, torch.tensor(ratios).to(width_probs)), hidden, ratios)
    expected = expected_prefix_mask(width_probs, hidden, ratios)
    return hard + (expected - expected.detach())


class MaskedLinear(torch.autograd.Function):
    """Eq. 13, (h * m) W_2, which keeps h for the backward pass and not h * m as well.

    A block's hidden activations are the largest it has; plain autograd would keep them twice.
    """

    @staticmethod
    def forward(ctx: Any, h: Tensor, mask: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """h (B, T, F), mask (B, 1, F), weight (D, F), bias (D,) to (B, T, D); all of one dtype."""
        ctx.save_for_backward(h, mask, weight)
        return F.linear(h * mask, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """By the chain rule; h * m is computed again."""
        (grad,), (h, mask, weight) = grads, ctx.saved_tensors
        wants_h, wants_mask, wants_weight, wants_bias = ctx.needs_input_grad
        d_weight = grad.flatten(0, 1).T @ (h * mask).flatten(0, 1) if wants_weight else None
        d_bias = grad.sum(dim=(0, 1)) if wants_bias else None
        if not (wants_h or wants_mask):
            return None, None, d_weight, d_bias
        d_masked = grad @ weight  # (B, T, F), of h * m
        d_mask = (d_masked * h).sum(dim=1, keepdim=True) if wants_mask else None
        return d_masked.mul_(mask), d_mask, d_weight, d_bias


def masked_linear(linear: nn.Linear, h: Tensor, mask: Tensor) -> Tensor:
    """Eq. 13 on a plain linear layer, in autocast's dtype where it is on.

    Args:
        linear: the projection F -> D.
        h: (B, T, F).
        mask: (B, F).
    """
    device, weight, bias = h.device.type, linear.weight, getattr(linear, "bias")  # noqa: B009  it may be None
    if torch.is_autocast_enabled(device):
        low = torch.get_autocast_dtype(device)
        h, weight, bias = h.to(low), weight.to(low), None if bias is None else bias.to(low)
    with torch.autocast(device, enabled=False):
        return cast(Tensor, MaskedLinear.apply(h, mask.to(h.dtype).unsqueeze(1), weight, bias))  # pyright: ignore[reportUnknownMemberType]


def prefix_linear_rows(linear: nn.Linear, x: Tensor, keep: int, hidden: int, keeps: Tensor | None = None) -> Tensor:
    """Eq. 16, z W~_1: the first `keep` of F output channels; weights are views.

    A gated projection (GEGLU, SwiGLU) has its F value rows before its F gate rows; both shrink together,
    and the output is (B, T, 2 keep).

    Args:
        linear: the projection D -> F or D -> 2F.
        x: (B, T, D).
        keep: channels of the widest row.
        hidden: F.
        keeps: in a compiled block, channels of each row where they differ: see `mixed_width`.

    Returns:
        (B, T, keep), or (B, T, 2 keep).
    """
    bias: Tensor | None = getattr(linear, "bias")  # noqa: B009  torch types it as always there
    if keeps is not None:
        return padded_rows(x, linear.weight, bias, keeps, keep, hidden)
    outputs = [
        F.linear(x, linear.weight[start : start + keep], None if bias is None else bias[start : start + keep])
        for start in range(0, linear.out_features, hidden)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def prefix_linear_columns(linear: nn.Linear, h: Tensor, keep: int, keeps: Tensor | None = None) -> Tensor:
    """Eq. 16, h W~_2: a projection of the first channels of its input, which are all that `h` holds.

    Args:
        linear: the projection F -> D; it may have columns before the F, which always stay.
        h: (B, T, n), n = keep + the columns that stay.
        keep: channels of the widest row.
        keeps: in a compiled block, channels of each row where they differ: see `mixed_width`.
    """
    if keeps is not None:
        return padded_columns(h, linear.weight, linear.bias, keeps, h.shape[-1] - keep)
    return F.linear(h, linear.weight[:, : h.shape[-1]], linear.bias)
