"""The seeded schedule keeps its rates, and every reuse in it finds a residual."""

import numpy as np
import pytest
import torch

from elastic_dit.bench.schedule import Rates, sample_plan
from elastic_dit.core.cache import FeatureBank


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
