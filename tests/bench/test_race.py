"""Contenders take turns; FLOPs are counted as executed; ratios compare neighbours in time."""

import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elastic_dit.bench.flops import Counting
from elastic_dit.bench.lane import Lane
from elastic_dit.bench.race import Contender, Timing, paired_ratio, race, row
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.trajectory import Trajectory


class Slow(nn.Module):
    """Sleeps, multiplies as often as it is told, and remembers its calls."""

    def __init__(self, log: list[str], name: str, seconds: float, products: int) -> None:
        super().__init__()
        self.log, self.name, self.seconds, self.products = log, name, seconds, products

    def forward(self, hidden_states: Tensor, timestep: Tensor, **_: Any) -> tuple[Tensor]:
        self.log.append(self.name)
        time.sleep(self.seconds)
        for _ in range(self.products):
            hidden_states = hidden_states @ torch.eye(hidden_states.shape[-1])
        return (hidden_states,)


@pytest.fixture
def trajectory(tiny_size: Size) -> Trajectory:
    return Trajectory(tiny_size, Lane(tiny_size, torch.device("cpu"), torch.float32).dense, batch=1, steps=3)


def test_turns_flops_and_seconds(trajectory: Trajectory) -> None:
    log: list[str] = []
    dense, own = Slow(log, "dense", 0.004, 2), Slow(log, "own", 0.001, 1)
    restarts: list[int] = []
    contenders = [Contender("dense", dense), Contender("own", own, lambda: restarts.append(len(log)), steps={0, 2})]
    timings = race(contenders, trajectory, repeats=2)
    runs = 2 + 2  # warm-up and counting come first
    assert log.count("dense") == (2 + 2 * 2) * 3 * trajectory.branches  # timed: before and after
    assert log.count("own") == runs * 2 * trajectory.branches
    assert len(restarts) == runs
    assert timings["own"].flops * 3 == timings["dense"].flops * 1  # half the products at two thirds of the steps
    assert [len(run) for run in timings["own"].seconds] == [3, 3]
    assert all(run[1] == 0 for run in timings["own"].seconds)
    result = row(contenders[1], timings, steps=3)
    assert result["predicted_speedup"] == pytest.approx(3)
    assert result["step_seconds"]["median"] < 0.004 * trajectory.branches


def test_a_contender_is_between_two_runs_of_its_own_reference(trajectory: Trajectory) -> None:
    log: list[str] = []
    names = {"dense": "dense", "a": "dense", "b": "dense", "other": "dense", "c": "other"}
    contenders = [Contender(name, Slow(log, name, 0, 1), reference=beside) for name, beside in names.items()]
    timings = race(contenders, trajectory, repeats=1)
    calls = log[:: trajectory.branches]
    timed = calls[2 * len(names) * 3 :]
    assert [timed.count(name) for name in names] == [4 * 3, 3, 3, (1 + 2) * 3, 3]
    for place, name in enumerate(timed):
        if name in "abc":
            assert timed[place - 1] == timed[place + 1] == names[name]
    assert timings["c"].flops == timings["dense"].flops  # what runs more than once a step is counted once
    assert timings["dense"].seconds == timings["dense"].beside


def test_a_slow_minute_moves_no_paired_ratio() -> None:
    """The second run is ten times slower for both; one turn of the third is an accident."""
    own = Timing(
        flops=1,
        seconds=((1.0, 3.0), (10.0, 30.0), (1.0, 90.0)),
        beside=((2.0, 4.0), (20.0, 40.0), (2.0, 4.0)),
    )
    assert paired_ratio(own) == pytest.approx((0.5 * 2 + 0.75 * 4) / (2 + 4))
    result = row(Contender("own", None, reference="own"), {"own": own}, steps=2)
    assert result["ratio"]["max"] == pytest.approx(91 / 6)


def test_attention_is_counted_on_the_cpu() -> None:
    q = torch.randn(1, 2, 8, 16)
    with Counting() as counter, torch.no_grad():
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert counter.get_total_flops() == 2 * 2 * (2 * 8 * 8 * 16)
