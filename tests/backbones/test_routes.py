"""A batch in which every sample goes its own way equals each sample alone, block by block, by hand."""

from typing import Any

import numpy as np
import pytest
import torch

from elastic_dit import ElasticModel, Plan, elasticize
from elastic_dit.backbones import backbones
from reference import Action, Call, Choose, OneSample, Wish, by_routers
from tiny import Inputs, Tiny, TinyElastic, mixed_config, run, scatter_routers

BATCH = 6
WISHES = [
    *(Wish(True, False, width) for width in (0.25, 0.5, 0.75, 1.0)),
    Wish(False, False, 1.0),
    Wish(True, True, 0.5),
]
"""One a sample, so that every batch holds all four widths, a skip and a reuse."""


def wish_of(step: int, block: int, row: int) -> Wish:
    # by twos: what reuses or skips now has run before, and has not just skipped
    return WISHES[(row + 2 * step + block) % len(WISHES)]


def mixed_plan(steps: int, blocks: int) -> Plan:
    wishes = [[[wish_of(s, b, row) for row in range(BATCH)] for b in range(blocks)] for s in range(steps)]
    return Plan(*(np.array([[[w[i] for w in rows] for rows in step] for step in wishes]) for i in range(3)))


def compare(tiny: Tiny, elastic: ElasticModel, steps: list[Inputs], choices: list[Choose]) -> list[Action]:
    """Check outputs and decisions of a run against every sample alone; returns all actions."""
    outputs = run(tiny.transformer, steps)
    seen: list[Action] = []
    for row, choose in enumerate(choices):
        alone = OneSample(tiny.dense, tiny.backbone, choose, elastic.config)
        expected = alone.run([tiny.row(inputs, row) for inputs in steps])
        for (step, block), action in alone.actions.items():
            taken = elastic.trace[step, block, elastic.trace.branches[0], row]
            what = "skip" if not taken.keep else "reuse" if taken.reuse else "run"
            assert Action(what, pytest.approx(taken.width)) == action, (step, block, row)
            seen.append(action)
        for step, output in enumerate(outputs):
            torch.testing.assert_close(output[row : row + 1], expected[step], rtol=1e-3, atol=1e-4)
    return seen


def test_a_plan_of_mixed_routes(routed: TinyElastic) -> None:
    steps, elastic = routed.steps(BATCH, 4), routed.elastic
    elastic.force(mixed_plan(4, routed.blocks))

    def planned(row: int) -> Choose:
        return lambda call: wish_of(call.step, call.index, row)

    actions = compare(routed, elastic, steps, [planned(row) for row in range(BATCH)])
    assert {action.what for action in actions} == {"skip", "reuse", "run"}
    assert {action.width for action in actions if action.what == "run"} == {0.25, 0.5, 0.75, 1.0}


def test_routers_decide_as_the_equations_say(routed: TinyElastic) -> None:
    """Eq. 4-6, 10-12 and Algorithm 1, with reuse from the third step on."""
    elastic = routed.elastic
    elastic.config.reuse_from_step = 2
    choose = by_routers(elastic.stack.state_dict(), routed.backbone, elastic.config)
    actions = compare(routed, elastic, routed.steps(3, 4, seed=5), [choose] * 3)
    reuse = elastic.trace.array("reuse")
    assert not reuse[:2].any()
    assert reuse[2:].any()
    assert {action.what for action in actions} == {"skip", "reuse", "run"}
    assert len({action.width for action in actions if action.what == "run"}) > 1


def test_an_old_residual_is_not_reused(routed_flux: TinyElastic) -> None:
    elastic = routed_flux.elastic
    elastic.config.max_age, elastic.config.max_reuse = 2, 10
    keep = np.ones((5, routed_flux.blocks))
    elastic.force(Plan(keep, reuse=keep))
    actions = compare(routed_flux, elastic, routed_flux.steps(2, 5), [lambda call: Wish(True, True, 1.0)] * 2)
    assert {action.what for action in actions} == {"run", "reuse"}
    assert elastic.trace.array("reuse")[:, 0, 0].tolist() == [0, 1, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flux", {"modulation": "full", "router_activation": "gelu"}),
        ("flux", {"router_input": "joint", "width_ratios": (0.3, 1.0)}),
        ("qwen-image", {"router_input": "joint", "router_activation": "silu"}),
        ("flux", {"router_input": "timestep"}),
        ("flux", {"always_open": (0, -1), "tau": 0.6, "width_streams": ("image", "text")}),
        ("sd3", {"delta": 0.0, "width_streams": ("text",)}),
    ],
)
def test_each_setting_decides_as_the_equations_say(name: str, changes: dict[str, Any]) -> None:
    tiny = Tiny(backbones[name])
    config = mixed_config(**changes)
    elastic = elasticize(tiny.transformer, config)
    scatter_routers(elastic, tiny.inputs(6, seed=11))
    by_equations = by_routers(elastic.stack.state_dict(), tiny.backbone, config)
    opened = {index % tiny.blocks for index in config.always_open}

    def choose(call: Call) -> Wish:
        wish = by_equations(call)
        return Wish(True, False, wish.width) if call.index in opened else wish

    compare(tiny, elastic, tiny.steps(3, 3, seed=5), [choose] * 3)
    keep = elastic.trace.array("keep")
    assert keep[:, sorted(opened)].all()
    assert 0 < keep.mean() < 1


def test_a_sample_does_not_depend_on_the_batch(routed: TinyElastic) -> None:
    steps = routed.steps(4, 3, seed=2)
    together = run(routed.transformer, steps)
    alone = run(routed.transformer, [routed.row(inputs, 2) for inputs in steps])
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[2:3], one, rtol=1e-3, atol=1e-4)


def test_an_open_plan_is_dense_to_the_bit(routed_flux: TinyElastic) -> None:
    routed_flux.elastic.force(Plan(np.ones((3, routed_flux.blocks))))
    steps = routed_flux.steps(2, 3)
    for mine, dense in zip(run(routed_flux.transformer, steps), run(routed_flux.dense, steps), strict=True):
        assert torch.equal(mine, dense)
