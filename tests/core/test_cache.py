"""Eq. 18, 19 and Algorithm 1's bookkeeping: band, use count, age."""

import torch

from elastic_dit.core.cache import CacheMemory, FeatureBank, in_band, put, residual_of, take

ZERO = torch.zeros(1, 2, 3), None


def store(bank: FeatureBank, row: int, step: int, value: float = 1.0) -> None:
    bank.store(row, ZERO, (torch.full((1, 2, 3), value), None), step)


def reused(bank: FeatureBank, *rows: int) -> list[float]:
    """What reuse adds to zeros, one number a row."""
    image, text = bank.reuse(rows, (torch.zeros(len(rows), 2, 3), None))
    assert text is None
    assert image is not None
    return image.mean(dim=(1, 2)).tolist()


def test_the_band_is_closed_at_both_ends() -> None:
    values = (0.25, 0.5, 0.6, 0.75, 0.8)
    assert [in_band(p, 0.5, 0.25) for p in values] == [False, True, True, True, False]
    assert not any(in_band(p, 0.5, -1.0) for p in values)


def test_a_residual_serves_k_times_and_a_new_one_again() -> None:
    bank = FeatureBank(max_reuse=2)
    assert not bank.can_reuse(0, step=0)
    for stored_at in (0, 5):
        store(bank, 0, stored_at)
        for step in (1, 2):
            assert bank.can_reuse(0, stored_at + step)
            assert reused(bank, 0) == [1.0]
        assert not bank.can_reuse(0, stored_at + 3)


def test_rows_have_their_own_counts_and_residuals() -> None:
    bank = FeatureBank(max_reuse=1)
    for row in range(3):
        store(bank, row, 0, value=row + 1)
    assert reused(bank, 2, 0) == [3.0, 1.0]
    assert [bank.can_reuse(row, 1) for row in range(3)] == [False, True, False]


def test_age_limit() -> None:
    bank = FeatureBank(max_reuse=9, max_age=2)
    store(bank, 0, step=3)
    assert [bank.can_reuse(0, step) for step in (4, 5, 6)] == [True, True, False]


def test_no_cache_at_k_zero() -> None:
    bank = FeatureBank(max_reuse=0)
    store(bank, 0, 0)
    assert not bank.can_reuse(0, 1)


def test_the_limit_holds_for_all_banks_together() -> None:
    memory = CacheMemory(limit=2 * 24 + 23)  # a residual has 6 floats
    banks = [FeatureBank(1, memory=memory), FeatureBank(1, memory=memory)]
    for bank in banks:
        store(bank, 0, 0)
        store(bank, 1, 0)
    assert [bank.can_reuse(row, 1) for bank in banks for row in (0, 1)] == [True, True, False, False]
    assert memory.used == 48
    store(banks[0], 0, 1)  # in place of the older one
    assert memory.used == 48
    banks[0].drop(0)
    banks[0].drop(7)
    assert memory.used == 24


def test_residuals_may_wait_elsewhere() -> None:
    bank = FeatureBank(1, memory=CacheMemory(device="cpu"))
    store(bank, 0, 0)
    assert reused(bank, 0) == [1.0]


def test_residual_there_and_back() -> None:
    before, after = (torch.randn(2, 3, 4), torch.randn(2, 1, 4)), (torch.randn(2, 3, 4), None)
    change = residual_of(before, after)
    assert change[1] is None
    torch.testing.assert_close(before[0] + change[0], after[0])


def test_take_and_put() -> None:
    x = (torch.arange(6.0).view(3, 2, 1), None)
    rows = torch.tensor([2, 0])
    some = take(x, rows)
    assert some[0].flatten().tolist() == [4, 5, 0, 1]
    put(x, rows, (some[0] + 10, None))
    assert x[0].flatten().tolist() == [10, 11, 2, 3, 14, 15]
