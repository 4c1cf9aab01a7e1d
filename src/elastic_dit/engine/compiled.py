"""torch.compile inside the hooks: one graph per block class and width, however many rows run."""

from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.utils._pytree import tree_map_only

RECOMPILE_LIMIT = 64
"""Graphs of one block class: widths, times the shapes a session sees. Torch's 8 is less."""


class CompiledBlock:
    """A block's forward, compiled; blocks of a class share what is compiled.

    Args:
        forward: the block's own forward.
        streams: names of the arguments it updates.
        batched: names of its other arguments with the batch first.
        options: of `torch.compile`.
    """

    def __init__(
        self, forward: Callable[..., Any], streams: tuple[str, ...], batched: tuple[str, ...], options: dict[str, Any]
    ) -> None:
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILE_LIMIT)
        self.compiled: Callable[..., Any] = torch.compile(forward, **options)
        self.streams, self.names = streams, (*streams, *batched)

    def __call__(self, arguments: dict[str, Any], any_rows: bool) -> Any:
        """Run the block.

        Args:
            arguments: of its forward; the caller's no more.
            any_rows: whether calls differ in how many rows they have.
        """
        # A stream comes as a view from one block and whole from another: one layout, one graph.
        arguments |= {name: _plain(arguments[name]) for name in self.streams if arguments.get(name) is not None}
        if any_rows:
            for name in self.names:
                tree_map_only(Tensor, _mark_rows, arguments.get(name))
        return self.compiled(**arguments)


def _plain(stream: Tensor) -> Tensor:
    """In the usual layout; also the stride of a single row, which `contiguous` leaves as it was."""
    return stream.contiguous().flatten().view(stream.shape)


def _mark_rows(rows: Tensor) -> Tensor:
    """Any number of rows: "unbacked", since what torch calls dynamic makes one row a case of its own."""
    if rows.ndim:
        torch._dynamo.decorators.mark_unbacked(rows, 0)
    return rows
