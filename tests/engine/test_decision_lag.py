"""Blocks that do what their routers read in the step before."""

from typing import Any

import pytest

from elastic_dit import ElasticConfig
from elastic_dit.backbones import backbones
from elastic_dit.core.ready_routers import ReadyRouters
from elastic_dit.engine import routers
from elastic_dit.errors import ConfigError
from reference import assert_each_alone
from tiny import Tiny, TinyElastic, mixed_config, output_of, run


def late(name: str = "flux", **changes: Any) -> TinyElastic:
    return TinyElastic(Tiny(backbones[name]), mixed_config(decision_lag=1, **changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flux", {}),
        ("flux", {"router_input": "joint"}),
        ("wan", {"decide_ahead": True}),
        ("qwen-image", {"router_input": "joint"}),
        ("wan", {}),
        ("sd3", {}),
    ],
)
def test_decisions_are_those_of_the_step_before(name: str, changes: dict[str, Any]) -> None:
    """Three samples together equal each alone by the equations, the first step decides for itself.

    The tokens are the step before's, the timestep is this one's, as far as it speaks without tokens.
    """
    tiny = late(name, **changes)
    elastic, steps = tiny.elastic, tiny.steps(3, 4)
    outputs, said = run(tiny.transformer, steps), elastic.trace.array("keep_prob")
    runs = [[tiny.row(inputs, row) for inputs in steps] for row in range(3)]
    assert_each_alone(elastic, tiny.dense, runs, outputs)
    elastic.decision_lag = 0
    elastic.reset()
    run(tiny.transformer, steps)
    now = elastic.trace.array("keep_prob")
    assert (now[0] == said[0]).all() and (now[1] != said[1]).any()


def test_later_steps_fetch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of the first step sends for its decision; later steps fetch all at once."""
    tiny, alone, together = late(), [], []
    on_its_way, say_all = routers.OnItsWay, ReadyRouters.say_all
    monkeypatch.setattr(routers, "OnItsWay", lambda said: alone.append(len(said)) or on_its_way(said))
    monkeypatch.setattr(
        ReadyRouters, "say_all", lambda self, pooled: together.append(len(pooled)) or say_all(self, pooled)
    )
    steps = tiny.steps(2, 3)
    output_of(tiny.transformer, steps[0])
    assert alone == [2] * tiny.blocks and together == []
    run(tiny.transformer, steps[1:])
    assert alone == [2] * tiny.blocks and together == [tiny.blocks] * 2


def test_branches_remember_apart() -> None:
    """A guidance branch does what it read itself, and a new run starts from nothing."""
    tiny = late()
    steps, others = tiny.steps(1, 3), tiny.steps(1, 3, seed=5)
    traces: dict[str, Any] = {}
    for name, inputs in (("a", steps), ("b", others)):
        run(tiny.transformer, inputs)
        traces[name] = tiny.elastic.trace.array("keep_prob")
    for pair in zip(steps, others, strict=True):
        for name, inputs in zip("ab", pair, strict=True):
            with tiny.transformer.cache_context(name):
                output_of(tiny.transformer, inputs)
    for name, alone in traces.items():
        assert (tiny.elastic.trace.array("keep_prob", name) == alone).all()


def test_a_budget_holds_at_once() -> None:
    """What was read is a step old; what it means under a budget is not."""
    tiny = late(budget_range=(0.2, 1.0), max_reuse=0)
    steps = tiny.steps(2, 3)
    p = {}
    for after in (1.0, 0.2):
        tiny.elastic.budget = 1.0
        output_of(tiny.transformer, steps[0])
        tiny.elastic.budget = after
        output_of(tiny.transformer, steps[1])
        p[after] = tiny.elastic.trace.array("keep_prob")[1]
        tiny.elastic.reset()
    assert (p[0.2] < p[1.0]).all()


def test_routers_of_the_timestep_read_nothing_that_could_be_late() -> None:
    with pytest.raises(ConfigError, match="decision_lag is about tokens"):
        ElasticConfig.of(decision_lag=1, router_input="timestep")
    with pytest.raises(ConfigError, match="decision_lag"):
        late().elastic.decision_lag = 2
