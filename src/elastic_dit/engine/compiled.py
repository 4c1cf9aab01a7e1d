"""torch.compile inside the hooks: one graph per block class and width, however many rows run."""

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.utils._pytree import tree_leaves

RECOMPILE_LIMIT = 64
"""Graphs of one block class: widths, times the shapes a session sees. Torch's 8 is less."""

ONE_SYMBOL = "shape_id" in inspect.signature(torch._dynamo.decorators.mark_unbacked).parameters
"""Whether this torch can be told that several tensors have the same unknown number of rows."""


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
            rows = len(arguments[self.streams[0]])
            for name in self.names:
                for value in tree_leaves(arguments.get(name)):
                    if isinstance(value, Tensor) and value.ndim and len(value) == rows:
                        mark_rows(value)
        return self.compiled(**arguments)


def _plain(stream: Tensor) -> Tensor:
    return stream.clone(memory_format=torch.contiguous_format) if stream._is_view() else stream.contiguous()


def mark_rows(value: Tensor) -> Tensor:
    """Any number of rows: "unbacked", since what torch calls dynamic makes one row a case of its own."""
    if ONE_SYMBOL:
        torch._dynamo.decorators.mark_unbacked(value, 0, shape_id="rows")
    else:
        torch._dynamo.maybe_mark_dynamic(value, 0)
    return value
