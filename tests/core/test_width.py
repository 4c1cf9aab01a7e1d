"""Eq. 11-13 and 16: hard prefix masks with soft gradients, and slices that equal them."""

import pytest
import torch
from torch import nn

from elastic_dit.core.width import (
    channels,
    expected_prefix_mask,
    prefix_linear_columns,
    prefix_linear_rows,
    prefix_mask,
    selected_width,
    straight_through_mask,
    straight_through_width,
    width_probabilities,
)

RATIOS = (0.25, 0.5, 0.75, 1.0)


@pytest.mark.parametrize(("ratio", "hidden", "kept"), [(0.25, 8, 2), (1.0, 8, 8), (0.3, 10, 3), (0.01, 8, 1)])
def test_channels(ratio: float, hidden: int, kept: int) -> None:
    assert channels(ratio, hidden) == kept


def test_prefix_mask() -> None:
    mask = prefix_mask(torch.tensor([0.5, 1.0, 0.25]), 4, RATIOS)
    assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]


def test_a_ratio_that_float32_rounds_is_still_itself() -> None:
    ratios = (0.3, 0.7, 1.0)
    width = selected_width(torch.eye(3), torch.tensor(ratios))
    assert prefix_mask(width, 10, ratios).sum(dim=-1).tolist() == [3, 7, 10]


def test_the_expected_mask_is_the_sum_over_widths() -> None:
    q = width_probabilities(torch.randn(5, 4))
    hidden = 16
    by_hand = sum(q[:, j, None] * (torch.arange(hidden) < ratio * hidden) for j, ratio in enumerate(RATIOS))
    torch.testing.assert_close(expected_prefix_mask(q, hidden, RATIOS), by_hand)


def test_straight_through_mask() -> None:
    logits = torch.randn(6, 4, requires_grad=True)
    weight = torch.randn(6, 12)
    q = width_probabilities(logits)
    mask = straight_through_mask(q, 12, RATIOS)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(mask, prefix_mask(torch.tensor(RATIOS)[logits.argmax(dim=-1)], 12, RATIOS))
    (hard,) = torch.autograd.grad((mask * weight).sum(), logits, retain_graph=True)
    (soft,) = torch.autograd.grad((expected_prefix_mask(q, 12, RATIOS) * weight).sum(), logits)
    torch.testing.assert_close(hard, soft)
    assert hard.any()


def test_straight_through_width() -> None:
    logits = torch.tensor([[0.0, 1.0, 0.0, 0.0]], requires_grad=True)
    q = width_probabilities(logits)
    width = straight_through_width(q, torch.tensor(RATIOS))
    assert width.tolist() == [0.5]
    (hard,) = torch.autograd.grad(width.sum(), logits, retain_graph=True)
    (soft,) = torch.autograd.grad((q * torch.tensor(RATIOS)).sum(), logits)
    torch.testing.assert_close(hard, soft)


@pytest.mark.parametrize("keep", [1, 3, 8])
def test_a_sliced_mlp_is_the_masked_mlp(keep: int) -> None:
    up, down = nn.Linear(4, 8), nn.Linear(8, 4)
    x, mask = torch.randn(2, 3, 4), (torch.arange(8) < keep).float()
    masked = down(torch.relu(up(x)) * mask)
    sliced = prefix_linear_columns(down, torch.relu(prefix_linear_rows(up, x, keep, 8)), keep)
    torch.testing.assert_close(sliced, masked)


def test_both_halves_of_a_gated_mlp_shrink() -> None:
    up, down = nn.Linear(4, 16), nn.Linear(8, 4)
    x = torch.randn(2, 3, 4)
    value, gate = up(x).chunk(2, dim=-1)
    expected = down(value * gate.sigmoid() * (torch.arange(8) < 5))
    value, gate = prefix_linear_rows(up, x, 5, 8).chunk(2, dim=-1)
    torch.testing.assert_close(prefix_linear_columns(down, value * gate.sigmoid(), 5), expected)
