"""Guidance that is taken again, on every backbone: of a step's branches the first alone runs."""

import pytest
import torch
from torch import Tensor

from elastic_dit import ElasticConfig, elasticize
from elastic_dit.backbones import backbones
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from tiny import Inputs, Tiny, output_of

STEPS = 5


@pytest.fixture(params=list(backbones))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(backbones[request.param])


def make(tiny: Tiny, **values: object) -> ElasticModel:
    values = {"guidance_reuse_below": 1.0} | values
    return elasticize(tiny.transformer, ElasticConfig.of(route=(1.0,) * tiny.blocks, **values))


def pairs(tiny: Tiny, seed: int = 0) -> list[tuple[Inputs, Inputs]]:
    """Each step's inputs with the prompt, and without it: the same but for the text."""
    prompt = tiny.steps(2, STEPS, seed=seed)
    other = tiny.steps(2, STEPS, seed=seed + 7)
    text = [name for name in prompt[0] if name.startswith(("encoder_hidden_states", "pooled"))]
    return [(one, one | {name: two[name] for name in text}) for one, two in zip(prompt, other, strict=True)]


def guided(transformer: torch.nn.Module, steps: list[tuple[Inputs, Inputs]]) -> list[tuple[Tensor, Tensor]]:
    return [(output_of(transformer, one), output_of(transformer, other)) for one, other in steps]


def test_the_other_branch_keeps_its_distance(tiny: Tiny) -> None:
    make(tiny, max_guidance_reuse=2)
    steps = pairs(tiny)
    dense, own = guided(tiny.dense, steps), guided(tiny.transformer, steps)
    for step, source in enumerate((0, 0, 0, 3, 3)):
        assert torch.equal(own[step][0], dense[step][0]), "the first branch runs in every step"
        expected = dense[step][0] - (dense[source][0] - dense[source][1])
        assert torch.allclose(own[step][1], expected, atol=1e-6), f"step {step}"
        if step == source:
            assert torch.equal(own[step][1], dense[step][1])


def test_it_fades_from_step_to_step(tiny: Tiny) -> None:
    make(tiny, max_guidance_reuse=2, guidance_fade=0.5)
    steps = pairs(tiny)
    dense, own = guided(tiny.dense, steps), guided(tiny.transformer, steps)
    for step, source, left in ((1, 0, 0.5), (2, 0, 0.25), (4, 3, 0.5)):
        expected = dense[step][0] - left * (dense[source][0] - dense[source][1])
        assert torch.allclose(own[step][1], expected, atol=1e-6), f"step {step}"
    assert torch.equal(own[3][1], dense[3][1]), "computed again, it is whole"


def test_with_no_fade_left_guidance_is_out(tiny: Tiny) -> None:
    make(tiny, max_guidance_reuse=9, guidance_fade=0.0)
    for one, other in guided(tiny.transformer, pairs(tiny))[1:]:
        assert torch.equal(one, other)


def test_only_below_a_noise_level(tiny: Tiny) -> None:
    """Timesteps begin at 0.7 of pure noise and fall by 0.85: 0.7, 0.595, 0.506, 0.430, 0.365."""
    elastic = make(tiny, max_guidance_reuse=9, guidance_reuse_below=0.5)
    guided(tiny.transformer, pairs(tiny))
    branches = elastic.trace.branches
    assert elastic.trace.array("reuse", branches[0]).mean(axis=(1, 2)).tolist() == [0, 0, 0, 0, 0]
    assert elastic.trace.array("reuse", branches[1]).mean(axis=(1, 2)).tolist() == [0, 0, 0, 1, 1]
    assert elastic.trace.flops_share == pytest.approx(0.8)


def test_none_above_a_noise_level(tiny: Tiny) -> None:
    """There the first branch stands for the other; what is taken again later was computed below."""
    elastic = make(tiny, guidance_from=0.55, max_guidance_reuse=1, guidance_reuse_below=0.45)
    steps = pairs(tiny)
    dense, own = guided(tiny.dense, steps), guided(tiny.transformer, steps)
    for step in (0, 1):
        assert torch.equal(own[step][1], dense[step][0])
    assert torch.equal(own[2][1], dense[2][1])
    assert torch.allclose(own[3][1], dense[3][0] - (dense[2][0] - dense[2][1]), atol=1e-6)
    assert torch.equal(own[4][1], dense[4][1])
    assert elastic.trace.flops_share == pytest.approx(0.7)


def test_with_whole_steps_forecast(tiny: Tiny) -> None:
    """A step that is forecast moves neither count; after one taken for guidance, a forecast goes on from that."""
    make(tiny, max_guidance_reuse=1, max_forecast=1)
    steps = pairs(tiny)
    dense, own = guided(tiny.dense, steps), guided(tiny.transformer, steps)
    taken = dense[2][0] - (dense[0][0] - dense[0][1])
    first = [dense[step][0] for step in (0, 0, 2, 2, 4)]
    other = [dense[0][1], dense[0][1], taken, taken, dense[4][1]]
    for step in range(STEPS):
        assert torch.equal(own[step][0], first[step])
        assert torch.allclose(own[step][1], other[step], atol=1e-6), f"step {step}"


def test_a_new_run_takes_nothing_from_the_last(tiny: Tiny) -> None:
    make(tiny, max_guidance_reuse=9)
    one, two = pairs(tiny), pairs(tiny, seed=3)
    guided(tiny.transformer, one)
    assert torch.equal(guided(tiny.transformer, two)[0][1], output_of(tiny.dense, two[0][1]))


def test_one_branch_alone_always_runs(tiny: Tiny) -> None:
    elastic = make(tiny, max_guidance_reuse=9)
    for one, _ in pairs(tiny):
        output_of(tiny.transformer, one)
    assert elastic.trace.flops_share == pytest.approx(1)


def test_the_handle_turns_it_on_and_off(tiny: Tiny) -> None:
    elastic = make(tiny)
    elastic.max_guidance_reuse = 9
    steps = pairs(tiny)
    guided(tiny.transformer, steps)
    assert elastic.trace.flops_share == pytest.approx(0.6)
    elastic.max_guidance_reuse = 0
    guided(tiny.transformer, steps)
    assert elastic.trace.flops_share == pytest.approx(1)
    with pytest.raises(ConfigError, match="max_guidance_reuse"):
        elastic.max_guidance_reuse = -1
