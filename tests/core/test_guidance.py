"""What is left of guidance from one step to the next."""

import pytest
import torch

from elastic_dit.core.guidance import GuidanceBank, fade_of


def test_the_fade_is_by_least_squares() -> None:
    before, noise = torch.randn(2, 1000, 30, generator=torch.Generator().manual_seed(0))
    assert fade_of(before, 0.6 * before) == pytest.approx(0.6)
    assert fade_of(before, 0.6 * before + noise) == pytest.approx(0.6, abs=0.02)


def test_what_has_nothing_in_common_leaves_nothing() -> None:
    one, two = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert fade_of(one, two) == 0
    assert fade_of(one, -one) == 0, "never turned round"


def test_it_never_grows() -> None:
    one = torch.ones(1, 4)
    assert fade_of(one, 2 * one) == 1
    assert fade_of(torch.zeros(1, 4), one) == 1, "no guidance, nothing to fade"


def test_a_bank_fades_what_it_holds() -> None:
    bank = GuidanceBank()
    first, other = torch.tensor([3.0]), torch.tensor([1.0])
    bank.store(first, other)
    assert [float(bank.reuse(first, 0.5)) for _ in range(2)] == [2.0, 2.5]
    bank.store(first, other)
    assert float(bank.reuse(first)) == 1.0
