"""Eq. 4-5 and the token mean of Eq. 6 in a GPU kernel that reads the hidden states once. Imported where Triton is.

B batch, L blocks, T tokens, D model width, R router hidden width.

FLUX.1-dev, 4096 tokens of width 3072 in bfloat16: beside the weights 25 MB are read, where the plain form's operators
read 128 MB and write 103 MB.
"""

# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false
# pyright: reportUntypedFunctionDecorator=false
# ruff: noqa: ANN001, ANN201, ANN202
# Triton comes with the CUDA builds of torch alone, and a kernel's arguments are pointers and numbers of its own types.

from typing import Any, NamedTuple, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_T = 64
"""Tokens of a tile, for each of which the weight is read again, from the L2 cache: fewer are slower on long inputs."""
SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def _activate(h, activation: tl.constexpr):
    """act of Eq. 5, any shape."""
    if activation == "relu":
        return tl.where(h < 0, 0.0, h)  # unlike a maximum, keeps NaN
    if activation == "gelu":
        return 0.5 * h * (1 + tl.erf(h * SQRT_HALF))
    return h / (1 + tl.exp(-h))


@triton.jit
def scale_weight(weight, gamma, parts, weight_sum, batch, D, exact: tl.constexpr, BD: tl.constexpr):
    """w = (1 + gamma) W for one row of a block's W and one sample, and its sum; `scale` tells the shapes.

    Where x is bfloat16, w becomes three bfloat16 that hold a float32's 24 bits: their exponents are alike, and their
    products with x are exact in float32. So tensor cores have the accuracy of float32, which they would not be given.
    """
    r, row, R = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)  # row: of all samples of all blocks
    d = tl.arange(0, BD)
    w = tl.load(weight + (row // batch * R + r) * D + d, mask=d < D, other=0.0)
    w *= 1 + tl.load(gamma + row * D + d, mask=d < D, other=0.0)
    tl.store(weight_sum + row * R + r, tl.sum(w, axis=0))
    if exact:
        tl.store(parts + (row * R + r) * D + d, w, mask=d < D)
    else:
        high = w.to(tl.bfloat16)
        rest = w - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        at = parts + (row * 3 * R + r) * D + d
        tl.store(at, high, mask=d < D)
        tl.store(at + R * D, middle, mask=d < D)
        tl.store(at + 2 * R * D, low, mask=d < D)


@triton.jit
def pool_tile(
    x,
    parts,
    weight_sum,
    shift,
    mask,
    partial,
    T,
    D,
    R,
    x_b,
    x_t,
    x_d,
    mask_b,
    mask_t,
    activation: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    BR: tl.constexpr,
):
    """Eq. 4-5 for one tile of one sample's tokens, summed over them; `fused_pool` tells the shapes.

    LayerNorm comes after the product, LN(x) w = (x w - mean(x) sum(w)) / std(x), so that x passes by once. Nothing is
    summed across threads before the last chunk has come: waiting would be most of the time.
    """
    tile, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    t, r, lane = tile * BT + tl.arange(0, BT), tl.arange(0, BR), tl.arange(0, BD)
    product = tl.zeros((BR, BT), tl.float32)  # x w
    # Welford's mean and squared deviations of the channels lane, lane + BD, lane + 2 BD ... of each token
    mean, squares = tl.zeros((BD, BT), tl.float32), tl.zeros((BD, BT), tl.float32)
    for start in range(0, D, BD):
        d = start + lane
        at = x + row * x_b + t.to(tl.int64)[None, :] * x_t + d.to(tl.int64)[:, None] * x_d
        tokens = tl.load(at, mask=(d < D)[:, None] & (t < T)[None, :], other=0.0)  # (BD, BT)
        there = (r < R)[:, None] & (d < D)[None, :]
        if tokens.dtype == tl.bfloat16:
            at = parts + (row * 3 * R + r[:, None]) * D + d[None, :]
            high = tl.dot(tl.load(at, mask=there, other=0.0), tokens)
            middle = tl.dot(tl.load(at + R * D, mask=there, other=0.0), tokens)
            low = tl.dot(tl.load(at + 2 * R * D, mask=there, other=0.0), tokens)
            product += high + (middle + low)  # outside of tensor cores, which truncate where they add
        else:  # rare; and float16 has not the exponents for the parts of a small weight
            w = tl.load(parts + (row * R + r[:, None]) * D + d[None, :], mask=there, other=0.0)
            product = tl.dot(w, tokens.to(tl.float32), product, input_precision="ieee")
        values = tokens.to(tl.float32)
        apart = tl.where((d < D)[:, None], values - mean, 0.0)
        mean += apart * (1.0 / (start // BD + 1))
        squares += apart * (values - mean)
    count = ((D - lane + BD - 1) // BD).to(tl.float32)[:, None]  # channels of each lane
    whole = tl.sum(mean * count, axis=0) / D  # (BT,)
    apart = mean - whole[None, :]
    rstd = 1 / tl.sqrt(tl.sum(squares + apart * apart * count, axis=0) / D + 1e-6)  # LayerNorm's eps
    delta = tl.load(shift + row * R + r, mask=r < R, other=0.0)
    total = tl.load(weight_sum + row * R + r, mask=r < R, other=0.0)
    normed = (product - total[:, None] * whole[None, :]) * rstd[None, :]  # LN(x) w, (BR, BT)
    h = _activate(normed + delta[:, None], activation)  # (BR, BT)
    counts = t < T
    if mask is not None:
        counts &= tl.load(mask + row * mask_b + t.to(tl.int64) * mask_t, mask=counts, other=0) != 0
    summed = tl.sum(tl.where(counts[None, :], h, 0.0), axis=1)  # (BR,)
    if mask is None:
        summed /= T
    tl.store(partial + (row * tl.num_programs(0) + tile) * R + r, summed, mask=r < R)


def blocks(hidden: int) -> dict[str, int]:
    """A tile's sizes for R: up to 256 they stay in registers, beyond it would be slow.

    For R = 64 the best all-round of 16 on an H200: 35 us at 4,096 bfloat16 tokens of width 3072; 8 warps take 59.
    """
    wide = max(16, 1 << (hidden - 1).bit_length())  # a dot has no side below 16
    warps = 4 if wide <= 64 else 8
    return {"BT": BLOCK_T, "BD": max(16, min(64, 4096 // wide)), "BR": wide, "num_warps": warps, "num_stages": 3}


class ScaledWeight(NamedTuple):
    """w = (1 + gamma) W of one block, as the kernel reads it."""

    parts: Tensor
    """Three bfloat16 that add up to w, (B, 3, R, D); or w itself, float32 (B, 1, R, D)."""
    weight_sum: Tensor
    """w summed over D, (B, R)."""


def scale(weights: Tensor, gamma: Tensor, dtype: torch.dtype) -> list[ScaledWeight]:
    """The weights of L blocks, all at once.

    Args:
        weights: W, (L, R, D), float32.
        gamma: of Eq. 4, (L, B, D), float32.
        dtype: of the hidden states.
    """
    (layers, hidden, dim), batch, exact = weights.shape, gamma.shape[1], dtype != torch.bfloat16
    kind = torch.float32 if exact else torch.bfloat16
    parts = weights.new_empty(layers, batch, 1 if exact else 3, hidden, dim, dtype=kind)
    weight_sum = weights.new_empty(layers, batch, hidden)
    with torch.cuda.device_of(weights):
        cast(Any, scale_weight)[hidden, layers * batch](
            weights.contiguous(), gamma.contiguous(), parts, weight_sum, batch, dim, exact, triton.next_power_of_2(dim)
        )
    return [ScaledWeight(*own) for own in zip(parts.unbind(), weight_sum.unbind(), strict=True)]


def fused_pool(x: Tensor, scaled: ScaledWeight, shift: Tensor, mask: Tensor | None, activation: str) -> Tensor:
    """`plain_pool` without gradients: Eq. 4-5 and the token mean of Eq. 6, to float32 accuracy.

    The same inputs give the same bits: each tile has its own partial sum, and none waits for another. As with any
    LayerNorm after the product, the error grows with |mean| / std of a token's channels.

    Args:
        x: hidden states (B, T, D), float32 or half precision, of any strides.
        scaled: of the block, made for the dtype of x.
        shift: delta W + b, (B, R), float32.
        mask: bool (B, T), true where a token counts; None counts all.
        activation: "relu", "gelu" or "silu".

    Returns:
        (B, R), float32.
    """
    batch, tokens, dim = x.shape
    hidden, tiles = shift.shape[1], -(-tokens // BLOCK_T)
    partial = x.new_empty(batch, tiles, hidden, dtype=torch.float32)
    with torch.cuda.device_of(x):
        cast(Any, pool_tile)[tiles, batch](
            x, *scaled, shift.contiguous(), mask, partial, tokens, dim, hidden,
            *x.stride(), *((0, 0) if mask is None else mask.stride()),
            activation=activation, **blocks(hidden),
        )  # fmt: skip
    summed = partial.sum(dim=1)  # (B, R)
    return summed if mask is None else summed / mask.sum(dim=1, keepdim=True).clamp(min=1)
