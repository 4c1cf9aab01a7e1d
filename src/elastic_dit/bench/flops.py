"""FLOPs as they are executed, by torch's counter: whatever a method does is counted, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


class _Whole:
    """In place of torch's tracker of modules: the total needs none, and cache-dit's modules contain themselves."""

    parents = frozenset({"Global"})

    def __enter__(self) -> "_Whole":
        return self

    def __exit__(self, *error: object) -> None:
        return None


class Counting(FlopCounterMode):
    """Counts the FLOPs that are really executed; what is compiled runs eagerly meanwhile."""

    def __init__(self) -> None:
        attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # torch's counter does not know it
        super().__init__(display=False, custom_mapping={attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)})
        self.mod_tracker = _Whole()

    def __enter__(self) -> "Counting":
        self._stance = torch.compiler.set_stance("force_eager")
        self._stance.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stance.__exit__(*error)


@contextmanager
def forward_flops(transformer: nn.Module) -> Iterator[list[int]]:
    """While entered, the FLOPs of every forward of a transformer; a pipeline's other parts do not count."""
    flops: list[int] = []
    counters: list[Counting] = []

    def before(*_: Any) -> None:
        counters.append(Counting())
        counters[-1].__enter__()

    def after(*_: Any) -> None:
        counters[-1].__exit__(None, None, None)
        flops.append(counters.pop().get_total_flops())

    handles = [transformer.register_forward_pre_hook(before), transformer.register_forward_hook(after)]
    try:
        yield flops
    finally:
        for handle in handles:
            handle.remove()
