"""Eq. 16 for a batch whose rows differ in width: all else in a block runs once for all of them.

B batch, T tokens, D model width, F MLP hidden width. `keeps` (B,) says how many channels each row keeps: integers
on the CPU, ascending, so that the rows of one width are a slice of the batch.

Between the two projections of an MLP the rows are `MixedRows`. In a compiled block they are one tensor, padded to
the widest row, and either projection is an operator that torch.compile does not look into: which row has which
width may change at every call, and no graph depends on it.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map


class MixedRows(Tensor):
    """Hidden activations whose rows differ in width: what is done to them is done to the rows of each width apart.

    So an activation function, or FLUX's concatenation with the attention's output, costs what the widths cost.
    """

    parts: list[Tensor]
    """(b, T, n) for each width, one below the other all rows."""

    @staticmethod
    def of(parts: list[Tensor]) -> "MixedRows":
        """From the rows of each width."""
        rows = parts[0].new_empty(0).as_subclass(MixedRows)
        rows.parts = parts
        return rows

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func` for the rows of each width, with the same rows of other tensors (B, T, n)."""
        everything = (list(args), kwargs or {})
        mixed = next(value for value in tree_leaves(everything) if isinstance(value, MixedRows))
        lengths = [len(part) for part in mixed.parts]

        def call(index: int) -> Any:
            before = sum(lengths[:index])

            def part(value: Any) -> Any:
                if isinstance(value, MixedRows):
                    return value.parts[index]
                batched = isinstance(value, Tensor) and value.ndim == 3 and len(value) == sum(lengths)
                return value[before : before + lengths[index]] if batched else value

            own, named = cast(tuple[list[Any], dict[str, Any]], tree_map(part, everything))
            return func(*own, **named)

        return _together([call(index) for index in range(len(lengths))])


def _together(results: list[Any]) -> Any:
    """What `func` returned for each width: tensors, tuples of them (of `chunk`), or what is not of the rows."""
    if isinstance(results[0], Tensor):
        return MixedRows.of(results)
    if type(results[0]) in (tuple, list):
        return tuple(_together(list(parts)) for parts in zip(*results, strict=True))
    return results[0]


def slices(keeps: Tensor) -> Iterator[tuple[slice, int]]:
    """The rows of each width, and how many channels they keep."""
    start = 0
    for own, rows in groupby(cast(list[int], keeps.numpy().tolist())):
        stop = start + len(list(rows))
        yield slice(start, stop), own
        start = stop


def _rows(x: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, keep: int, hidden: int) -> Tensor:
    """z W~_1, padded.

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
    halves = weight.shape[0] // hidden
    out = x.new_zeros(*x.shape[:-1], halves, keep)
    for rows, own in slices(keeps):
        for half in range(halves):
            kept = slice(half * hidden, half * hidden + own)
            _linear_into(out[rows, :, half, :own], x[rows], weight[kept], None if bias is None else bias[kept])
    return out.flatten(-2)


def _columns(h: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, stay: int) -> Tensor:
    """h W~_2 of the channels that are no padding.

    Args:
        h: (B, T, stay + channels of the widest row).
        weight: (D, stay + F).
        bias: (D,).
        keeps: channels of each row.
        stay: columns before the F, which all rows keep.

    Returns:
        (B, T, D).
    """
    out = h.new_empty(*h.shape[:-1], weight.shape[0])
    for rows, own in slices(keeps):
        _linear_into(out[rows], h[rows, :, : stay + own], weight[:, : stay + own], bias)
    return out


def _linear_into(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """x W^T + b, written where it belongs: `out` (b, T, n) is a view, and so are its rows one below the other."""
    if bias is None:
        torch.mm(x.flatten(0, 1), weight.T, out=out.flatten(0, 1))
    else:
        torch.addmm(bias, x.flatten(0, 1), weight.T, out=out.flatten(0, 1))


padded_rows: Any = torch.library.custom_op("elastic_dit::padded_rows", _rows, mutates_args=())
padded_columns: Any = torch.library.custom_op("elastic_dit::padded_columns", _columns, mutates_args=())


@padded_rows.register_fake
def _rows_shape(x: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, keep: int, hidden: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0] // hidden * keep)


@padded_columns.register_fake
def _columns_shape(h: Tensor, weight: Tensor, bias: Tensor | None, keeps: Tensor, stay: int) -> Tensor:
    return h.new_empty(*h.shape[:-1], weight.shape[0])
