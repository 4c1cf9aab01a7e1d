"""SD3's pipeline runs both guidance branches in one batch: where one may be left out, each has its own forward."""

from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from elastic_dit import ElasticConfig, ElasticModel, elasticize
from elastic_dit.backbones import backbones
from elastic_dit.verbs import reroute, restore
from sd3 import STEPS, draw, pipeline_of
from tiny import Tiny


@pytest.fixture
def tiny() -> Tiny:
    return Tiny(backbones["sd3"])


def make(pipe: StableDiffusion3Pipeline, tiny: Tiny, **values: Any) -> ElasticModel:
    return elasticize(pipe, ElasticConfig.of(route=(1.0,) * tiny.blocks, **values))


def forwards(elastic: ElasticModel) -> dict[Any, list[float]]:
    """Of each branch, the share of samples for which each step was left out."""
    trace = elastic.trace
    return {name: trace.array("reuse", name).mean(axis=(1, 2)).tolist() for name in trace.branches}


def test_the_prompt_runs_alone_where_guidance_is_taken_again(tiny: Tiny) -> None:
    pipe = pipeline_of(tiny.transformer)
    elastic = make(pipe, tiny, max_guidance_reuse=1, guidance_reuse_below=1.0)
    draw(pipe)
    assert forwards(elastic) == {"cond": [0, 0, 0, 0, 0], "uncond": [0, 1, 0, 1, 0]}
    assert elastic.trace.flops_share == pytest.approx(0.8)


def test_guidance_begins_late(tiny: Tiny) -> None:
    """Without guidance in any step the images are those of a scale of 1."""
    pipe = pipeline_of(tiny.transformer)
    expected = draw(pipe, guidance_scale=1.0)
    guided = draw(pipe)
    elastic = make(pipe, tiny, guidance_from=0.001)
    assert torch.allclose(draw(pipe), expected, atol=1e-5)
    assert elastic.trace.flops_share == pytest.approx(0.5)
    elastic.guidance_from = 1.0
    assert torch.equal(draw(pipe), guided), "all in one batch again"


def test_each_prompt_has_steps_of_its_own(tiny: Tiny) -> None:
    """Both branches of a sample keep the steps that its prompt asks for, not those of the empty one."""
    pipe = pipeline_of(tiny.transformer)
    elastic = make(pipe, tiny, step_intervals=(1, 3))
    assert elastic.stack.selector is not None
    handle = elastic.stack.selector.register_forward_hook(lambda *_: torch.tensor((1, 3)))
    own = draw(pipe)
    handle.remove()
    for branch in ("cond", "uncond"):
        left_out = elastic.trace.array("reuse", branch).mean(axis=1)
        assert left_out.tolist() == [[0, 0], [0, 1], [0, 1], [0, 0], [0, 1]], branch
    restore(pipe)
    assert torch.allclose(own[0], draw(pipe)[0], atol=1e-5)


def test_what_is_no_guidance_stays_one_batch(tiny: Tiny) -> None:
    pipe = pipeline_of(tiny.transformer)
    elastic = make(pipe, tiny, max_guidance_reuse=1, guidance_reuse_below=1.0)
    draw(pipe, guidance_scale=1.0)
    assert list(forwards(elastic)) == [0]
    one = tiny.inputs(1)["hidden_states"]
    with torch.no_grad():  # the same noise for two prompts, outside the pipeline
        pipe._guidance_scale = 1.0
        tiny.transformer(**tiny.inputs(2) | {"hidden_states": torch.cat([one, one])})
    assert list(forwards(elastic)) == [0]


def test_other_routes_keep_the_pipeline(tiny: Tiny) -> None:
    pipe = pipeline_of(tiny.transformer)
    first = make(pipe, tiny)
    elastic = reroute(first, first.config.model_copy(update={"max_guidance_reuse": 4, "guidance_reuse_below": 1.0}))
    draw(pipe)
    assert forwards(elastic) == {"cond": [0] * 5, "uncond": [0, 1, 1, 1, 1]}


def test_a_third_branch_with_layers_skipped_is_of_the_same_run(tiny: Tiny) -> None:
    """Skip-layer guidance calls the transformer for the prompt alone, after the batch of both branches."""
    pipe = pipeline_of(tiny.transformer)
    guidance = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 0.7}
    expected = draw(pipe, **guidance)
    elastic = make(pipe, tiny)
    assert torch.equal(draw(pipe, **guidance), expected)
    assert elastic.trace.branches == [0, "skip_layers"]
    assert {key[0] for key in elastic.trace} == set(range(STEPS)), "one run of so many steps"
    elastic.max_guidance_reuse, elastic.guidance_reuse_below = 1, 1.0
    draw(pipe, **guidance)
    assert forwards(elastic)["uncond"] == [0, 1, 0, 1, 0]
