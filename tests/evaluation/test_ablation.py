import numpy as np
import pytest

from elastic_dit.evaluation.ablation import compare_recipes, two_level_interval


def test_runs_are_paired_by_seed_and_sample() -> None:
    random = np.random.default_rng(0)
    dense = random.random(200)
    luck = random.normal(0, 0.3, (3, 200))  # of a seed on a sample, shared by both recipes
    losses = [*(dense + 0.1 + luck), *(dense + 0.15 + luck)]
    first, second = compare_recipes(
        {"a": {0: 0, 1: 1, 2: 2}, "b": {0: 3, 1: 4, 2: 5}}, losses, dense, [0.5, 0.5, 0.5, 0.4, 0.5, 0.6]
    )
    assert first["excess"] == pytest.approx(0.1 + luck.mean())
    assert second["excess_by_run"] == pytest.approx((0.15 + luck.mean(axis=1)).tolist())
    assert second["difference"] == pytest.approx(0.05)
    assert second["difference_interval"] == pytest.approx((0.05, 0.05))
    assert first["difference"] == 0
    assert second["excess_interval"][1] - second["excess_interval"][0] > 0.03
    assert second["flops_share"] == pytest.approx(0.5)


def test_a_recipe_is_compared_on_the_seeds_it_has() -> None:
    dense = np.zeros(4)
    losses = [np.full(4, value) for value in (1.0, 2.0, 5.0)]
    _, second = compare_recipes({"a": {0: 0, 1: 1}, "b": {1: 2}}, losses, dense, [1.0] * 3)
    assert second["difference"] == 3.0


def test_without_a_common_seed_there_is_no_difference() -> None:
    losses = [np.full(4, value) for value in (1.0, 5.0)]
    _, second = compare_recipes({"a": {0: 0}, "b": {1: 1}}, losses, np.zeros(4), [1.0] * 2)
    assert (second["difference"], second["difference_interval"], second["excess"]) == (None, None, 5.0)


def test_the_interval_knows_seeds_and_samples() -> None:
    """Where only seeds differ, or only samples, it is as wide as that says."""
    seeds = np.repeat([[0.0], [1.0], [2.0]], 50, axis=1)
    assert two_level_interval(seeds) == pytest.approx((0.0, 2.0), abs=0.35)
    samples = np.repeat(np.random.default_rng(1).normal(0, 1, (1, 400)), 3, axis=0)
    low, high = two_level_interval(samples)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.2)
