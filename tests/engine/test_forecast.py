"""Steps whose velocity is forecast, on every backbone: nothing runs, and each run, branch and setting is its own."""

import pytest
import torch

from elastic_dit import ElasticConfig, elasticize, restore
from elastic_dit.backbones import backbones
from tiny import Inputs, Tiny, output_of, run

STEPS = 6


@pytest.fixture(params=list(backbones))
def tiny(request: pytest.FixtureRequest) -> Tiny:
    return Tiny(backbones[request.param])


def make(tiny: Tiny, **values: object) -> None:
    elasticize(tiny.transformer, ElasticConfig.of(route=(1.0,) * tiny.blocks, **values))


def ran(tiny: Tiny, steps: list[Inputs]) -> list[int]:
    """How often the transformer really ran in each step."""
    calls: list[None] = []
    embedder = tiny.transformer.get_submodule(tiny.backbone.timestep_embedder)
    handle = embedder.register_forward_hook(lambda *_: calls.append(None))
    counts: list[int] = []
    for inputs in steps:
        before = len(calls)
        output_of(tiny.transformer, inputs)
        counts.append(len(calls) - before)
    handle.remove()
    return counts


def test_the_last_velocity_is_taken_again(tiny: Tiny) -> None:
    make(tiny, max_forecast=2)
    steps = tiny.steps(2, STEPS)
    dense, own = run(tiny.dense, steps), run(tiny.transformer, steps)
    for step, source in enumerate((0, 0, 0, 3, 3, 3)):
        assert torch.equal(own[step], dense[source]), f"step {step}"


def test_a_step_that_is_forecast_runs_nothing(tiny: Tiny) -> None:
    make(tiny, max_forecast=1)
    assert ran(tiny, tiny.steps(1, STEPS)) == [1, 0, 1, 0, 1, 0]


def test_only_below_a_noise_level(tiny: Tiny) -> None:
    """The timesteps of `steps` begin at 0.7 of pure noise, in every backbone's own unit, and fall by 0.85."""
    make(tiny, max_forecast=5, forecast_below=0.5)
    assert ran(tiny, tiny.steps(1, STEPS)) == [1, 1, 1, 0, 0, 0], "0.7, 0.595, 0.506, 0.430 ..."


def test_order_one_goes_on_along_the_noise_level(tiny: Tiny) -> None:
    make(tiny, max_forecast=1, forecast_order=1)
    steps = tiny.steps(2, 3)
    dense, own = run(tiny.dense, steps), run(tiny.transformer, steps)
    assert torch.equal(own[1], dense[1]), "one velocity is no line"
    first, second, third = (float(inputs["timestep"].flatten()[0]) for inputs in steps)
    slope = (dense[1] - dense[0]) / (second - first)
    assert torch.allclose(own[2], dense[1] + slope * (third - second), atol=1e-5)


def test_output_as_it_was_asked_for(tiny: Tiny) -> None:
    make(tiny, max_forecast=1)
    first, second = tiny.steps(1, 2)
    tiny.transformer(**first)
    sample = tiny.transformer(**second).sample
    restore(tiny.transformer)
    make(tiny, max_forecast=1)
    tiny.transformer(**first, return_dict=False)
    output = tiny.transformer(**second, return_dict=False)
    assert isinstance(output, tuple)
    assert torch.equal(output[0], sample)


def test_the_trace_says_what_was_spent(tiny: Tiny) -> None:
    make(tiny, max_forecast=1)
    run(tiny.transformer, tiny.steps(2, STEPS))
    trace = tiny.transformer.__dict__["_elastic_dit"].trace
    assert trace.flops_share == pytest.approx(0.5)
    assert trace.array("reuse").mean(axis=(1, 2)).tolist() == [0, 1, 0, 1, 0, 1]


def test_a_new_run_forecasts_nothing_from_the_last(tiny: Tiny) -> None:
    make(tiny, max_forecast=1)
    one, two = tiny.steps(1, 3), tiny.steps(1, 3, seed=5)
    expected = run(tiny.dense, two)
    run(tiny.transformer, one)
    own = run(tiny.transformer, two)
    assert torch.equal(own[0], expected[0])
    assert torch.equal(own[1], expected[0])


def test_branches_keep_their_own(tiny: Tiny) -> None:
    """Two passes at each step, told apart by their conditioning."""
    make(tiny, max_forecast=1)
    one, other = tiny.steps(1, 2), tiny.steps(1, 2, seed=3)
    outputs = [output_of(tiny.transformer, inputs) for pair in zip(one, other, strict=True) for inputs in pair]
    assert torch.equal(outputs[0], outputs[2])
    assert torch.equal(outputs[1], outputs[3])
    assert not torch.equal(outputs[0], outputs[1])


def test_training_forecasts_nothing(tiny: Tiny) -> None:
    elastic = elasticize(tiny.transformer, ElasticConfig.of(max_forecast=1))
    elastic.train_mode()
    assert ran(tiny, tiny.steps(1, 2)) == [1, 1]
