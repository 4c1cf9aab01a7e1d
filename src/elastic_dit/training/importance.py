"""Order MLP channels by importance, so that a prefix of them is the best one of its size.

A permutation of hidden channels leaves the dense function as it was: rows of the up projection, its
bias and columns of the down projection move together.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.site import Site, hidden_size

Importance = dict[tuple[int, str], Tensor]
"""By block and path of the down projection: one value a channel, (F,)."""


Orders = dict[str, list[int]]
"""By block and path of the down projection, `0.ff.net.2`: the channels, the most important first."""


@torch.no_grad()
def order_channels(elastic: ElasticModel, batches: Iterable[dict[str, Any]], orders: Orders | None = None) -> Orders:
    """Permute the channels of every MLP that shrinks, the most important first.

    Args:
        elastic: at full capacity, so that its forward is the dense one.
        batches: transformer inputs to measure on; none changes nothing.
        orders: what was measured before, in place of a measurement.

    Returns:
        The orders that they are in now, in terms of those that they came in.
    """
    elastic.weights.watch(elastic.transformer)
    if orders is None:
        importance = measure_importance(elastic, batches)
        orders = {
            f"{index}.{path}": value.argsort(descending=True, stable=True).tolist()
            for (index, path), value in importance.items()
        }
    for site in elastic.sites:
        for mlp in site.mlps:
            if order := orders.get(f"{site.index}.{mlp.down}"):
                permute(site.block, mlp.up, mlp.down, torch.tensor(order))
    return orders


def measure_importance(elastic: ElasticModel, batches: Iterable[dict[str, Any]]) -> Importance:
    """RMS of each hidden channel's activation times the norm of its outgoing column."""
    squares: Importance = {}
    counts: dict[tuple[int, str], int] = {}
    handles: list[Any] = []

    def watch(site: Site, path: str, hidden: int) -> None:
        key = (site.index, path)

        def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if isinstance(inputs[0], FakeTensor):  # the engine counting FLOPs
                return
            h = inputs[0][..., -hidden:].float()  # (B, T, F)
            squares[key] = squares.get(key, torch.zeros(hidden, device=h.device)) + h.square().sum(dim=(0, 1))
            counts[key] = counts.get(key, 0) + h.shape[0] * h.shape[1]

        handles.append(site.block.get_submodule(path).register_forward_pre_hook(collect))

    for site in elastic.sites:
        for mlp in site.mlps:
            watch(site, mlp.down, hidden_size(site.block, mlp))
    try:
        for inputs in batches:
            elastic.transformer(**inputs, return_dict=False)
    finally:
        for handle in handles:
            handle.remove()
        elastic.reset()
    result: Importance = {}
    for (index, path), square in squares.items():
        down: Any = _base(elastic.sites[index].block.get_submodule(path))
        outgoing = down.weight[:, -len(square) :].float().norm(dim=0)  # (F,)
        result[index, path] = (square / counts[index, path]).sqrt() * outgoing
    return result


def permute(block: nn.Module, up_path: str, down_path: str, order: Tensor) -> None:
    """Put the hidden channels of one MLP in `order` (F,), in place."""
    up: Any = _base(block.get_submodule(up_path))
    down: Any = _base(block.get_submodule(down_path))
    hidden = len(order)
    rows = torch.cat([order + start for start in range(0, up.out_features, hidden)])
    up.weight.copy_(up.weight[rows].clone())
    if up.bias is not None:
        up.bias.copy_(up.bias[rows].clone())
    down.weight[:, -hidden:] = down.weight[:, -hidden:][:, order].clone()


def _base(layer: nn.Module) -> nn.Module:
    """The layer below a LoRA."""
    return getattr(layer, "base_layer", layer)
