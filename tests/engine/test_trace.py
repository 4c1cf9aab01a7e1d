"""The trace as a mapping, as arrays and as summary numbers."""

import math

import numpy as np
import pytest

from elastic_dit.engine.trace import Taken, Trace


def taken(keep: bool, reuse: bool = False, width: float = 1.0, flops: float = 0.0) -> Taken:
    return Taken(float(keep), keep, reuse, width if keep and not reuse else 0.0, flops, 10.0)


@pytest.fixture
def trace() -> Trace:
    trace = Trace()
    trace.add((0, 0, "cond", 0), taken(True, flops=10))
    trace.add((0, 1, "cond", 0), taken(True, width=0.5, flops=6))
    trace.add((1, 0, "cond", 0), taken(True, reuse=True))
    trace.add((1, 1, "cond", 0), taken(False))
    trace.add((0, 0, "uncond", 0), taken(False))
    return trace


def test_numbers(trace: Trace) -> None:
    assert (trace.flops_spent, trace.flops_dense) == (16, 50)
    assert trace.flops_share == pytest.approx(0.32)
    assert trace.open_rate == pytest.approx(3 / 5)
    assert trace.reuse_rate == pytest.approx(1 / 3)
    assert trace.mean_width == pytest.approx(0.75)
    assert trace.sample_share(0) == pytest.approx(0.32)
    assert trace.branches == ["cond", "uncond"]


def test_arrays(trace: Trace) -> None:
    np.testing.assert_array_equal(trace.array("keep")[..., 0], [[1, 1], [1, 0]])
    np.testing.assert_array_equal(trace.array("width", "cond")[..., 0], [[1, 0.5], [0, 0]])
    np.testing.assert_array_equal(trace.array("keep", "uncond")[..., 0], [[0, np.nan], [np.nan, np.nan]])
    with pytest.raises(KeyError, match=r"no branch 'neg'.*cond"):
        trace.array("keep", "neg")


def test_empty() -> None:
    trace = Trace()
    assert not trace
    assert trace.array("keep").shape == (0, 0, 0)
    assert math.isnan(trace.flops_share)
    assert math.isnan(trace.mean_width)
