"""The seeded schedule keeps its rates; the benchmark measures every variant and says what was spent."""

from typing import Any

import numpy as np
import pytest
import torch

from elastic_dit.backbones import backbones
from elastic_dit.bench.latency import DENSE, LatencyBench
from elastic_dit.bench.schedule import Rates, sample_plan
from elastic_dit.bench.sizes import SIZES, Size, size
from elastic_dit.core.cache import FeatureBank
from elastic_dit.errors import UnknownNameError


@pytest.fixture
def tiny_size() -> Size:
    flux = backbones["flux"]
    assert flux.tiny is not None

    def inputs(transformer: Any, batch: int) -> dict[str, Any]:
        assert flux.tiny is not None
        made = flux.tiny()[1](batch)
        return {name: value for name, value in made.items() if name != "timestep"}

    return Size("tiny", steps=4, branches=2, build=lambda: flux.tiny()[0], inputs=inputs)  # type: ignore[index]


@pytest.mark.parametrize(("steps", "blocks", "batch"), [(28, 57, 1), (8, 12, 4)])
def test_the_schedule_has_the_rates(steps: int, blocks: int, batch: int) -> None:
    plan, rates = sample_plan(steps, blocks, batch, Rates(), seed=3), Rates()
    assert plan.keep.shape == (steps, blocks, batch)
    assert plan.keep.mean() == pytest.approx(rates.open_rate, abs=0.01)
    assert plan.reuse[plan.keep].mean() == pytest.approx(rates.reuse_rate, abs=0.01)
    assert plan.width[plan.keep & ~plan.reuse].mean() == pytest.approx(0.65, abs=0.03)
    assert plan.keep[:, [0, 1, -3, -2, -1]].all()
    assert not plan.reuse[0].any()


def test_every_reuse_of_the_schedule_finds_a_residual() -> None:
    plan = sample_plan(28, 57, 1, Rates())
    for block in range(57):
        bank = FeatureBank(max_reuse=100)
        for step in range(28):
            decision = plan.decision(step, block, 1)
            if decision.keep[0] and decision.reuse[0]:
                assert bank.can_reuse(0, step)
            elif decision.keep[0] and decision.store[0]:
                bank.store(0, (torch.zeros(1, 1, 1),), (torch.ones(1, 1, 1),), step)


def test_the_schedule_is_seeded() -> None:
    a, b, c = (sample_plan(5, 12, 2, Rates(), seed) for seed in (1, 1, 2))
    assert np.array_equal(a.keep, b.keep)
    assert not np.array_equal(a.keep, c.keep)


def test_a_record_of_every_variant(tiny_size: Size) -> None:
    bench = LatencyBench(tiny_size, 3, torch.device("cpu"), torch.float32)
    shown: list[tuple[str, int, int]] = []
    record = bench.measure(steps=4, repeats=2, progress=lambda *state: shown.append(state))
    rows = {row["name"]: row for row in record.results["rows"]}
    assert list(rows) == ["all open", "skip", "skip + width", "skip + width + cache", "the same, frozen"]
    shares = [row["flops_share"] for row in rows.values()]
    assert shares[0] > 1  # dense, and the routers
    assert shares == sorted(shares, reverse=True)
    assert rows["the same, frozen"]["reuse_rate"] == rows["skip + width + cache"]["reuse_rate"] > 0
    assert all(len(values) == 2 for values in record.samples.values())
    assert set(record.samples) == {f"{name}_step_seconds" for name in (DENSE, *rows)}
    for row in rows.values():
        assert row["realised"]["median"] * row["predicted_speedup"] == pytest.approx(row["speedup"]["median"])
    assert len(shown) == 3 * 6


def test_the_twin_shares_the_weights(tiny_size: Size) -> None:
    bench = LatencyBench(tiny_size, 1, torch.device("cpu"), torch.float32)
    twin = dict(bench.elastic.transformer.named_parameters())
    assert all(twin[name] is parameter for name, parameter in bench.dense.named_parameters())
    assert not hasattr(bench.dense.single_transformer_blocks[0], "_diffusers_hook")


def test_the_cpu_size_runs_and_the_others_are_declared() -> None:
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in SIZES[name].build().parameters()) for name in SIZES}
    assert counts["flux-cpu"] == pytest.approx(160.5e6, rel=0.02)
    assert counts["flux.1-dev"] == pytest.approx(11.9e9, rel=0.02)
    assert counts["qwen-image"] == pytest.approx(20.4e9, rel=0.02)
    with pytest.raises(UnknownNameError, match="flux-cpu"):
        size("flux-cpus")
