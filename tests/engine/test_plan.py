"""Plans: what they accept and what they refuse."""

import numpy as np
import pytest

from elastic_dit import Plan
from elastic_dit.errors import PlanError
from tiny import TinyElastic, output_of, run


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
    routed_flux.elastic.force(Plan(np.ones((1, blocks))))
    with pytest.raises(PlanError, match="has 1 steps, but the run asks for step 2"):
        run(routed_flux.transformer, routed_flux.steps(1, 2))


def test_releasing_gives_the_routers_back(routed_flux: TinyElastic) -> None:
    inputs = routed_flux.inputs(3)
    by_routers = output_of(routed_flux.transformer, inputs)
    routed_flux.elastic.force(Plan(np.ones((1, routed_flux.blocks))))
    forced = output_of(routed_flux.transformer, inputs)
    routed_flux.elastic.force(None)
    assert output_of(routed_flux.transformer, inputs).equal(by_routers)
    assert not forced.equal(by_routers)
