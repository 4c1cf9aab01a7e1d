"""Calibration on a tiny pipeline, whose three blocks have p of about 0.95, 0.05 and 0.52."""

import statistics
from dataclasses import replace
from itertools import count

import pytest

from elastic_dit.bench.calibrate import AGAIN, CLOSE, calibrate
from elastic_dit.bench.compare import Bench
from elastic_dit.calibration import Calibration, Setting
from elastic_dit.evaluation.sampling import SampleSettings

PROMPTS = ["a red apple", "two blue cars on a green background"]
SETTINGS = SampleSettings(steps=3, guidance=1.0, height=32, width=32)
POINTS = 12


@pytest.fixture(scope="module")
def log() -> list[tuple[int, int]]:
    return []


@pytest.fixture(scope="module")
def result(bench: Bench, log: list[tuple[int, int]]) -> Calibration:
    return calibrate(
        bench,
        PROMPTS,
        SETTINGS,
        points=POINTS,
        repeats=2,
        checks=(1000.0, 0.001),
        progress=lambda _, done, total: log.append((done, total)),
    )


def test_every_setting_is_measured_beside_dense(result: Calibration, log: list[tuple[int, int]]) -> None:
    assert len({point.setting for point in result.points}) == len(result.points) == POINTS
    for point in result.points:
        dense, elastic = point.samples["dense_step_seconds"], point.samples["elastic_step_seconds"]
        assert len(dense) == len(elastic) == 2
        assert point.speedup == statistics.median(a / b for a, b in zip(dense, elastic, strict=True))
    done, total = log[-1]
    assert 0 < done <= total


def test_thresholds_reach_from_all_open_to_mostly_skipped(result: Calibration) -> None:
    """With and without the cache; 0.5 is the adapter's own tau."""
    for cache in ((0.1, 3), (0.0, 0)):
        taus = {point.setting.tau for point in result.points if point.setting[1:3] == cache}
        assert {0.0, 0.5} <= taus
    by_setting = {point.setting: point for point in result.points}
    everything, own = by_setting[Setting(0.0, 0.0, 0)], by_setting[Setting(0.5, 0.1, 3)]
    # the routers cost something; one block's MLP is narrow; the others' widths are full
    assert own.flops_share < everything.flops_share < 1.1
    assert own.ssim < everything.ssim <= 1


def test_what_lies_outside_is_not_checked(result: Calibration) -> None:
    assert result.checks == []


def test_a_speed_up_that_was_reached_is_asked_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """With speed-ups that rise from measurement to measurement, whatever the clock says."""
    rising = count(1.0, 0.25)
    monkeypatch.setattr(statistics, "median", lambda ratios: (*ratios, next(rising))[-1])
    result = calibrate(bench, PROMPTS[:1], SETTINGS, points=10, repeats=1, checks=(1.1,))
    (check,) = result.checks
    assert check.asked == 1.1
    assert check.point.setting == result.at_speedup(1.1)
    assert check.point not in result.points
    assert len(result.points) == 10 + AGAIN, "it rose and rose, so it was asked for again"


def test_a_step_in_the_speed_is_found(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Speed that does not rise evenly: 1 up to a tau of 0.3, 1 + tau up to 0.6, 3 beyond."""

    def speed(ratios: object) -> float:
        tau = bench.elastic.tau
        return 1.0 if tau < 0.3 else 1 + tau if tau < 0.6 else 3.0

    monkeypatch.setattr(statistics, "median", speed)
    result = calibrate(bench, PROMPTS[:1], SETTINGS, points=10, repeats=1, checks=(1.45,))
    assert result.checks[0].point.speedup == pytest.approx(1.45, rel=CLOSE)


def test_a_speed_up_in_a_gap_costs_no_table(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guidance that is taken again gives 1.3, and no threshold more than 1.1."""
    monkeypatch.setattr(
        statistics, "median", lambda _: 1 + 0.1 * bench.elastic.tau + 0.3 * bench.elastic.max_guidance_reuse
    )
    kept: list[tuple[int, int]] = []
    result = calibrate(
        bench,
        PROMPTS[:1],
        replace(SETTINGS, guidance=3.0),
        points=10,
        repeats=1,
        checks=(1.2, 1.32),
        keep=lambda table: kept.append((len(table.points), len(table.checks))),
    )
    assert [check.asked for check in result.checks] == [1.32]
    assert kept == [(10, 0), (10, 0), (10, 1)], "the table is written down before anything is checked"


def test_guidance_is_a_way_of_its_own(bench: Bench) -> None:
    result = calibrate(bench, PROMPTS[:1], replace(SETTINGS, guidance=3.0), points=10, repeats=1)
    guided = [point for point in result.points if point.setting.max_guidance_reuse]
    assert {(point.setting.delta, point.setting.max_reuse, point.setting.max_guidance_reuse) for point in guided} == {
        (0.0, 0, 1)
    }
    by_setting = {point.setting: point for point in result.points}
    whole = by_setting[Setting(0.0, 0.0, 0)]
    again = by_setting[Setting(0.0, 0.0, 0, None, 1)]
    assert again.flops_share == pytest.approx(whole.flops_share * 5 / 6), "of three steps the second has one branch"


def test_the_model_is_as_it_was(bench: Bench, result: Calibration) -> None:
    assert (bench.elastic.tau, bench.elastic.delta, bench.elastic.max_reuse) == (0.5, 0.1, 3)
