import pytest

from elastic_dit.bench.routes import compute_of, route_of
from elastic_dit.engine.trace import Taken, Trace

RATIOS = (0.25, 0.5, 0.75, 1.0)


@pytest.fixture
def trace() -> Trace:
    """Two steps, three blocks, two samples; the second sample runs all of it."""
    trace = Trace()
    rows = {
        (0, 0): Taken(0.9, True, False, 0.5, 60, 100),
        (0, 1): Taken(0.2, False, False, 0.0, 1, 100),
        (0, 2): Taken(0.5234, True, False, 1.0, 101, 100),
        (1, 0): Taken(0.9, True, False, 0.25, 50, 100),
        (1, 1): Taken(0.1, False, False, 0.0, 1, 100),
        (1, 2): Taken(0.55, True, True, 0.0, 1, 100),
    }
    for (step, block), taken in rows.items():
        trace.add((step, block, "cond", 0), taken)
        trace.add((step, block, "cond", 1), Taken(1.0, True, False, 1.0, 101, 100))
    return trace


def test_compute_of_one_sample(trace: Trace) -> None:
    found = compute_of(trace, 0)
    assert found["flops"] == 214
    assert found["flops_share"] == pytest.approx(214 / 600)
    assert found["open_rate"] == pytest.approx(4 / 6)
    assert found["reuse_rate"] == pytest.approx(1 / 4)
    assert found["mean_width"] == pytest.approx((0.5 + 1 + 0.25) / 3)


def test_compute_of_all_samples_agrees_with_the_trace(trace: Trace) -> None:
    found = compute_of(trace)
    assert found["flops_share"] == pytest.approx(trace.flops_share)
    assert found["open_rate"] == pytest.approx(trace.open_rate)
    assert found["reuse_rate"] == pytest.approx(trace.reuse_rate)
    assert found["mean_width"] == pytest.approx(trace.mean_width)


def test_a_mean_over_nothing_is_none() -> None:
    trace = Trace()
    trace.add((0, 0, "cond", 0), Taken(0.1, False, False, 0.0, 1, 100))
    assert compute_of(trace)["mean_width"] is None
    assert compute_of(trace)["reuse_rate"] is None
    assert compute_of(trace)["open_rate"] == 0


def test_routes_are_one_text_a_step(trace: Trace) -> None:
    assert route_of(trace, 0, RATIOS) == {
        "cond": {"decisions": ["2.4", "1.~"], "keep_prob": ["900 200 523", "900 100 550"]}
    }
    assert route_of(trace, 1, RATIOS)["cond"]["decisions"] == ["444", "444"]
