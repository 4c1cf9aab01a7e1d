"""FLOPs of blocks and routers against torch's counter and counts by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from elastic_dit import ElasticConfig
from elastic_dit.core.cost import BlockCost, compute_share, count_flops, fake_mode, measure_block, router_flops
from elastic_dit.core.router_stack import RouterStack


def test_a_block_cost_is_affine_in_width() -> None:
    cost = BlockCost(fixed=10, mlp=40)
    assert (cost.dense, cost.at(0.25), cost.at(1)) == (50, 20, 50)


def test_count_by_hand() -> None:
    linear, x = nn.Linear(5, 7), torch.randn(2, 3, 5)
    assert count_flops(lambda: linear(x)) == 2 * 2 * 3 * 5 * 7
    q = torch.randn(2, 4, 6, 8)  # (B, heads, T, head dim)
    attention = count_flops(lambda: F.scaled_dot_product_attention(q, q, q))
    assert attention == 2 * (2 * 2 * 4 * 6 * 6 * 8)


def test_measured_without_computing() -> None:
    weight = nn.Linear(8, 16)
    with fake_mode() as mode:
        x = mode.from_tensor(torch.randn(3, 5, 8))

        def run(width: float) -> None:
            F.linear(F.linear(x, weight.weight[: int(16 * width)]), weight.weight[: int(16 * width)].T)
            F.linear(x, torch.empty(2, 8))

        cost = measure_block(run, batch=3)
    assert cost.mlp == 2 * (2 * 5 * 8 * 16)
    assert cost.fixed == 2 * 5 * 8 * 2


@pytest.mark.parametrize("modulation", ["low_rank", "full"])
def test_router_flops_equal_counted(modulation: str) -> None:
    stack = RouterStack(ElasticConfig.of(modulation=modulation), 16, 24, 1)
    router, tokens = stack.routers[0], 7
    x, condition = torch.randn(1, tokens, 16), stack.condition(torch.randn(1, 24))
    assert router_flops(router, tokens) == count_flops(lambda: router(x, condition))
    assert router_flops(router, 0) == count_flops(lambda: router(None, condition))


def test_compute_share() -> None:
    keep, width = torch.tensor([[1.0, 1], [1, 0], [0, 0]]), torch.tensor([[1.0, 1], [0.5, 1], [1, 1]])
    share = compute_share(keep, width, fixed=torch.tensor([1.0, 2]), mlp=torch.tensor([3.0, 4]))
    torch.testing.assert_close(share, torch.tensor([1.0, 2.5 / 10, 0]))
