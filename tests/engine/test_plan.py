"""Plans: what they accept and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch

from elastic_dit import Plan, elasticize
from elastic_dit.backbones import backbones
from elastic_dit.errors import PlanError
from sd3 import STEPS, draw, pipeline_of
from tiny import Tiny, TinyElastic, mixed_config, output_of, run


def test_a_plan_for_one_image_holds_for_each() -> None:
    plan = Plan([[True, False]], width=[[0.5, 1.0]])
    assert (plan.steps, plan.blocks) == (1, 2)
    decision = plan.decision(0, 0, batch=3)
    assert decision.keep == [True] * 3
    assert decision.reuse == [False] * 3
    assert decision.width == [0.5] * 3
    assert plan.decision(0, 1, batch=1).keep == [False]


def test_a_plan_may_say_it_for_each_sample() -> None:
    plan = Plan([[[True, False]]], reuse=[[[False, True]]])
    assert plan.decision(0, 0, batch=2).keep == [True, False]
    assert plan.decision(0, 0, batch=2).reuse == [False, True]
    with pytest.raises(PlanError, match="for 2 samples, but the batch has 3"):
        plan.decision(0, 0, batch=3)


@pytest.mark.parametrize(
    ("keep", "reuse", "width", "message"),
    [
        ([True], None, None, r"\(steps, blocks\)"),
        ([[True]], [[True, False]], None, r"reuse has shape \(1, 2\); expected keep's, \(1, 1\)"),
        ([[True]], None, [[0.5], [1.0]], "width has shape"),
        ([[True]], None, [[0.0]], r"must lie in \(0, 1\]"),
        ([[True]], None, [[1.5]], r"must lie in \(0, 1\]"),
        ([[True]], None, [[np.nan]], r"must lie in \(0, 1\]"),
    ],
)
def test_bad_plans(keep: object, reuse: object, width: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan(keep, reuse, width)


def test_a_plan_of_another_model_or_length(routed_flux: TinyElastic) -> None:
    blocks = routed_flux.blocks
    with pytest.raises(PlanError, match=f"{blocks + 1} blocks; the transformer has {blocks}"):
        routed_flux.elastic.force(Plan(np.ones((1, blocks + 1))))
    routed_flux.elastic.force(Plan(np.ones((2, blocks))))
    with pytest.raises(PlanError, match="has 2 steps, but the run asks for step 3"):
        run(routed_flux.transformer, routed_flux.steps(1, 3))


def test_a_residual_is_stored_only_where_the_plan_reuses_it() -> None:
    """Three blocks: one reuses at once, one after a skip, one never again before it runs anew."""
    keep = [[1, 1, 1], [1, 0, 1], [1, 1, 1]]
    reuse = [[0, 0, 0], [1, 0, 0], [0, 1, 1]]
    plan = Plan(keep, reuse)
    stored = [[plan.decision(step, block, batch=1).store[0] for block in range(3)] for step in range(3)]
    assert stored == [[True, True, False], [False, True, True], [False, False, False]]


class TestAverage:
    def test_of_one_sample_is_its_route(self, routed_flux: TinyElastic) -> None:
        outputs = run(routed_flux.transformer, routed_flux.steps(1, 4))
        trace = routed_flux.elastic.trace
        plan = routed_flux.elastic.freeze()
        assert np.array_equal(plan.keep, trace.array("keep")[..., 0])
        assert plan.reuse.any()
        for frozen, adaptive in zip(run(routed_flux.transformer, routed_flux.steps(1, 4)), outputs, strict=True):
            torch.testing.assert_close(frozen, adaptive)
        assert routed_flux.elastic.trace.reuse_rate == trace.reuse_rate

    def test_spends_what_the_runs_spent(self, routed_flux: TinyElastic) -> None:
        traces = []
        for seed in range(3):
            run(routed_flux.transformer, routed_flux.steps(6, 4, seed))
            traces.append(routed_flux.elastic.trace)
        plan = Plan.average(traces, (0.25, 0.5, 0.75, 1.0))
        opened = np.mean([trace.array("keep").mean() for trace in traces])
        reused = np.mean([trace.array("reuse").mean() for trace in traces])
        assert plan.keep.mean() == pytest.approx(opened, abs=1 / plan.keep.size)
        assert plan.reuse.mean() == pytest.approx(reused, abs=1 / plan.keep.size)
        assert not (plan.reuse & ~plan.keep).any()

    def test_forwards_left_out_say_nothing(self, tiny_flux: Tiny) -> None:
        """Where guidance is taken again, no block of that branch reused a residual."""
        config = mixed_config(max_guidance_reuse=1, guidance_reuse_below=1.0)
        routed = TinyElastic(tiny_flux, config)
        for inputs in routed.steps(1, 4):
            for text in (inputs, inputs | {"encoder_hidden_states": -inputs["encoder_hidden_states"]}):
                output_of(routed.transformer, text)
        trace = routed.elastic.trace
        assert trace.array("left_out", 1)[..., 0].all(axis=1).tolist() == [False, True, False, True]
        plan = routed.elastic.freeze()
        alone = trace.array("keep", 0)[[1, 3], :, 0]
        assert plan.keep[[1, 3]].sum() == pytest.approx(alone.sum(), abs=2)
        run(routed.transformer, routed.steps(1, 4))

    def test_a_branch_that_is_not_always_there(self) -> None:
        """SD3's skip-layer guidance calls no skipped layer, and begins and ends within a run."""
        tiny = Tiny(backbones["sd3"])
        pipe = pipeline_of(tiny.transformer)
        elastic = elasticize(pipe, mixed_config())
        guidance = {"skip_guidance_layers": [1], "skip_layer_guidance_start": 0.1, "skip_layer_guidance_stop": 0.7}
        draw(pipe, **guidance)
        assert np.isnan(elastic.trace.array("keep", "skip_layers")).any()
        plan = elastic.freeze()
        assert plan.steps == STEPS
        draw(pipe, **guidance)

    def test_runs_of_different_lengths(self, routed_flux: TinyElastic) -> None:
        traces = []
        for steps in (2, 3):
            run(routed_flux.transformer, routed_flux.steps(1, steps))
            traces.append(routed_flux.elastic.trace)
        with pytest.raises(PlanError, match=r"got lengths \[2, 3\]"):
            routed_flux.elastic.freeze(traces)

    def test_of_nothing(self, tiny_flux: Tiny) -> None:
        with pytest.raises(PlanError, match=r"got lengths \[\]"):
            elasticize(tiny_flux.transformer).freeze()


def test_save_and_load(tmp_path: Path) -> None:
    plan = Plan([[True, False]], [[True, False]], [[0.5, 1.0]])
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    for name in ("keep", "reuse", "width"):
        assert np.array_equal(getattr(again, name), getattr(plan, name))
    (tmp_path / "plan.json").write_text("[]")
    with pytest.raises(PlanError, match="holds no plan"):
        Plan.load(tmp_path / "plan.json")


def test_releasing_gives_the_routers_back(routed_flux: TinyElastic) -> None:
    inputs = routed_flux.inputs(3)
    by_routers = output_of(routed_flux.transformer, inputs)
    routed_flux.elastic.force(Plan(np.ones((1, routed_flux.blocks))))
    forced = output_of(routed_flux.transformer, inputs)
    routed_flux.elastic.force(None)
    assert output_of(routed_flux.transformer, inputs).equal(by_routers)
    assert not forced.equal(by_routers)
