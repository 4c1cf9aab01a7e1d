"""What stays outside of graphs, whoever compiles what is around it."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def eager(function: Function) -> Function:
    """Run a function as written also where torch.compile traces its caller: it keeps books, it does not compute."""
    return cast(Function, torch.compiler.disable(function))  # pyright: ignore[reportUnknownMemberType]
