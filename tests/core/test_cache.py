"""Eq. 18, 19 and Algorithm 1's bookkeeping: band, use count, age."""

import torch

from elastic_dit.core.cache import FeatureBank, add_residual, in_band, put, residual_of, take


def residual(value: float = 1.0) -> tuple[torch.Tensor, None]:
    return torch.full((1, 2, 3), value), None


def test_the_band_is_closed_at_both_ends() -> None:
    p = torch.tensor([0.25, 0.5, 0.6, 0.75, 0.8])
    assert in_band(p, 0.5, 0.25).tolist() == [False, True, True, True, False]
    assert not in_band(p, 0.5, -1.0).any()


def test_a_residual_serves_k_times_and_a_new_one_again() -> None:
    bank = FeatureBank(max_reuse=2)
    assert not bank.can_reuse(0, step=0)
    for stored_at in (0, 5):
        bank.store(0, residual(), stored_at)
        for step in (1, 2):
            assert bank.can_reuse(0, stored_at + step)
            assert torch.equal(bank.reuse(0)[0], torch.ones(1, 2, 3))
        assert not bank.can_reuse(0, stored_at + 3)


def test_rows_have_their_own_counts() -> None:
    bank = FeatureBank(max_reuse=1)
    bank.store(0, residual(1), 0)
    bank.store(2, residual(2), 0)
    bank.reuse(0)
    assert [bank.can_reuse(row, 1) for row in range(3)] == [False, False, True]


def test_age_limit() -> None:
    bank = FeatureBank(max_reuse=9, max_age=2)
    bank.store(0, residual(), step=3)
    assert [bank.can_reuse(0, step) for step in (4, 5, 6)] == [True, True, False]


def test_no_cache_at_k_zero() -> None:
    bank = FeatureBank(max_reuse=0)
    bank.store(0, residual(), 0)
    assert not bank.can_reuse(0, 1)


def test_memory() -> None:
    bank = FeatureBank(max_reuse=1)
    bank.store(0, residual(), 0)
    bank.store(1, residual(), 0)
    assert bank.nbytes == 2 * 6 * 4


def test_residual_there_and_back() -> None:
    before, after = (torch.randn(2, 3, 4), torch.randn(2, 1, 4)), (torch.randn(2, 3, 4), None)
    change = residual_of(before, after)
    assert change[1] is None
    again = add_residual(before, change)
    torch.testing.assert_close(again[0], after[0])
    assert torch.equal(again[1], before[1])


def test_take_and_put() -> None:
    x = (torch.arange(6.0).view(3, 2, 1), None)
    rows = torch.tensor([2, 0])
    some = take(x, rows)
    assert some[0].flatten().tolist() == [4, 5, 0, 1]
    back = put(x, rows, (some[0] + 10, None))
    assert back[0].flatten().tolist() == [10, 11, 2, 3, 14, 15]
    assert back[1] is None
    assert x[0].flatten().tolist() == [0, 1, 2, 3, 4, 5]
