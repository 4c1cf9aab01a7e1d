"""Eq. 4-6: the router against the paper's formulas, its two starts, and what stays out of its mean."""

from typing import Any

import pytest
import torch

from elastic_dit import ElasticConfig
from elastic_dit.core.gating import keep_probability
from elastic_dit.core.ready_routers import StackedRouters, plain_read
from elastic_dit.core.router import Router, RouterOutput, masked_mean, with_noise
from elastic_dit.core.router_stack import RouterStack
from reference import router_logits

B, T, D, C, BLOCKS = 3, 5, 8, 12, 2


def stack_of(**changes: Any) -> RouterStack:
    values = {"router_hidden_size": 6, "modulation_rank": 4, "init": "random"} | changes
    return RouterStack(ElasticConfig.of(**values), D, C, BLOCKS)


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu"])
@pytest.mark.parametrize("modulation", ["low_rank", "full"])
def test_router_equations(activation: str, modulation: str) -> None:
    config = ElasticConfig.of(
        router_hidden_size=6, modulation_rank=4, init="random", router_activation=activation, modulation=modulation
    )
    stack = RouterStack(config, D, C, BLOCKS)
    x, temb = torch.randn(B, T, D) * 3 + 1, torch.randn(B, C)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 0], [0, 0, 0, 0, 1]]).bool()
    for index, router in enumerate(stack.routers):
        output = router(x, stack.condition(temb), mask)
        for row in range(B):
            gate, widths = router_logits(stack.state_dict(), index, config, x[row][mask[row]], temb[row])
            torch.testing.assert_close(output.gate_logit[row], gate, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(output.width_logits[row], widths, rtol=1e-4, atol=1e-5)


def test_without_tokens_it_is_the_router_of_a_token_that_says_nothing() -> None:
    stack = stack_of()
    condition = stack.condition(torch.randn(B, C))
    torch.testing.assert_close(stack.routers[0](None, condition), stack.routers[0](torch.zeros(B, 1, D), condition))


@pytest.mark.parametrize("changes", [{}, {"modulation": "full"}, {"budget_range": (0.2, 1.0)}])
def test_all_routers_at_once_say_what_each_says(changes: dict[str, Any]) -> None:
    stack = stack_of(**changes)
    budget = torch.rand(B) if changes.get("budget_range") else None
    for router in stack.routers if budget is not None else ():
        torch.nn.init.normal_(router.dial.width_slopes)
    condition, x, mask = stack.condition(torch.randn(B, C)), torch.randn(B, T, D), torch.rand(B, T) > 0.5
    ready = StackedRouters(stack).at(condition, budget)
    blind = ready.say_all(ready.without_tokens)
    assert not blind.requires_grad
    for index, router in enumerate(stack.routers):
        said = ready.say(index, ready.pool(index, x, mask, plain_read))
        for tokens, packed in (((x, condition, mask), said), ((None, condition, None), blind[index])):
            alone = router(*tokens, budget)
            torch.testing.assert_close(packed[:, 0], alone.gate_logit)
            torch.testing.assert_close(packed[:, 1:], alone.width_logits)


def test_full_capacity_start() -> None:
    stack = stack_of(init="full_capacity", init_keep_prob=0.7, init_width_logit=3.0)
    output = stack.routers[0](100 * torch.randn(B, T, D), stack.condition(torch.randn(B, C)))
    torch.testing.assert_close(output.gate_logit.sigmoid(), torch.full((B,), 0.7), atol=0.01, rtol=0)
    torch.testing.assert_close(output.width_logits, torch.tensor([[0.0, 0.0, 0.0, 3.0]] * B), atol=0.05, rtol=0)
    assert not stack.routers[0].modulation.weight.any()


def test_random_start_is_undecided() -> None:
    """Table 5's other start: probabilities near 1/2, widths near equal."""
    stack = stack_of()
    output = stack.routers[0](torch.randn(64, T, D), stack.condition(torch.randn(64, C)))
    assert ((output.gate_logit.sigmoid() - 0.5).abs() < 0.3).all()
    assert (output.width_logits.softmax(-1) < 0.6).all()


def test_arithmetic_is_float32() -> None:
    stack = stack_of()
    x, temb = torch.randn(B, T, D).bfloat16(), torch.randn(B, C).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = stack.routers[0](x, stack.condition(temb))
    expected = stack.routers[0](x.float(), stack.condition(temb.float()))
    assert output.gate_logit.dtype == output.width_logits.dtype == torch.float32
    assert torch.equal(output.gate_logit, expected.gate_logit)


def test_a_timestep_embedding_per_token_is_averaged() -> None:
    stack = stack_of()
    temb = torch.randn(B, T, C)
    torch.testing.assert_close(stack.condition(temb), stack.condition(temb.mean(dim=1)))


def test_low_rank_modulation_is_small() -> None:
    def size(modulation: str) -> int:
        config = ElasticConfig.of(modulation=modulation)
        return sum(p.numel() for p in RouterStack(config, 256, 256, 8).parameters())

    assert size("low_rank") < 0.35 * size("full")


def test_masked_mean_of_no_token_is_zero() -> None:
    x = torch.randn(2, 3, 4)
    mask = torch.tensor([[False] * 3, [True] * 3])
    torch.testing.assert_close(masked_mean(x, mask), torch.stack([torch.zeros(4), x[1].mean(dim=0)]))


def test_the_dial_is_monotone() -> None:
    """Whatever was learnt: a larger budget closes no block and narrows no MLP; the whole one changes nothing."""
    config = ElasticConfig.of(init="random", router_hidden_size=8, modulation_rank=4, budget_range=(0.2, 1.0))
    router, plain = Router(config, 6, 4), Router(config, 6, 4)
    tokens, condition = torch.randn(32, 3, 6), torch.randn(32, 4)
    budgets = torch.linspace(0.2, 1, 9)
    changed = 0
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        for parameter in router.parameters():
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
        for slope in router.dial.parameters():
            torch.nn.init.uniform_(slope, 0.0, 0.3, generator=generator)
        outputs = [router(tokens, condition, None, budget.expand(32)) for budget in budgets]
        opened = torch.stack([output.gate_logit >= 0 for output in outputs]).int()
        widths = torch.stack([output.width_logits.argmax(dim=-1) for output in outputs])
        assert (opened.diff(dim=0) >= 0).all()
        assert (widths.diff(dim=0) >= 0).all()
        changed += int(opened.diff(dim=0).any()) + int(widths.diff(dim=0).any())
        plain.load_state_dict(router.state_dict())
        plain.dial = None
        for whole, without in zip(outputs[-1], plain(tokens, condition), strict=True):
            assert torch.equal(whole, without)
    assert changed == 10  # at every seed gates and widths really move


def test_routers_may_start_at_a_route() -> None:
    stack = stack_of(init="full_capacity", init_route=(0.6, 0.0), init_keep_prob=0.8)
    x, condition = torch.randn(B, T, D), torch.zeros(B, 4)
    opened, closed = (router(x, condition) for router in stack.routers)
    torch.testing.assert_close(keep_probability(opened.gate_logit), torch.full((B,), 0.8), rtol=0, atol=0.01)
    torch.testing.assert_close(keep_probability(closed.gate_logit), torch.full((B,), 0.2), rtol=0, atol=0.01)
    assert opened.width_logits.argmax(-1).tolist() == [1] * B  # 0.5 of 0.25, 0.5, 0.75, 1
    assert closed.width_logits.argmax(-1).tolist() == [3] * B


def test_a_fixed_route_needs_no_router() -> None:
    stack = stack_of(route=(1.0, 0.5))
    assert not list(stack.parameters())
    assert stack.condition is None


def test_noise_draws_decisions_with_their_probabilities() -> None:
    many = 20_000
    gate, widths = torch.tensor([0.7]), torch.tensor([[0.0, 1.0, -1.0, 0.5]])
    output = RouterOutput(gate.expand(many), widths.expand(many, 4))
    noisy = with_noise(output, 1.0, torch.Generator().manual_seed(0))
    opened = (noisy.gate_logit >= 0).float().mean()
    assert float(opened) == pytest.approx(float(gate.sigmoid()), abs=0.01)
    chosen = noisy.width_logits.argmax(-1).bincount(minlength=4) / many
    torch.testing.assert_close(chosen, widths[0].softmax(-1), rtol=0, atol=0.01)
    again = with_noise(output, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(noisy.gate_logit, again.gate_logit)
    none = with_noise(output, 0.0, None)
    assert torch.equal(none.gate_logit, output.gate_logit) and torch.equal(none.width_logits, output.width_logits)


def test_routers_may_start_with_a_route_for_every_budget() -> None:
    path = ((0.9, 0, 0.75), (0.8, 1, 0.0), (0.7, 0, 0.25), (0.5, 0, 0.0))
    stack = stack_of(init="full_capacity", init_path=path, budget_range=(0.3, 1.0))
    x, condition = torch.randn(B, T, D), torch.zeros(B, 4)
    wanted = {
        1.0: (1, 1),
        0.91: (1, 1),
        0.89: (0.75, 1),
        0.79: (0.75, 0),
        0.71: (0.75, 0),
        0.69: (0.25, 0),
        0.51: (0.25, 0),
    }
    for budget, widths in (wanted | {0.49: (0, 0), 0.3: (0, 0)}).items():
        for router, width in zip(stack.routers, widths, strict=True):
            output = router(x, condition, None, torch.full((B,), budget))
            assert ((output.gate_logit >= 0) == bool(width)).all(), (budget, width)
            if width:
                assert (stack.ratios[output.width_logits.argmax(dim=-1)] == width).all(), (budget, width)
