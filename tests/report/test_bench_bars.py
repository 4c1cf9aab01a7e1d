from typing import Any

import pytest

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_bars import BARS, bars

CACHE = "skip + width + cache"
NOT_THERE = ("–", "not measured")


def _row(records: list[RunRecord], start: str) -> tuple[str, ...]:
    return next(row for row in bars(records).rows if row[0].startswith(start))


def _set(record: RunRecord, name: str, **values: Any) -> None:
    next(row for row in record.results["rows"] if row["name"] == name).update(values)


def _spread(value: float) -> dict[str, float]:
    return {"median": value, "min": 0.9 * value, "max": 1.1 * value}


def test_nothing_is_measured_without_records() -> None:
    for row in bars([]).rows:
        assert row[2:4] == row[5:7] == NOT_THERE
    assert len(bars([]).rows) == len(BARS)


def test_the_measured_are_the_records(speed_record: RunRecord, training_record: RunRecord) -> None:
    rows = {row["name"]: row for row in speed_record.results["rows"]}
    records = [training_record, speed_record]
    assert _row(records, "realised")[2] == f"{rows[CACHE]['realised']['median']:.3f}"
    assert _row(records, "every block open")[2] == f"{rows['all open']['ratio']['median']:.3f}"
    assert _row(records, "FLUX")[2] == f"{rows[CACHE]['ratio']['median']:.3f}"
    trained = {row["name"]: row for row in training_record.results["rows"]}
    assert _row(records, "training: time")[2] == f"{trained['elastic']['ratio']['median']:.3f}"
    last = _row(records, "training with checkpointing: memory")
    assert last[2] == f"{trained['elastic, checkpointing']['memory_ratio']:.3f}"
    assert _row(records, "compiled")[2:4] == _row(records, "mixed")[2:4] == NOT_THERE


@pytest.mark.parametrize(("value", "met"), [(0.93, "yes"), (0.9299, "no"), (1.2, "yes")])
def test_at_least(speed_record: RunRecord, value: float, met: str) -> None:
    _set(speed_record, CACHE, realised=_spread(value))
    assert _row([speed_record], "realised")[1:4] == ("≥ 0.93", f"{value:.3f}", met)


@pytest.mark.parametrize(("value", "met"), [(1.03, "yes"), (1.0301, "no"), (0.9, "yes")])
def test_at_most(speed_record: RunRecord, value: float, met: str) -> None:
    _set(speed_record, "all open", ratio=_spread(value))
    assert _row([speed_record], "every block open")[1:4] == ("≤ 1.03", f"{value:.3f}", met)


def test_a_gpu_has_bars_of_its_own(speed_record: RunRecord) -> None:
    _set(speed_record, CACHE, realised=_spread(0.95), ratio=_spread(0.53))
    gpu = speed_record.model_copy(update={"config": speed_record.config | {"device_type": "cuda"}})
    assert _row([gpu], "realised")[2:] == (*NOT_THERE, "≥ 0.97", "0.950", "no")
    assert _row([gpu, speed_record], "realised")[3::3] == ("yes", "no")
    assert _row([gpu, speed_record], "FLUX")[3::3] == ("yes", "no")


def test_the_worst_counts(speed_record: RunRecord) -> None:
    better = speed_record.model_copy(deep=True)
    _set(speed_record, CACHE, realised=_spread(0.9), ratio=_spread(0.6))
    _set(better, CACHE, realised=_spread(0.99), ratio=_spread(0.5))
    for records in ([speed_record, better], [better, speed_record]):
        assert _row(records, "realised")[2] == "0.900"
        assert _row(records, "FLUX")[2] == "0.600"


def test_flux_is_a_size(speed_record: RunRecord) -> None:
    other = speed_record.model_copy(update={"config": speed_record.config | {"size": "qwen-image"}})
    assert _row([other], "FLUX")[2:4] == NOT_THERE
    assert _row([other], "realised")[2:4] != NOT_THERE


def test_a_batch_of_eight(speed_record: RunRecord, scaling_record: RunRecord) -> None:
    assert _row([scaling_record], "mixed")[1:4] == ("≤ 1.08", f"{1 / 0.95:.3f}", "yes")
    _set(speed_record, CACHE, realised=_spread(0.8))
    eight = speed_record.model_copy(update={"config": speed_record.config | {"batch": 8}})
    assert _row([scaling_record, eight], "mixed")[1:4] == ("≤ 1.08", "1.250", "no")
    assert _row([eight], "realised")[2:4] == NOT_THERE


def test_compiled_beside_eager(speed_record: RunRecord) -> None:
    _set(speed_record, CACHE, speedup=_spread(1.8))
    ours = next(row for row in speed_record.results["rows"] if row["name"] == CACHE)
    compiled = {"name": f"{CACHE}, compiled", "reference": "dense, compiled", "speedup": _spread(1.62)}
    speed_record.results["rows"].append(ours | compiled)
    assert _row([speed_record], "compiled")[1:4] == ("≥ 0.95", "0.900", "no")


def test_graphs_after_the_warm_up(speed_record: RunRecord) -> None:
    assert _row([speed_record], "graphs")[2:4] == NOT_THERE  # nothing is compiled
    ours = next(row for row in speed_record.results["rows"] if row["name"] == CACHE)
    speed_record.results["rows"].append(ours | {"name": f"{CACHE}, compiled", "graphs": 0})
    assert _row([speed_record], "graphs")[2:4] == ("0.000", "yes")
    speed_record.results["rows"][-1]["graphs"] = 2
    assert _row([speed_record], "graphs")[2:4] == ("2.000", "no")
