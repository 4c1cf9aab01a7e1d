"""FLOPs of the blocks, at the shapes that they are called with."""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_dispatch import attention_backend
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from elastic_dit.backbones.base import TEXT
from elastic_dit.core.cost import BlockCost, fake_mode, measure_block
from elastic_dit.engine.linear import as_dense
from elastic_dit.engine.site import BlockCall, Site


class Costs:
    """What each kind of block costs at each shape, measured once on fake tensors."""

    def __init__(self) -> None:
        self.last: dict[int, BlockCost] = {}
        """Of each block, at the shapes of the last forward; empty where none ran at these yet."""
        self._before: dict[int, BlockCost] = {}
        self._tables: dict[Hashable, dict[int, BlockCost]] = {}
        self._measured: dict[Hashable, BlockCost] = {}

    def begin(self, arguments: dict[str, Any], sites: Sequence[Site]) -> None:
        """A forward of the transformer starts; its inputs' shapes say those of its blocks'."""
        self._before = self.last or self._before
        shapes = ((name, value.shape) for name, value in arguments.items() if isinstance(value, Tensor))
        self.last = self._tables.setdefault((*shapes, *(site.signature for site in sites)), {})

    @property
    def nearest(self) -> dict[int, BlockCost]:
        """The same; where none ran at these shapes yet, at those of the forward before, whose text may be longer."""
        return self.last or self._before

    def of(self, site: Site, call: BlockCall) -> BlockCost:
        """Of one block for one sample."""
        if site.index in self.last:
            return self.last[site.index]
        key = (site.signature, tuple(None if s is None else s.shape[1:] for s in (*call.x, call.arguments.get(TEXT))))
        if key not in self._measured:
            with torch.compiler.set_stance("force_eager"), fake_mode() as mode, attention_backend("native"):
                fake = tree_map(lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v, call.arguments)
                copy = BlockCall(site, fake)
                copy.any_rows = False
                with as_dense(site.block), _bare(site, call.image.device):
                    self._measured[key] = measure_block(lambda ratio: copy.run(copy.x, None, [ratio]), call.batch)
        cost = self.last[site.index] = self._measured[key]
        return cost


@contextmanager
def _bare(site: Site, device: torch.device) -> Iterator[None]:
    """While entered, under a fake mode, a block and its layers run without the hooks that others put on them.

    Those that offload weights would move real ones while all around is fake; instead a fake one stands for each weight
    that is elsewhere.
    """
    modules = list(site.block.modules())
    hooked = {module: vars(module).pop("forward") for module in modules if "forward" in vars(module)}
    forward, compiled = site.forward, site.compiled
    site.forward, site.compiled = site.block.forward, None
    weights = [(module._parameters, name, value) for module in modules for name, value in module._parameters.items()]
    away = [(held, name, value) for held, name, value in weights if value is not None and value.device != device]
    try:
        for held, name, value in away:
            held[name] = nn.Parameter(torch.empty_like(value, device=device), requires_grad=False)
        yield
    finally:
        for held, name, value in away:
            held[name] = value
        site.forward, site.compiled = forward, compiled
        for module, hook in hooked.items():
            vars(module)["forward"] = hook
