"""A velocity that is constant, or linear in the noise level, is forecast exactly by order 0, or 1."""

import pytest
import torch
from torch import Tensor

from elastic_dit.core.forecast import VelocityBank


def line(sigma: float) -> Tensor:
    return torch.tensor([[1.0, -2.0]]) + sigma * torch.tensor([[4.0, 0.5]])


@pytest.mark.parametrize("sigma", [0.6, 0.25, 0.0])
def test_order_one_follows_a_line(sigma: float) -> None:
    bank = VelocityBank()
    for level in (1.0, 0.9, 0.7):
        bank.store(level, line(level), order=1)
    assert torch.allclose(bank.forecast(sigma, order=1), line(sigma))


def test_order_zero_takes_the_last_velocity() -> None:
    bank = VelocityBank()
    for level in (1.0, 0.7):
        bank.store(level, line(level), order=0)
    assert torch.equal(bank.forecast(0.2, order=0), line(0.7))
    assert len(bank.computed) == 1, "no more is kept than the order takes"


def test_so_many_in_a_row_and_not_before_there_is_enough() -> None:
    bank = VelocityBank()
    assert not bank.can_forecast(2, order=0)
    bank.store(1.0, line(1.0), order=1)
    assert bank.can_forecast(2, order=0)
    assert not bank.can_forecast(2, order=1)
    bank.store(0.9, line(0.9), order=1)
    for sigma in (0.8, 0.7):
        assert bank.can_forecast(2, order=1)
        bank.forecast(sigma, order=1)
    assert not bank.can_forecast(2, order=1)
    bank.store(0.6, line(0.6), order=1)
    assert bank.can_forecast(2, order=1)


def test_what_is_kept_has_no_graph() -> None:
    bank = VelocityBank()
    bank.store(1.0, line(1.0).requires_grad_() * 2, order=0)
    assert not bank.forecast(0.5, order=0).requires_grad
