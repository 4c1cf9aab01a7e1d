"""Eq. 9, 14, 15, 17 against formulas written out, for each kind of budget."""

from typing import Any

import pytest
import torch

from elastic_dit import ElasticConfig
from elastic_dit.core.objective import (
    BudgetLoss,
    GlobalMean,
    Routing,
    budget_loss,
    compute_target,
    mean_open_width,
    routing_logs,
    sandwich,
)

RATIOS = torch.tensor([0.25, 0.5, 0.75, 1.0])
FIXED, MLP = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])
P = torch.tensor([[0.9, 0.55, 0.2], [0.7, 0.1, 0.5]])  # (B, L)
Q = torch.tensor(
    [
        [[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.3, 0.2]],
        [[0.0, 0.6, 0.4, 0.0], [0.1, 0.1, 0.1, 0.7], [0.3, 0.2, 0.4, 0.1]],
    ]
)
OPEN = [[1, 1, 0], [1, 0, 1]]
HARD = [[1.0, 0.25, 0.75], [0.5, 1.0, 0.75]]


def loss_of(ramp: float = 1.0, mean: GlobalMean | None = None, **config: Any) -> BudgetLoss:
    settings = ElasticConfig.of(**{"rho_g": 0.4, "rho_w": 0.6} | config)
    return budget_loss(Routing(P, Q, FIXED, MLP), settings, RATIOS, mean or GlobalMean(), ramp)


def soft_widths() -> list[list[float]]:
    return [[sum(float(q) * float(s) for q, s in zip(row, RATIOS, strict=True)) for row in block] for block in Q]


def mean_over_open(widths: list[list[float]]) -> float:
    opened = [(b, i) for b in range(2) for i in range(3) if OPEN[b][i]]
    return sum(widths[b][i] for b, i in opened) / len(opened)


def share_by_hand(sample: int) -> float:
    spent = sum(OPEN[sample][i] * (float(FIXED[i]) + HARD[sample][i] * float(MLP[i])) for i in range(3))
    return spent / 21


def test_paper_budget_is_soft() -> None:
    gating = (float(P.mean()) - 0.4) ** 2  # Eq. 9
    width = (mean_over_open(soft_widths()) - 0.6) ** 2  # Eq. 14, 15
    for ramp in (0.0, 1.0):
        assert float(loss_of(ramp, budget="paper").total) == pytest.approx(gating + width, rel=1e-5)


@pytest.mark.parametrize("ramp", [0.0, 0.25, 1.0])
def test_blocks_budget_is_hard_and_ramps(ramp: float) -> None:
    rho_g, rho_w = 1 - ramp * 0.6, 1 - ramp * 0.4
    expected = (4 / 6 - rho_g) ** 2 + (mean_over_open(HARD) - rho_w) ** 2
    assert float(loss_of(ramp, budget="blocks").total) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("ramp", [0.0, 0.25, 1.0])
def test_compute_budget_is_a_share_of_flops(ramp: float) -> None:
    target = 0.4 * (6 + 0.6 * 15) / 21
    assert compute_target(ElasticConfig.of(rho_g=0.4, rho_w=0.6), FIXED, MLP) == pytest.approx(target)
    mean = (share_by_hand(0) + share_by_hand(1)) / 2
    expected = (mean - (1 + ramp * (target - 1))) ** 2
    assert float(loss_of(ramp).total) == pytest.approx(expected, rel=1e-5)


def test_the_budget_of_each_sample_alone() -> None:
    target = 0.4 * (6 + 0.6 * 15) / 21
    expected = sum((share_by_hand(sample) - target) ** 2 for sample in range(2)) / 2
    assert float(loss_of(budget_scope="sample").total) == pytest.approx(expected, rel=1e-5)


def test_lambda_and_commitment() -> None:
    plain = float(loss_of().total)
    committed = float((P * (1 - P)).mean())
    weighted = loss_of(budget_weight=3.0, commitment=0.5)
    assert float(weighted.total) == pytest.approx(3 * plain + 0.5 * committed, rel=1e-5)
    assert weighted.logs["budget_loss"] == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize("budget", ["compute", "blocks", "paper"])
def test_the_budget_pushes_gates_and_widths_down(budget: str) -> None:
    gates, widths = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, 3, 4, requires_grad=True)
    config = ElasticConfig.of(budget=budget, rho_g=0.3, rho_w=0.3)
    q = (widths + torch.tensor([0, 0, 0, 1.0])).softmax(dim=-1)
    budget_loss(Routing(gates.sigmoid(), q, FIXED, MLP), config, RATIOS, GlobalMean()).total.backward()
    assert (gates.grad > 0).all()  # descent lowers p
    assert (widths.grad[..., 3] > 0).all()
    assert (widths.grad[..., 0] < 0).all()


def test_no_open_block_is_no_division_by_zero() -> None:
    width = mean_open_width(torch.ones(2, 3), torch.zeros(2, 3), 0.5, GlobalMean())
    assert float(width) == 0


def test_a_window_averages_forwards() -> None:
    """Value: the mean of the last forwards. Gradient: this forward's own."""
    mean = GlobalMean(window=3)
    values = [torch.tensor([1.0, 3.0]), torch.tensor([4.0, 4.0]), torch.tensor([7.0, 9.0]), torch.tensor([0.0, 0.0])]
    assert [float(mean("share", value)) for value in values] == pytest.approx([2, 3, 14 / 3, 4])
    own = torch.tensor([2.0, 6.0], requires_grad=True)
    result = mean("share", own)
    result.backward()
    assert result.item() == pytest.approx((8 + 0 + 4) / 3)
    assert own.grad.tolist() == [0.5, 0.5]
    assert float(mean("other", torch.tensor([5.0]))) == 5  # names are apart


def test_without_a_window_nothing_is_remembered() -> None:
    mean = GlobalMean()
    assert [float(mean("share", torch.tensor([v]))) for v in (1.0, 5.0)] == [1, 5]


def test_logs() -> None:
    logs = routing_logs(Routing(P, Q, FIXED, MLP), ElasticConfig.of(delta=0.1), RATIOS)
    shares = [share_by_hand(0), share_by_hand(1)]
    assert logs == pytest.approx(
        {
            "keep/mean_prob": float(P.mean()),
            "keep/open_rate": 4 / 6,
            "keep/borderline": 2 / 6,
            "width/mean": mean_over_open(HARD),
            "flops/share": sum(shares) / 2,
            "flops/std": abs(shares[0] - shares[1]) / 2,
        },
        rel=1e-5,
    )


def test_sandwich() -> None:
    """The lowest, one in each equal range between, the highest; the same generator gives the same again."""
    budgets = sandwich(9, 0.3, 0.9, torch.Generator().manual_seed(1))
    assert torch.equal(budgets[[0, -1]], torch.tensor([0.3, 0.9]))
    edges = torch.linspace(0.3, 0.9, 8)
    assert ((budgets[1:-1] >= edges[:-1]) & (budgets[1:-1] <= edges[1:])).all()
    assert torch.equal(budgets, sandwich(9, 0.3, 0.9, torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("batch", [1, 2])
def test_sandwich_of_few(batch: int) -> None:
    """No room for both ends and something between them: drawn from all of the range."""
    drawn = torch.stack([sandwich(batch, 0.3, 0.9, torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert drawn.mean() == pytest.approx(0.6, abs=0.05)
    assert ((drawn >= 0.3) & (drawn <= 0.9)).all()


@pytest.mark.parametrize("ramp", [0.5, 1.0])
def test_budgets_hold_each_third_on_its_own(ramp: float) -> None:
    """Shares that meet the budgets on average, but crosswise, are no good."""
    settings = ElasticConfig.of(budget_range=(0.1, 1.0))
    budgets = torch.tensor([share_by_hand(1), share_by_hand(0)])
    routing = Routing(P, Q, FIXED, MLP)
    loss = budget_loss(routing, settings, RATIOS, GlobalMean(), ramp, budgets)
    by_hand = sum((share_by_hand(i) - (1 + (float(budgets[i]) - 1) * ramp)) ** 2 for i in range(2)) / 2
    assert float(loss.total) == pytest.approx(by_hand, rel=1e-5)
    met = budget_loss(routing, settings, RATIOS, GlobalMean(), 1.0, budgets.flip(0))
    assert float(met.total) == pytest.approx(0, abs=1e-10)


def test_routers_are_part_of_a_budget_below_one() -> None:
    settings = ElasticConfig.of(budget_range=(0.1, 1.0))
    routing = Routing(P, Q, FIXED, MLP, router_share=0.05)
    budgets = torch.tensor([share_by_hand(0) + 0.05, 1.0])
    loss = budget_loss(routing, settings, RATIOS, GlobalMean(), 1.0, budgets)
    assert float(loss.total) == pytest.approx((share_by_hand(1) - 1) ** 2 / 2, rel=1e-5)
