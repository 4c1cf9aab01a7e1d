"""The layers of a DyDiT transformer: projections that compute some heads or channels, for some tokens.

In eval mode what is left out is not computed, where all rows agree on the widths; otherwise all is computed and masked,
and what that would save is noted. B batch, T tokens, D model width, F MLP hidden width, H heads or groups.
"""

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from elastic_dit.engine.site import ROWS

if TYPE_CHECKING:
    from elastic_dit.conversions.dydit import DyDiT


def linear_for(x: Tensor, tokens: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A projection of some tokens, 0 for the others.

    Args:
        x: (B, T, n).
        tokens: places of those tokens among all B T, in order; None: all are computed.
        weight: (m, n).
        bias: (m,).

    Returns:
        (B, T, m).
    """
    if tokens is None:
        return F.linear(x, weight, bias)
    out = x.new_zeros(x.shape[0] * x.shape[1], len(weight))
    out[tokens] = F.linear(x.flatten(0, 1)[tokens], weight, bias)
    return out.view(*x.shape[:2], -1)


class Width:
    """The heads of an attention, or the channel groups of an MLP, that are on in this forward."""

    def __init__(self, count: int, channels: int) -> None:
        self.count = count if channels % count == 0 else 1
        self.channels = channels
        self.of_batch = torch.ones(1, self.count)
        """(B, H), or (1, H)."""
        self.kept: Tensor | None = None
        """Where the rest is not computed: the channels that are, in order."""

    def set(self, mask: Tensor, on: list[bool] | None) -> None:
        """Take the mask (B, H); where all rows are alike, also for the host: which heads or groups are on."""
        self.of_batch, self.kept = mask, None
        if on is not None:
            size = self.channels // self.count
            groups = torch.tensor([index for index, one in enumerate(on) if one])
            self.kept = (groups.unsqueeze(-1) * size + torch.arange(size)).flatten().to(mask.device)

    @property
    def mask(self) -> Tensor:
        """Of the rows that run now, (B, H)."""
        rows = ROWS.get()
        return self.of_batch if rows is None or len(self.of_batch) == 1 else self.of_batch[rows]

    @property
    def share(self) -> Tensor:
        """Of the channels that are on, (B,)."""
        return self.mask.mean(dim=-1)

    def spread(self) -> Tensor:
        """The mask by channel, (B, 1, channels)."""
        return self.mask.repeat_interleave(self.channels // self.count, dim=-1).unsqueeze(1)


class Heads(Width):
    """Of one attention, with the tokens that it was called on."""

    tokens = 0


class AttentionInput:
    """D -> heads: the rows of the heads that are on."""

    elastic_owner: "DyDiT"
    elastic_heads: Heads
    elastic_counts: bool
    """Whether this projection's tokens are queries: each stream is counted once."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, kept heads)."""
        layer: Any = self
        heads = self.elastic_heads
        if heads.kept is None:
            heads.tokens += x.shape[1] if self.elastic_counts else 0
            self.elastic_owner.save(layer, x.shape[1], 1 - heads.share)
            return super().forward(x)  # type: ignore[misc]
        return F.linear(x, layer.weight[heads.kept], None if layer.bias is None else layer.bias[heads.kept])


class AttentionOutput:
    """Heads -> D: the columns of the heads that are on."""

    elastic_owner: "DyDiT"
    elastic_heads: Heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, kept heads) to (B, T, D)."""
        layer: Any = self
        heads = self.elastic_heads
        if heads.kept is None:
            self.elastic_owner.save(layer, x.shape[1], 1 - heads.share)
            self.elastic_owner.save_attention(heads, x.shape[1])
            return super().forward(x * heads.spread().to(x.dtype))  # type: ignore[misc]
        return F.linear(x, layer.weight[:, heads.kept], layer.bias)


class Channels(Width):
    """Of one MLP, with the tokens that it is computed for."""

    gate: int | None = None
    """Which of the model's token gates chooses them; None: all are computed."""
    text = 0
    """Tokens of the text, which come first and are all computed."""
    tokens: Tensor
    """(B, T, 1), 0 or 1."""
    places: Tensor | None = None
    """Where the rest is not computed: of the chosen tokens among all B T; None: all are."""

    @property
    def token_share(self) -> Tensor:
        """(B,)."""
        return self.tokens.mean(dim=(1, 2))


class Up:
    """D -> F, or 2F where gated: for the tokens that are chosen, the channels that are on; 0 for other tokens."""

    elastic_owner: "DyDiT"
    elastic_channels: Channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, kept channels)."""
        layer: Any = self
        model, channels = self.elastic_owner, self.elastic_channels
        model.choose_tokens(channels, x)
        if channels.kept is None:
            model.save(layer, x.shape[1], 1 - channels.share * channels.token_share)
            return super().forward(x)  # type: ignore[misc]
        halves = range(0, layer.out_features, channels.channels)
        rows = torch.cat([channels.kept + start for start in halves])
        return linear_for(x, channels.places, layer.weight[rows], None if layer.bias is None else layer.bias[rows])


class Down:
    """F -> D, perhaps with attention's columns before the F: the same channels, for the same tokens."""

    elastic_owner: "DyDiT"
    elastic_channels: Channels
    elastic_heads: Heads | None
    """Where attention leaves through this projection."""

    def forward(self, h: Tensor) -> Tensor:
        """(B, T, kept channels) to (B, T, D)."""
        layer: Any = self
        model, channels, heads = self.elastic_owner, self.elastic_channels, self.elastic_heads
        stay = layer.in_features - channels.channels
        if channels.kept is None:
            share = channels.share * channels.channels + (stay if heads is None else heads.share * stay)
            model.save(layer, h.shape[1], 1 - channels.token_share * share / layer.in_features)
            if heads is not None:
                model.save_attention(heads, h.shape[1])
            before = h.new_ones(1, 1, stay) if heads is None else heads.spread()
            before, own = before.expand(len(h), -1, -1), channels.spread().expand(len(h), -1, -1)
            return super().forward(h * torch.cat([before, own], dim=-1).to(h.dtype)) * channels.tokens.to(h.dtype)  # type: ignore[misc]
        before = torch.arange(stay, device=h.device) if heads is None or heads.kept is None else heads.kept
        columns = torch.cat([before, channels.kept + stay])
        return linear_for(h, channels.places, layer.weight[:, columns], layer.bias)
