"""A budget shared out over forwards: what can spare compute pays for what cannot."""

import pytest
import torch
from torch import Tensor

from elastic_dit.core.allocation import LEVELS, Allocator, hats, interpolate, summary
from elastic_dit.pruning.allocation import fit

RANGE, DIM, ROWS = (0.3, 1.0), 3, 600
BUDGETS = (0.3, 0.4, 0.5, 0.65, 0.8, 0.95, 1.0)


def tokens(seed: int = 0) -> Tensor:
    """(N, 5, D), whose first channel says how much a forward needs."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, 5, DIM, generator=generator)
    x[..., 0] += 3 * torch.rand(ROWS, 1, generator=generator)
    return x


def sigmas(seed: int = 0) -> Tensor:
    return torch.rand(ROWS, generator=torch.Generator().manual_seed(100 + seed))


def need_of(x: Tensor, sigma: Tensor) -> Tensor:
    """Of each forward, (N,): more at low noise, and linear in what is read."""
    return (1.5 - sigma) * (summary(x)[:, 0] + 2)


@pytest.fixture
def allocator() -> Allocator:
    allocator, x, sigma = Allocator(DIM, RANGE), tokens(), sigmas()
    fit(allocator, summary(x), sigma, need_of(x, sigma)[:, None] * (1 - allocator.budgets) ** 2)
    return allocator


def test_hats_interpolate_between_knots() -> None:
    place = torch.tensor([-1.0, 0.0, 0.25, 2.0, 2.5, 9.0])
    assert torch.equal(hats(place, 4).sum(dim=-1), torch.ones(6))
    assert interpolate(torch.tensor([0.0, 10.0, 20.0, 40.0]), place).tolist() == [0, 0, 2.5, 20, 30, 40]


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_mean_is_what_was_asked_for(allocator: Allocator, budget: float) -> None:
    x, sigma = tokens(1), sigmas(1)
    given = allocator(x, sigma, torch.full((ROWS,), budget))
    assert given.mean() == pytest.approx(budget, rel=0.03)
    assert ((given >= RANGE[0]) & (given <= RANGE[1])).all()


def test_what_needs_more_gets_more(allocator: Allocator) -> None:
    """The best budgets are known here: harm falls as fast as the price, 1 - b = price / (2 need)."""
    x, sigma = tokens(1), sigmas(1)
    need, given = need_of(x, sigma), allocator(x, sigma, torch.full((ROWS,), 0.6))
    order = need.argsort()
    assert given[order[: ROWS // 3]].mean() < given[order[-ROWS // 3 :]].mean() - 0.2
    harm = need * (1 - given) ** 2
    assert harm.mean() < 0.9 * (need * (1 - 0.6) ** 2).mean()
    inside = (given > RANGE[0]) & (given < RANGE[1])
    prices = (2 * need * (1 - given))[inside]
    assert prices.std() < 0.3 * prices.mean(), "every FLOP saves as much as any other"


def test_the_whole_budget_stays_whole(allocator: Allocator) -> None:
    mixed = torch.tensor([1.0, 0.5] * (ROWS // 2))
    given = allocator(tokens(1), sigmas(1), mixed)
    assert (given[::2] == 1).all()
    assert given[1::2].mean() == pytest.approx(0.5, rel=0.1)


def test_a_forward_does_not_see_its_batch(allocator: Allocator) -> None:
    x, sigma, budget = tokens(1)[:8], sigmas(1)[:8], torch.full((8,), 0.6)
    alone = [allocator(x[row : row + 1], sigma[row : row + 1], budget[:1]) for row in range(8)]
    assert torch.equal(torch.cat(alone), allocator(x, sigma, budget))


def test_weights_are_linear_between_noise_levels() -> None:
    allocator = Allocator(DIM, RANGE)
    generator = torch.Generator().manual_seed(0)
    allocator.weight.copy_(torch.randn(allocator.weight.shape, generator=generator))
    features = summary(tokens()[:1])
    low, high = 1 / (LEVELS - 1), 2 / (LEVELS - 1)
    at = [allocator.design(features, torch.tensor([sigma])) @ allocator.weight for sigma in (low, high)]
    between = allocator.design(features, torch.tensor([0.75 * low + 0.25 * high])) @ allocator.weight
    torch.testing.assert_close(between, 0.75 * at[0] + 0.25 * at[1])
