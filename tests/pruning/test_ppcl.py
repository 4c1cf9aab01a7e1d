"""PPCL finds intervals by linear probes and CKA, and keeps the first block of each."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from elastic_dit.core.cost import BlockCost
from elastic_dit.pruning import prunings
from elastic_dit.pruning.base import fit
from elastic_dit.pruning.ppcl import Interval, Moments, end_of_interval, intervals, keep_order, mapped_cka
from elastic_dit.pruning.prune import prune
from noisy import batches_of
from tiny import Tiny

COST = BlockCost(60, 40)


def tokens(count: int = 400, width: int = 6, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw, dtype=torch.float64) + 0.5


def mixing(strength: float, seed: int, width: int = 6) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return strength * torch.randn(width, width, generator=draw, dtype=torch.float64)


def moments_of(x: Tensor, y: Tensor, parts: int = 1) -> Moments:
    moments = Moments()
    for before, after in zip(x.chunk(parts), y.chunk(parts), strict=True):
        moments.add(before.unflatten(0, (2, -1)), after.unflatten(0, (2, -1)))
    return moments


def direct_cka(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    return float((y.T @ x).square().sum() / ((x.T @ x).norm() * (y.T @ y).norm()))


def test_the_probe_of_a_linear_block_is_the_block() -> None:
    x, linear = tokens(), torch.eye(6, dtype=torch.float64) + mixing(0.3, 1)
    probe = moments_of(x, x @ linear, parts=4).probe()
    torch.testing.assert_close(probe, linear, rtol=1e-4, atol=1e-4)


def test_the_probe_is_the_least_squares_fit_of_the_change() -> None:
    x = tokens()
    y = x + torch.tanh(x @ mixing(1.0, 2))
    expected = torch.linalg.lstsq(x, y - x).solution
    probe = moments_of(x, y).probe()
    torch.testing.assert_close(probe - torch.eye(6), expected, rtol=1e-4, atol=1e-4)
    tilted = expected + mixing(0.01, 3)
    assert (x @ probe - y).square().sum() < (x + x @ tilted - y).square().sum()


def test_cka_from_moments_is_cka_of_the_tokens() -> None:
    x, linear = tokens(), torch.eye(6, dtype=torch.float64) + mixing(0.5, 4)
    covariance = moments_of(x, x, parts=2).covariance()
    assert mapped_cka(covariance, linear) == pytest.approx(direct_cka(x, x @ linear))
    rotation = torch.linalg.qr(mixing(1.0, 5)).Q
    assert mapped_cka(covariance, 3 * rotation) == pytest.approx(1.0)
    assert mapped_cka(covariance, linear) < 0.99


@pytest.mark.parametrize(
    ("likeness", "expected"),
    [
        ([], 0),
        ([0.9], 1),
        ([0.9, 0.85, 0.84], 3),  # each block costs less than the one before
        ([0.9, 0.85, 0.7, 0.69], 2),  # the third costs more
        ([0.95, 0.8, 0.7], 1),
    ],
)
def test_an_interval_ends_where_a_block_costs_more(likeness: list[float], expected: int) -> None:
    assert end_of_interval(likeness) == expected


def test_intervals_break_at_the_block_that_mixes() -> None:
    """Blocks 0 to 2 change ever less, block 3 turns the tokens about, 4 and 5 change little again."""
    states = [tokens()]
    for number, strength in enumerate((0.2, 0.1, 0.03, 2.0, 0.05, 0.02)):
        states.append(states[-1] + states[-1] @ mixing(strength, 10 + number))
    found = intervals([moments_of(x, y) for x, y in pairwise(states)], first=7)
    assert [interval.blocks for interval in found] == [(7, 8, 9), (10, 11, 12)]
    expected = direct_cka(states[1], states[3])  # the blocks are linear: their probes are they
    assert found[0].cka == pytest.approx(expected, abs=1e-4)


def test_what_loses_least_for_its_flops_is_merged_first() -> None:
    found = [Interval((0, 1, 2), 0.8), Interval((3, 4), 0.95), Interval((5,), 1.0)]
    order = keep_order(found, [COST] * 6)
    assert order == [5, 0, 3, 2, 1, 4]
    assert fit(order, [COST] * 6, 5 / 6) == (1, 1, 1, 1, 0, 1)
    assert fit(order, [COST] * 6, 4 / 6) == (1, 0, 1, 1, 0, 1)  # an interval in part, from its start
    assert fit(order, [COST] * 6, 3 / 6) == (1, 0, 0, 1, 0, 1)


def test_the_first_block_of_each_interval_stays(tiny_flux: Tiny) -> None:
    """Two double and two single blocks: an interval has blocks of one kind."""
    elastic = prune(tiny_flux.transformer, batches_of(tiny_flux), prunings["ppcl"], 0.5)
    route = elastic.config.route
    assert route is not None
    assert [bool(width) for width in route] == [True, False, True, False]
