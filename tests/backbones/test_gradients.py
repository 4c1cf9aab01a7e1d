"""Eq. 7, 8, 13: hard values, soft gradients, and they reach every router parameter."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elastic_dit import elasticize
from elastic_dit.backbones import BlockList, backbones
from reference import router_logits, wrap_blocks
from tiny import Inputs, Tiny, TinyElastic, mixed_config, scatter_routers


def quality(transformer: nn.Module, inputs: Inputs) -> Tensor:
    """A loss of the output alone."""
    out = transformer(**inputs, return_dict=False)[0]
    weight = torch.linspace(-1, 1, out.numel()).view_as(out)
    return (out * weight).sum()


class ByLeaves:
    """A dense transformer with a gate and a channel mask a block, each a leaf that holds its hard value."""

    def __init__(self, tiny: TinyElastic) -> None:
        self.config, self.weights = tiny.elastic.config, tiny.elastic.stack.state_dict()
        self.leaves: list[dict[str, Tensor]] = []
        self._temb = torch.empty(0)
        self._mask: Tensor | None = None
        embedder = tiny.dense.get_submodule(tiny.backbone.timestep_embedder)
        self._handles = [embedder.register_forward_hook(self._remember_temb)]
        for declared, block in tiny.backbone.sites(tiny.dense):
            for mlp in declared.mlps:
                if mlp.stream in self.config.width_streams:
                    down = block.get_submodule(mlp.down)
                    self._handles.append(down.register_forward_pre_hook(self._masked))
        wrap_blocks(tiny.dense, tiny.backbone, self._block)
        self._blocks = [block for _, block in tiny.backbone.sites(tiny.dense)]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()
        for block in self._blocks:
            del block.forward

    def _block(
        self, index: int, declared: BlockList, block: nn.Module, forward: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Any, ...]:
        x = [arguments[name] for name in declared.returns]
        image = arguments["hidden_states"]
        rows = zip(image.detach(), self._temb.detach(), strict=True)
        logits = [router_logits(self.weights, index, self.config, tokens, temb) for tokens, temb in rows]
        p = torch.stack([1 / (1 + torch.exp(-gate)) for gate, _ in logits])
        q = torch.stack([widths.softmax(dim=-1) for _, widths in logits])
        gate = (p >= self.config.tau).float().requires_grad_()
        mlp = declared.mlps[0]
        hidden = block.get_submodule(mlp.up).weight.shape[0] // (2 if mlp.gated else 1)
        kept = torch.tensor([[round(ratio * hidden)] for ratio in self.config.width_ratios])
        prefixes = (torch.arange(hidden) < kept).float()  # (S, F)
        mask = prefixes[q.argmax(dim=-1)].requires_grad_()
        self.leaves.append({"p": p, "q": q, "gate": gate, "mask": mask, "prefixes": prefixes})
        self._mask = mask
        out = forward(**arguments)
        self._mask = None
        out = out if isinstance(out, tuple) else (out,)
        return tuple(None if b is None else a + gate.view(-1, 1, 1) * (b - a) for a, b in zip(x, out, strict=True))

    def _masked(self, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        assert self._mask is not None
        h = inputs[0]
        stay = h.shape[-1] - self._mask.shape[-1]
        return torch.cat([h[..., :stay], h[..., stay:] * self._mask.unsqueeze(1)], dim=-1)

    def _remember_temb(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._temb = output[0] if isinstance(output, tuple) else output


def test_straight_through_gradients_are_the_soft_ones(routed: TinyElastic) -> None:
    """At the last block, whose decisions move nothing but the output: dL/dl and dL/du by the chain rule."""
    inputs = routed.inputs(6, seed=3)
    routed.elastic.train_mode()
    loss = quality(routed.transformer, inputs)
    loss.backward()

    by_leaves = ByLeaves(routed)
    try:
        expected_loss = quality(routed.dense, inputs)
    finally:
        by_leaves.close()
    last = by_leaves.leaves[-1]
    d_gate, d_mask = torch.autograd.grad(expected_loss, [last["gate"], last["mask"]])
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=1e-3)
    assert 0 < float(last["gate"].detach().mean()) < 1

    p, q = last["p"], last["q"]
    router = routed.elastic.routers[-1]
    torch.testing.assert_close(router.gate_head.bias.grad[0], (d_gate * p * (1 - p)).sum(), rtol=1e-3, atol=1e-4)
    # d/du of the expected mask, sum_j q_j m_j, through the softmax
    per_width = d_mask @ last["prefixes"].T  # (B, S)
    d_logits = q * (per_width - (q * per_width).sum(dim=-1, keepdim=True))
    torch.testing.assert_close(router.width_head.bias.grad, d_logits.sum(dim=0), rtol=1e-3, atol=1e-4)


def test_quality_alone_reaches_every_router_parameter(routed: TinyElastic) -> None:
    routed.elastic.train_mode()
    quality(routed.transformer, routed.inputs(6, seed=11)).backward()  # every block is open to some
    for name, parameter in routed.elastic.stack.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flux", {"modulation": "full"}),
        ("flux", {"always_open": (1,)}),
        ("qwen-image", {"router_input": "joint"}),
        ("flux", {"width_gradient": "budget"}),
    ],
)
def test_quality_reaches_the_routers_under_each_setting(name: str, changes: dict[str, Any]) -> None:
    tiny = Tiny(backbones[name])
    elastic = elasticize(tiny.transformer, mixed_config(**changes))
    scatter_routers(elastic, tiny.inputs(6, seed=11))
    elastic.train_mode()
    quality(tiny.transformer, tiny.inputs(6, seed=11)).backward()
    for parameter, value in elastic.stack.named_parameters():
        gated = any(f"routers.{index}.gate_head" in parameter for index in elastic.config.always_open)
        shut = gated or ("width_head" in parameter and elastic.config.width_gradient == "budget")
        grad = torch.zeros(()) if value.grad is None else value.grad
        assert bool(grad.any()) != shut, parameter
        if gated:  # it stays in the graph, so that ranks stay in step
            assert value.grad is not None


def test_the_backbone_trains_through_open_blocks_only(routed: TinyElastic) -> None:
    """A block that every sample skips adds nothing: its weights get no gradient from the quality loss."""
    routed.elastic.train_mode()
    with torch.no_grad():
        for router, logit in ((routed.elastic.routers[0], 3.0), (routed.elastic.routers[-1], -3.0)):
            router.gate_head.weight.zero_()
            router.gate_head.bias.fill_(logit)
    quality(routed.transformer, routed.inputs(2)).backward()
    shut, opened = routed.elastic.sites[-1].block, routed.elastic.sites[0].block
    assert not any(p.grad is not None and p.grad.any() for p in shut.parameters())
    assert any(p.grad is not None and p.grad.any() for p in opened.parameters())


def test_checkpointing_changes_no_gradient(routed: TinyElastic) -> None:
    elastic, inputs = routed.elastic, routed.inputs(3)
    gradients = []
    for checkpointing in (False, True):
        routed.as_new()
        elastic.train_mode(gradient_checkpointing=checkpointing)
        loss = quality(routed.transformer, inputs) + elastic.losses().total
        loss.backward()
        both = [*elastic.stack.named_parameters(), *routed.transformer.named_parameters()]
        gradients.append({name: p.grad.clone() for name, p in both if p.grad is not None})
    elastic.train_mode(gradient_checkpointing=False)
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, msg=name)


def test_the_budget_alone_brings_the_flops_down(routed_flux: TinyElastic) -> None:
    elastic, inputs = routed_flux.elastic, routed_flux.inputs(6)
    elastic.config.rho_g, elastic.config.rho_w = 0.2, 0.5
    elastic.train_mode()
    optimizer = torch.optim.Adam(elastic.stack.parameters(), lr=0.03)
    shares = []
    for _ in range(20):
        optimizer.zero_grad()
        routed_flux.transformer(**inputs)
        budget = elastic.losses()
        budget.total.backward()
        optimizer.step()
        shares.append(budget.logs["flops/share"])
    assert shares[0] > 0.3
    assert shares[-1] < 0.25
