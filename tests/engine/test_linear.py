"""Eq. 16 on plain linear layers, LoRA layers, gated layers and layers of a kind that cannot be sliced."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from elastic_dit.engine.linear import DownProjection, UpProjection, make_elastic, prefix_columns, prefix_rows

D, F = 6, 8


class Scaled(nn.Linear):
    """A layer whose weight is not what it multiplies by, as in quantised layers."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def lora(linear: nn.Module, *, dora: bool = False, merged: bool = False) -> nn.Module:
    holder = nn.ModuleDict({"layer": linear})
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["layer"], init_lora_weights=False, use_dora=dora)
    layer = inject_adapter_in_model(config, holder)["layer"]
    if merged:
        layer.merge()
    return layer


KINDS: dict[str, Callable[[int, int], nn.Module]] = {
    "plain": lambda i, o: nn.Linear(i, o),
    "no_bias": lambda i, o: nn.Linear(i, o, bias=False),
    "lora": lambda i, o: lora(nn.Linear(i, o)),
    "dora": lambda i, o: lora(nn.Linear(i, o), dora=True),
    "merged": lambda i, o: lora(nn.Linear(i, o), merged=True),
    "custom": lambda i, o: Scaled(i, o),
    "lora_on_custom": lambda i, o: lora(Scaled(i, o)),
}


@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_rows(kind: str, halves: int) -> None:
    layer, x = KINDS[kind](D, halves * F), torch.randn(2, 3, D)
    with torch.no_grad():
        whole = layer(x).split(F, dim=-1)
        for keep in (1, 5, F):
            expected = torch.cat([half[..., :keep] for half in whole], dim=-1)
            torch.testing.assert_close(prefix_rows(layer, layer.forward, x, keep, F), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_columns(kind: str) -> None:
    layer, h = KINDS[kind](F, D), torch.randn(2, 3, F)
    with torch.no_grad():
        for keep in (1, 5, F):
            zeroed = torch.cat([h[..., :keep], torch.zeros(2, 3, F - keep)], dim=-1)
            mine = prefix_columns(layer, layer.forward, h[..., :keep], keep)
            torch.testing.assert_close(mine, layer(zeroed))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("halves", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_different_width(kind: str, halves: int, compiled: bool) -> None:
    """Each row of an MLP as if it were alone; the down projection has columns that always stay."""
    keeps, stay = [2, 5, 5, F], 3
    up, down = KINDS[kind](D, halves * F), KINDS[kind](stay + F, D)
    x, before = torch.randn(4, 3, D), torch.randn(4, 3, stay)

    def between(z: Tensor, before: Tensor) -> Tensor:
        value, gate = (z, z) if halves == 1 else z.chunk(2, dim=-1)
        return torch.cat([before, value * nn.functional.gelu(gate, approximate="tanh")], dim=-1)

    def alone(x: Tensor, before: Tensor, keep: int) -> Tensor:
        return prefix_columns(down, down.forward, between(prefix_rows(up, up.forward, x, keep, F), before), keep)

    def together(x: Tensor, before: Tensor) -> Tensor:
        return down(between(up(x), before))

    with torch.no_grad():
        expected = torch.cat([alone(x[row : row + 1], before[row : row + 1], keep) for row, keep in enumerate(keeps)])
        mixed = torch.tensor(keeps)
        make_elastic(up, UpProjection, elastic_hidden=F, elastic_keep=F, elastic_keeps=mixed)
        make_elastic(down, DownProjection, elastic_hidden=F, elastic_ratios=(1.0,), elastic_keeps=mixed)
        run = torch.compile(together, backend="aot_eager") if compiled else together
        torch.testing.assert_close(run(x, before), expected)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_disabled_lora_is_not_added(kind: str) -> None:
    layer, x = KINDS[kind](D, F), torch.randn(1, 2, D)
    layer.enable_adapters(False)
    with torch.no_grad():
        torch.testing.assert_close(prefix_rows(layer, layer.forward, x, 4, F), layer.base_layer(x)[..., :4])


def test_plain_slices_are_views() -> None:
    """Autograd sees the slice, and no full-width product is computed."""
    layer, x = nn.Linear(D, F), torch.randn(1, 2, D)
    prefix_rows(layer, layer.forward, x, 4, F).sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad[:4].any()
    assert not layer.weight.grad[4:].any()
