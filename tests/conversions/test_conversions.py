"""What every conversion promises, and that each does what its paper says."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elastic_dit.backbones import backbones
from elastic_dit.config import ElasticConfig
from elastic_dit.conversions import Converted, conversions, load_converted, save_converted
from elastic_dit.conversions.base import convert
from elastic_dit.conversions.dense2moe import Dense2MoE, imbalance
from elastic_dit.conversions.dydit import DyDiT, gumbel_sigmoid
from elastic_dit.conversions.dydit_layers import Channels, Heads
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import BackboneError, CheckpointError, ConfigError, UnknownNameError
from elastic_dit.verbs import elasticize
from tiny import Tiny

OPTIONS: dict[str, dict[str, Any]] = {
    "dydit": {"method": "dydit"},
    "dense2moe": {"method": "dense2moe", "group": 2, "keep": 1},
}
BACKBONES = ["flux", "qwen-image", "sd3", "wan"]


class Subject(Tiny):
    """A tiny transformer, converted, its routers at odds with one another."""

    def __init__(self, method: str, backbone: str) -> None:
        super().__init__(backbones[backbone])
        self.converted: Converted = convert(self.transformer, OPTIONS[method])
        torch.manual_seed(1)
        for parameter in self.transformer.conversion.parameters():
            nn.init.normal_(parameter, std=0.5)
        self.converted.price(self.dense, self.inputs())

    @torch.no_grad()
    def run(self, inputs: dict[str, Any] | None = None) -> Tensor:
        return self.transformer(**(inputs or self.inputs(3)), return_dict=False)[0]


@pytest.fixture(params=BACKBONES)
def backbone(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=sorted(OPTIONS))
def subject(request: pytest.FixtureRequest, backbone: str) -> Subject:
    return Subject(request.param, backbone)


@pytest.fixture
def dydit(backbone: str) -> Subject:
    return Subject("dydit", backbone)


@pytest.fixture
def moe(backbone: str) -> Subject:
    return Subject("dense2moe", backbone)


def test_every_conversion_is_tried() -> None:
    assert sorted(OPTIONS) == list(conversions)


def test_nothing_that_is_left_out_matters(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eval mode computes less and gives what masks give."""
    computed = subject.run()
    if isinstance(subject.converted, DyDiT):
        subject.converted.slicing = False
    else:
        subject.transformer.train()
    torch.testing.assert_close(computed, subject.run(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(computed, subject.dense(**subject.inputs(3), return_dict=False)[0], atol=1e-3)


def test_less_is_computed(subject: Subject) -> None:
    assert _flops(subject.transformer, subject.inputs()) < 0.9 * _flops(subject.dense, subject.inputs())


def test_gradients_reach_all_weights(subject: Subject) -> None:
    subject.transformer.train()
    inputs = subject.inputs(3)
    predicted = subject.transformer(**inputs, return_dict=False)[0]
    (predicted.square().mean() + subject.converted.loss().total).backward()
    without = [name for name, parameter in subject.transformer.named_parameters() if parameter.grad is None]
    dense = subject.dense(**inputs, return_dict=False)[0]
    dense.square().mean().backward()
    known = [name for name, parameter in subject.dense.named_parameters() if parameter.grad is None]
    assert set(without) <= set(known)  # routers reach even the text that no output reads


def test_saved_and_loaded(subject: Subject, tmp_path: Path) -> None:
    folder = save_converted(tmp_path / "converted", subject.converted)
    other = copy.deepcopy(subject.dense)
    load_converted(other, folder)
    subject.transformer = subject.transformer.eval()
    with torch.no_grad():
        again = other(**subject.inputs(3), return_dict=False)[0]
    torch.testing.assert_close(again, subject.run(), rtol=0, atol=0)


def test_no_other_base(tmp_path: Path) -> None:
    flux, sd3 = Subject("dydit", "flux"), Tiny(backbones["sd3"])
    folder = save_converted(tmp_path / "converted", flux.converted)
    with pytest.raises(CheckpointError, match="other shapes"):
        load_converted(sd3.transformer, folder)
    with pytest.raises(CheckpointError, match="no converted transformer"):
        load_converted(sd3.transformer, tmp_path)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({}, ConfigError, "needs a `method`"),
        ({"method": "dydid"}, UnknownNameError, "Did you mean 'dydit'"),
        ({"method": "dydit", "budgit": 0.5}, ConfigError, "did you mean 'budget'"),
        ({"method": "dense2moe", "group": 2, "keep": 2}, ConfigError, "keep < group"),
    ],
)
def test_bad_options(values: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        convert(Tiny(backbones["flux"]).transformer, values)


# DyDiT


def test_dydit_starts_dense(backbone: str) -> None:
    tiny = Tiny(backbones[backbone])
    convert(tiny.transformer, {"method": "dydit"})
    inputs = tiny.inputs(3)
    with torch.no_grad():
        outputs = [model(**inputs, return_dict=False)[0] for model in (tiny.transformer, tiny.dense)]
    torch.testing.assert_close(*outputs, rtol=0, atol=0)


def test_dydit_widths_follow_the_timestep_alone(dydit: Subject) -> None:
    first, other = dydit.inputs(3), dydit.inputs(3, seed=5)
    late = first | {"timestep": first["timestep"] * 0.3}
    router, logits = dydit.transformer.conversion.width, list[Tensor]()
    watch = router.register_forward_hook(lambda module, inputs, output: logits.append(output[0]))
    for inputs in (first, late):
        dydit.run(inputs)
    watch.remove()
    with torch.no_grad():  # every gate opens between the two: few as they are here, some might not
        router.bias -= (logits[0] + logits[1]) / 2
    masks: list[list[Tensor]] = []
    for inputs in (first, other, late):
        dydit.run(inputs)
        masks.append([width.mask for width in _dydit(dydit).widths])
    same, later = (all(map(torch.equal, masks[0], each)) for each in masks[1:])
    assert same
    assert not later
    for mask in masks[0]:
        assert mask[:, 0].all(), "the most important head and group are always on"
        assert (mask == mask[:1]).all()


def test_dydit_counts_what_it_saves(dydit: Subject) -> None:
    """The share that training holds to the budget is the one that is run, but for the routers themselves."""
    converted, inputs = _dydit(dydit), dydit.inputs()
    counted = _flops(dydit.transformer, inputs) - sum(_router_flops(dydit.transformer.conversion, converted, inputs))
    converted.slicing = False
    dydit.run(inputs)
    assert counted / len(inputs["hidden_states"]) / converted.dense_flops == pytest.approx(
        float(converted.share().mean()), rel=1e-6
    )


def test_dydit_tokens_pass_mlps_by(dydit: Subject) -> None:
    """What a token that is not chosen gets from the MLP is nothing, and at least one is chosen, one is not."""
    outputs: list[Tensor] = []
    converted = _dydit(dydit)
    channels = next(w for w in converted.widths if isinstance(w, Channels))
    downs = [m for m in dydit.transformer.modules() if getattr(m, "elastic_channels", None) is channels]
    downs[-1].register_forward_hook(lambda module, inputs, output: outputs.append(output))
    dydit.run()
    chosen = channels.tokens.squeeze(-1).bool()
    assert chosen.any()
    assert not chosen.all()
    assert not outputs[0][~chosen].any()
    assert outputs[0][chosen].any(dim=-1).all()


def test_dydit_with_routes_for_each_row(dydit: Subject) -> None:
    """Blocks that run on some rows, at several timesteps at once: each sample is what it is alone."""
    elastic = elasticize(dydit.transformer, ElasticConfig.of(width_streams=(), max_reuse=0))
    inputs = dydit.inputs(3)
    inputs["timestep"] = inputs["timestep"] * torch.tensor([1.0, 0.6, 0.3])
    keep = torch.rand(1, dydit.blocks, 3, generator=torch.Generator().manual_seed(0)) > 0.4
    elastic.force(Plan(keep.numpy()))
    together = dydit.run(inputs)
    for row in range(3):
        elastic.force(Plan(keep[..., row : row + 1].numpy()))
        alone = {name: value[row : row + 1] if _batched(value) else value for name, value in inputs.items()}
        torch.testing.assert_close(dydit.run(alone)[0], together[row], rtol=1e-4, atol=1e-5)


def test_routers_price_the_blocks_as_dense_ones(dydit: Subject) -> None:
    config = ElasticConfig.of(width_streams=(), max_reuse=0)
    routed, dense = elasticize(dydit.transformer, config), elasticize(dydit.dense, config)
    dydit.run()
    dydit.dense(**dydit.inputs(3))
    assert [cost.dense for cost in routed.costs] == [cost.dense for cost in dense.costs]


def test_dydit_alone_chooses_widths(dydit: Subject) -> None:
    with pytest.raises(BackboneError, match="width_streams must be"):
        elasticize(dydit.transformer, ElasticConfig())
    assert not hasattr(dydit.transformer, "_diffusers_hook"), "nothing was attached"


def test_dydit_leaves_heads_whole_where_attention_counts_them_itself() -> None:
    for name in BACKBONES:
        heads = any(isinstance(width, Heads) for width in _dydit(Subject("dydit", name)).widths)
        assert heads == (name in ("flux", "qwen-image"))


def test_gumbel_sigmoid_is_hard_and_fair() -> None:
    logits = torch.full((20_000,), 1.0, requires_grad=True)
    gates = gumbel_sigmoid(logits, True, torch.Generator().manual_seed(0))
    assert set(gates.detach().tolist()) == {0.0, 1.0}, "to the bit: rows of a batch are compared"
    assert float(gates.detach().mean()) == pytest.approx(float(torch.sigmoid(torch.tensor(1.0))), abs=0.01)
    gates.sum().backward()
    assert (logits.grad > 0).all()  # type: ignore[operator]


def test_dydit_draws_until_the_ramp_is_over() -> None:
    subject = Subject("dydit", "flux")
    subject.transformer.train()
    same: list[bool] = []
    for subject.converted.ramp in (0.5, 1.0):
        same.append(torch.equal(subject.run(), subject.run()))
    assert same == [False, True]


def test_dydit_budget_loss() -> None:
    subject = Subject("dydit", "flux")
    converted = _dydit(subject)
    converted.slicing, converted.ramp = False, 0.25
    subject.run()
    share = float(converted.share().mean())
    tokens = [float(w.token_share.mean()) for w in converted.widths if isinstance(w, Channels)]
    expected = 2 * (share - (1 - 0.5 * 0.25)) ** 2 + sum(max(0.0, 0.1 - rate) for rate in tokens)
    assert float(converted.loss().total) == pytest.approx(expected, rel=1e-5)


# Dense2MoE


def test_moe_keeps_so_many_blocks_of_each_group(moe: Subject) -> None:
    moe.run()
    gates = _moe(moe).gates
    assert gates
    for gate in gates:
        assert (gate.sum(dim=-1) == 1).all()


def test_moe_halves_spend_what_the_paper_says() -> None:
    """Of an MLP's FLOPs 37.5% are left; here two of four FLUX blocks run."""
    subject = Subject("dense2moe", "flux")
    block: Any = subject.transformer.transformer_blocks[0]
    dense: Any = subject.dense.transformer_blocks[0]
    x = torch.randn(2, 16, 32)
    with FlopCounterMode(display=False) as whole:
        dense.ff(x)
    with FlopCounterMode(display=False) as part:
        block.ff(x)
    router = 2 * x.shape[0] * x.shape[1] * subject.transformer.conversion.experts[0].weight.numel()
    assert part.get_total_flops() - router == 0.375 * whole.get_total_flops()


def test_moe_tokens_have_one_expert_each(moe: Subject) -> None:
    moe.run()
    for experts in _moe(moe).experts:
        routed = experts.mask()[..., experts.shared :].detach().round()
        assert (routed.sum(dim=-1) == (experts.hidden - experts.shared) / experts.count).all()
        assert experts.mask()[..., : experts.shared].all()


def test_moe_all_blocks_run_until_the_ramp_is_over(moe: Subject) -> None:
    moe.transformer.train()
    moe.converted.ramp = 0.5
    moe.run()
    assert all((gate.round() == 1).all() for gate in _moe(moe).gates)
    moe.converted.ramp = 1.0
    moe.run()
    assert all((gate.round().sum(dim=-1) == 1).all() for gate in _moe(moe).gates)


def test_moe_follows_the_dense_features() -> None:
    subject = Subject("dense2moe", "flux")
    subject.transformer.train()
    subject.converted.follow(subject.dense)
    subject.run()
    with torch.no_grad():
        subject.dense(**subject.inputs(3), return_dict=False)
    assert subject.converted.loss().logs["features_loss"] > 0
    converted = _moe(subject)
    converted.features = list(converted.wanted)
    assert converted.loss().logs["features_loss"] == 0


def test_imbalance() -> None:
    even = torch.full((4, 4), 0.25)
    assert float(imbalance(torch.eye(4), even)) == pytest.approx(1)
    collapsed = torch.tensor([[1.0, 0, 0, 0]]).repeat(4, 1)
    assert float(imbalance(collapsed, collapsed)) == pytest.approx(4)


def _dydit(subject: Subject) -> DyDiT:
    assert isinstance(subject.converted, DyDiT)
    return subject.converted


def _moe(subject: Subject) -> Dense2MoE:
    assert isinstance(subject.converted, Dense2MoE)
    return subject.converted


@torch.no_grad()
def _flops(transformer: Any, inputs: dict[str, Any]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        transformer(**inputs)
    return counter.get_total_flops()


def _router_flops(routers: Any, converted: DyDiT, inputs: dict[str, Any]) -> Iterator[float]:
    batch = len(inputs["hidden_states"])
    yield 2 * batch * routers.width.weight.numel()
    for channels in converted.widths:
        if isinstance(channels, Channels) and channels.gate is not None:
            gated = channels.tokens.shape[1] - channels.text
            yield 2 * batch * gated * routers.tokens[channels.gate].weight.numel()


def _batched(value: Any) -> bool:
    """Whether an input of three samples has one for each."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == 3
