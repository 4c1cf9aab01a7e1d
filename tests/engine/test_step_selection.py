"""Steps that a sample leaves out, on every backbone: it keeps its velocity, and so takes fewer and longer steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

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
    return elasticize(tiny.transformer, ElasticConfig.of(route=(1.0,) * tiny.blocks, **values))


def pairs(tiny: Tiny) -> list[tuple[Inputs, Inputs]]:
    """Each step's inputs with the prompt, and without it."""
    prompt, other = tiny.steps(2, STEPS, seed=0), tiny.steps(2, STEPS, seed=7)
    text = [name for name in prompt[0] if name.startswith(("encoder_hidden_states", "pooled"))]
    return [(one, one | {name: two[name] for name in text}) for one, two in zip(prompt, other, strict=True)]


@contextmanager
def chosen(elastic: ElasticModel, *intervals: int) -> Iterator[None]:
    """What each sample is given, in place of what its text says."""
    assert elastic.stack.selector is not None
    handle = elastic.stack.selector.register_forward_hook(lambda *_: torch.tensor(intervals))
    yield
    handle.remove()


def guided(transformer: Any, steps: list[tuple[Inputs, Inputs]]) -> list[tuple[Tensor, Tensor]]:
    return [(output_of(transformer, one), output_of(transformer, other)) for one, other in steps]


def test_one_interval_holds_for_all(tiny: Tiny) -> None:
    elastic = make(tiny, step_intervals=(2,))
    steps = pairs(tiny)
    dense, own = guided(tiny.dense, steps), guided(tiny.transformer, steps)
    for step, source in enumerate((0, 0, 2, 2, 4)):
        for branch in (0, 1):
            assert torch.equal(own[step][branch], dense[source][branch]), f"step {step}"
    assert elastic.trace.flops_share == pytest.approx(3 / 5)


def test_a_branch_that_comes_late_runs_though_no_step_is_due(tiny: Tiny) -> None:
    """It has no velocity to keep."""
    elastic = make(tiny, step_intervals=(3,))
    steps = pairs(tiny)
    for one, _ in steps[:1]:
        output_of(tiny.transformer, one)
    for _, other in steps[1:2]:
        assert torch.equal(output_of(tiny.transformer, other), output_of(tiny.dense, other))
    assert elastic.trace.flops_share == 1


def test_each_sample_has_its_own(tiny: Tiny) -> None:
    elastic = make(tiny, step_intervals=(1, 3))
    steps = pairs(tiny)
    dense = guided(tiny.dense, steps)
    with chosen(elastic, 1, 3):
        own = guided(tiny.transformer, steps)
    for step, source in enumerate((0, 0, 0, 3, 3)):
        for branch in (0, 1):
            assert torch.allclose(own[step][branch][0], dense[step][branch][0], atol=1e-5), f"step {step}"
            assert torch.allclose(own[step][branch][1], dense[source][branch][1], atol=1e-5), f"step {step}"
    by_row = elastic.trace.array("flops").sum(axis=(0, 1))
    assert by_row[1] / by_row[0] == pytest.approx(2 / 5, rel=1e-3)


def test_guidance_of_a_sample_fades_with_its_own_steps(tiny: Tiny) -> None:
    """What is left is said of one step; over three of them it fades three times."""
    elastic = make(tiny, step_intervals=(1, 3), max_guidance_reuse=9, guidance_reuse_below=1.0, guidance_fade=0.5)
    steps = pairs(tiny)
    dense = guided(tiny.dense, steps)
    with chosen(elastic, 1, 3):
        own = guided(tiny.transformer, steps)
    apart = dense[0][0] - dense[0][1]
    assert torch.allclose(own[3][1][0], (dense[3][0] - 0.5**3 * apart)[0], atol=1e-5)
    assert torch.allclose(own[3][1][1], (dense[3][0] - 0.5**3 * apart)[1], atol=1e-5)
    assert torch.allclose(own[4][1][0], (dense[4][0] - 0.5**4 * apart)[0], atol=1e-5)
    assert torch.equal(own[4][1][1], own[3][1][1]), "between its steps nothing moves"


def test_the_text_says_which(tiny: Tiny) -> None:
    """The same prompt has the same interval beside any other; a selector that knows two prompts tells them apart."""
    elastic = make(tiny, step_intervals=(1, 2), step_share=0.75)
    selector = elastic.stack.selector
    assert selector is not None
    read: list[Tensor] = []
    handle = selector.register_forward_hook(lambda module, inputs, output: read.append(inputs[0]))
    step = tiny.steps(2, 1, seed=0)[0]
    output_of(tiny.transformer, step)
    handle.remove()
    assert len(read) == 1 and len(read[0]) == 2
    features = torch.cat([read[0].float().mean(dim=1), read[0].float().std(dim=1)], dim=-1)
    towards = (features[0] - features[1]) / (features[0] - features[1]).square().sum()
    selector.weight[:-1] = torch.stack([towards, -towards], dim=-1)
    selector.center.copy_(features.mean(dim=0))
    assert selector(read[0], 0.75).tolist() == [1, 2]
    assert selector(read[0].flip(0), 0.75).tolist() == [2, 1]


def test_a_new_run_chooses_again(tiny: Tiny) -> None:
    elastic = make(tiny, step_intervals=(1, 2))
    with chosen(elastic, 2, 2):
        guided(tiny.transformer, pairs(tiny))
    assert elastic.trace.flops_share == pytest.approx(3 / 5)
    with chosen(elastic, 1, 1):
        guided(tiny.transformer, pairs(tiny))
    assert elastic.trace.flops_share == pytest.approx(1)


def test_routers_decide_in_the_steps_that_run(tiny: Tiny) -> None:
    elastic = elasticize(tiny.transformer, ElasticConfig(step_intervals=(1, 2)))
    with chosen(elastic, 1, 2):
        guided(tiny.transformer, pairs(tiny))
    assert elastic.trace.array("reuse")[1, :, 1].all() and elastic.trace.array("flops")[1, :, 0].all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step_intervals": (3, 2)}, "rise"),
        ({"step_intervals": (0, 2)}, "rise"),
        ({"step_intervals": (2, 3), "step_share": 0.6}, "0.33 to 0.50"),
        ({"step_intervals": (2,), "step_share": 0.5}, "several step_intervals"),
        ({"step_share": 0.5}, "several step_intervals"),
        ({"step_intervals": (2,), "max_forecast": 1}, "max_forecast"),
        ({"step_intervals": (2,), "budget_range": (0.3, 1.0)}, "budget_range"),
    ],
)
def test_settings_that_cannot_be(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ElasticConfig.of(**values)
