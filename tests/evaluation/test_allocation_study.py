"""What uneven shares of compute could gain, on losses that are known and on a tiny model's."""

from pathlib import Path

import numpy as np
import pytest

from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.allocation_study import SEEN, WAYS, allocate, score, shared_out, study_allocation
from emoji import save_dial
from studies import SIZE, Subject

SHARES = np.array([0.2, 0.6, 1.0])
LEVELS, SAMPLES = 2, 400


def test_compute_goes_where_it_saves_most() -> None:
    excess = np.array([[[0.9, 0.1, 0.0], [0.3, 0.2, 0.1]]])  # (K = 1, N = 2, B)
    groups = np.array([[0, 1]])
    assert allocate(excess, groups, SHARES, 0.4).tolist() == pytest.approx([0.6, 0.2])
    assert allocate(excess, groups, SHARES, 0.3).tolist() == pytest.approx([0.4, 0.2])  # half of the way
    assert allocate(excess, groups, SHARES, 1.0).tolist() == pytest.approx([1.0, 1.0])
    assert allocate(excess, np.array([[0, 0]]), SHARES, 0.4).tolist() == pytest.approx([0.4])


def test_a_budget_that_helps_nothing_is_passed_over() -> None:
    excess = np.array([[[0.5, 0.6, 0.1], [0.5, 0.5, 0.5]]])
    assert allocate(excess, np.array([[0, 1]]), SHARES, 0.6).tolist() == pytest.approx([1.0, 0.2])


def test_losses_between_two_budgets() -> None:
    excess = np.array([[[0.9, 0.1, 0.0], [0.3, 0.2, 0.1]]])
    spent = np.array([0.4, 1.0])
    assert score(excess, SHARES, spent, np.array([[0, 1]])).tolist() == [pytest.approx([0.5, 0.1])]


def losses(need: np.ndarray, noise: float) -> np.ndarray:
    """(2, K, N, B): falling with the budget as fast as each forward needs it (K, N), and chance on top."""
    falling = need[None, ..., None] * (1 - SHARES) ** 2
    return falling + noise * np.random.default_rng(0).normal(size=(2, *need.shape, 3))


def test_gains_are_found_where_there_are_any() -> None:
    need = np.where(
        np.arange(SAMPLES) // 2 % 2, 1.0, 0.1
    )  # scenes differ, and their prompts say so; noise levels do not
    asked, seen = (np.arange(SAMPLES) // 2 % 2).tolist(), np.tile(need[:, None], (2, LEVELS, 1, 1))
    found = shared_out(losses(np.tile(need, (LEVELS, 1)), 0.0), SHARES, 0.6, asked, seen)
    equal = found["equal"]["excess"]
    assert tuple(found) == (*WAYS, SEEN)
    assert found["noise level"]["excess"] == pytest.approx(equal)
    assert found["noise level"]["spent"] == pytest.approx([0.6, 0.6])
    for way in ("prompt", "sample", "sample and noise level", SEEN):
        assert found[way]["excess"] < 0.9 * equal
        assert found[way]["beside_equal"][1] < 0


def test_chance_is_no_gain() -> None:
    blind = np.random.default_rng(1).normal(size=(2, LEVELS, SAMPLES, 2))
    found = shared_out(losses(np.ones((LEVELS, SAMPLES)), 0.05), SHARES, 0.6, [1] * SAMPLES, blind)
    assert found[SEEN]["beside_equal"][1] > 0
    assert found["sample"]["beside_equal"][1] > 0
    assert found["sample and noise level"]["excess"] > found["equal"]["excess"]


def test_it_measures_every_budget(studied: Subject, tmp_path: Path) -> None:
    adapter = str(save_dial(studied.family.pipeline, tmp_path / "dial"))
    budgets = (0.3, 0.6, 1.0)
    record = study_allocation(studied.family, adapter, studied.scenes, SIZE, (0.25, 0.75), budgets, batch=5)
    low, middle, whole = record.results["shares"]
    assert low == pytest.approx(1 / 3, abs=0.05) and middle == pytest.approx(2 / 3, abs=0.05) and whole >= 1
    (row,) = record.results["rows"]
    assert row["budget"] == 0.6 and set(row["ways"]) == {*WAYS, SEEN}
    assert len(record.samples) == 1 + 2 * 2 * 3
    dense = [record.samples[f"noise_{noise}_sigma_0.25_budget_1_excess"] for noise in range(2)]
    assert np.abs(dense).max() < 1e-5
    measured = [record.samples[f"noise_{n}_sigma_{level}_budget_0.6_excess"] for n in (0, 1) for level in (0.25, 0.75)]
    assert row["ways"]["equal"]["excess"] == pytest.approx(np.mean(measured))
    assert not hasattr(studied.family.pipeline.transformer, "_elastic_dit")


def test_one_budget_has_nothing_to_share_out(studied: Subject) -> None:
    with pytest.raises(ConfigError, match="knows one budget"):
        study_allocation(studied.family, studied.adapter, studied.scenes, SIZE, (0.5,), (0.3, 0.5, 1.0), batch=5)
    with pytest.raises(ConfigError, match="2 budgets leave nothing to share out"):
        study_allocation(studied.family, studied.adapter, studied.scenes, SIZE, (0.5,), (0.3, 1.0), batch=5)
