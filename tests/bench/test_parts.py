"""One block, its router, and its MLP at each width."""

import pytest
import torch

from elastic_dit.bench.parts import _other_share, parts
from elastic_dit.bench.sizes import Size
from elastic_dit.report.bench_tables import markdown


def test_a_record(tiny_size: Size) -> None:
    shown: list[str] = []
    record = parts(
        tiny_size,
        torch.device("cpu"),
        torch.float32,
        batch=2,
        repeats=3,
        config={"size": "tiny"},
        progress=lambda what, *_: shown.append(what),
    )
    results = record.results
    assert [each["width"] for each in results["slices"]] == [0.25, 0.5, 0.75, 1.0]
    assert set(record.samples) == {f"{name}_seconds" for name in shown}
    assert all(len(values) == 3 for values in record.samples.values())
    assert 0 < results["router_flops_share"] < 1
    router, block = (sorted(record.samples[f"{name}_seconds"]) for name in ("router", "block"))
    assert results["router_seconds"]["median"] == router[1]
    assert results["router_share"]["max"] <= router[-1] / block[0]
    assert 0 < results["other_share"] < 1
    text = markdown(record)
    assert "A router of tiny, batch 2, float32" in text
    assert f"{results['router_flops_share']:.2%}" in text


def test_the_router_has_the_flops_of_the_equations(tiny_size: Size) -> None:
    """Beside the hidden states' projection a router has hardly any."""
    record = parts(tiny_size, torch.device("cpu"), torch.float32, batch=1, repeats=1)
    transformer = tiny_size.transformer()
    dim = transformer.config.num_attention_heads * transformer.config.attention_head_dim
    projection = 2 * tiny_size.tokens * dim * 64
    single = transformer.single_transformer_blocks[-1]
    weights = sum(p.numel() for name, p in single.named_parameters() if name.endswith("weight") and p.ndim == 2)
    tokens = tiny_size.tokens + tiny_size.text
    modulation = single.norm.linear.weight.numel() * (tokens - 1)  # of one row, not of each token
    attention = 4 * tokens**2 * dim
    block = 2 * (weights * tokens - modulation) + attention
    assert record.results["router_flops_share"] == pytest.approx(projection / block, rel=0.15)


def test_what_is_no_product() -> None:
    x, cpu = torch.randn(600, 600), torch.device("cpu")
    assert _other_share(lambda: x @ x, cpu) < 0.3
    assert _other_share(lambda: x.sin().cos(), cpu) == 1
