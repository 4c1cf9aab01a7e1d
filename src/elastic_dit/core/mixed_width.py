"""Eq. 16 for a batch whose rows differ in width: everything else in a block runs once for all of them.

B batch, T tokens, D model width, F MLP hidden width. `keeps` (B,) says how many channels each row keeps: integers
on the CPU, ascending, so that the rows of one width are a slice of the batch.

In a compiled block each product is one operator that torch.compile does not look into: which rows have which
width may change at every call, and no graph depends on it.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def mixed_rows(x: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, keep: int, hidden: int) -> Tensor:
    """z W~_1 with as many output channels for each row as it keeps, zeros after them.

    Args:
        x: (B, T, D).
        weight: (F, D), or (2F, D) where gated.
        bias: (F,) or (2F,).
        keeps: channels of each row.
        keep: of the widest.
        hidden: F.

    Returns:
        (B, T, keep), or (B, T, 2 keep) where gated.
    """
    if torch.compiler.is_compiling():
        return _rows_operator(x, weight, bias, keeps, keep, hidden)
    return _rows(x, weight, bias, keeps, keep, hidden)


def mixed_columns(h: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, stay: int) -> Tensor:
    """h W~_2 of as many input channels for each row as it keeps.

    Args:
        h: (B, T, stay + channels of the widest row).
        weight: (D, stay + F).
        bias: (D,).
        keeps: channels of each row.
        stay: columns before the F, which all rows keep.

    Returns:
        (B, T, D).
    """
    if torch.compiler.is_compiling():
        return _columns_operator(h, weight, bias, keeps, stay)
    return _columns(h, weight, bias, keeps, stay)


def _rows(x: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, keep: int, hidden: int) -> Tensor:
    halves = weight.shape[0] // hidden
    out = x.new_zeros(*x.shape[:-1], halves, keep)  # (B, T, 1 or 2, keep)
    for rows, own in _slices(keeps):
        for half in range(halves):
            kept = slice(half * hidden, half * hidden + own)
            out[rows, :, half, :own] = F.linear(x[rows], weight[kept], None if bias is None else bias[kept])
    return out.flatten(-2)


def _columns(h: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, stay: int) -> Tensor:
    parts = [F.linear(h[rows, :, : stay + own], weight[:, : stay + own], bias) for rows, own in _slices(keeps)]
    return torch.cat(parts)  # (B, T, D)


def _slices(keeps: Tensor) -> Iterator[tuple[slice, int]]:
    """The rows of each width, and its channels."""
    start = 0
    widths: list[int] = keeps.numpy().tolist()
    for own, rows in groupby(widths):
        stop = start + len(list(rows))
        yield slice(start, stop), own
        start = stop


_operator: Any = torch.library.custom_op  # pyright finds its types too wide
_rows_operator: Any = _operator("elastic_dit::mixed_rows", _rows, mutates_args=())
_columns_operator: Any = _operator("elastic_dit::mixed_columns", _columns, mutates_args=())


@_rows_operator.register_fake
def _rows_shape(x: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, keep: int, hidden: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // hidden * keep)


@_columns_operator.register_fake
def _columns_shape(h: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, stay: int) -> Tensor:
    return h.new_empty(*h.shape[:-1], weight.shape[0])
