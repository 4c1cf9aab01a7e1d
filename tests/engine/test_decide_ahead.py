"""Routers that read the input of the block before theirs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from elastic_dit import ElasticConfig
from elastic_dit.backbones import backbones
from elastic_dit.core.router import RouterOutput
from elastic_dit.engine.routers import Routers
from elastic_dit.engine.site import Site
from elastic_dit.errors import ConfigError
from reference import assert_each_alone
from tiny import Tiny, TinyElastic, mixed_config, output_of, run


def ahead(name: str = "flux", **changes: Any) -> TinyElastic:
    return TinyElastic(Tiny(backbones[name]), mixed_config(decide_ahead=True, **changes))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("flux", {}),
        ("flux", {"router_input": "joint"}),
        ("qwen-image", {"router_input": "joint"}),
        ("wan", {"always_open": (1,)}),
        ("sd3", {}),
    ],
)
def test_decisions_are_those_on_the_block_before(name: str, changes: dict[str, Any]) -> None:
    """Three samples together equal each alone by the equations; on the block's own input routers say other things."""
    tiny = ahead(name, **changes)
    elastic, steps = tiny.elastic, tiny.steps(3, 3)
    outputs, said = run(tiny.transformer, steps), elastic.trace.array("keep_prob")
    runs = [[tiny.row(inputs, row) for inputs in steps] for row in range(3)]
    assert_each_alone(elastic, tiny.dense, runs, outputs)
    elastic.config.decide_ahead = False
    elastic.reset()
    run(tiny.transformer, steps)
    assert (elastic.trace.array("keep_prob")[0, 1:] != said[0, 1:]).any()


def test_in_training_they_read_the_same() -> None:
    tiny = ahead()
    asked: list[Tensor] = []
    seen: list[Tensor] = []
    handles = [
        router.register_forward_pre_hook(lambda _, args: asked.append(args[0].detach().clone()))
        for router in tiny.elastic.routers
    ]
    handles += [
        site.block.register_forward_pre_hook(
            lambda _, args, kwargs, site=site: seen.append(site.call(args, kwargs).image.detach().clone()),
            with_kwargs=True,
        )
        for site in tiny.elastic.sites
    ]
    tiny.elastic.train_mode()
    for _ in range(2):  # nothing is left of the forward before
        asked.clear()
        seen.clear()
        tiny.transformer(**tiny.inputs(2), return_dict=False)
        assert len(asked) == len(seen) == tiny.blocks
        assert all(torch.equal(*pair) for pair in zip(asked, [seen[0], *seen[:-1]], strict=True))
    for handle in handles:
        handle.remove()


def test_checkpointing_changes_no_gradient() -> None:
    tiny = ahead()

    def gradients(checkpointing: bool) -> list[Tensor]:
        tiny.elastic.train_mode(gradient_checkpointing=checkpointing)
        out = tiny.transformer(**tiny.inputs(6, seed=11), return_dict=False)[0]
        loss = out.square().mean() + tiny.elastic.losses().total
        return list(torch.autograd.grad(loss, list(tiny.elastic.stack.parameters()), materialize_grads=True))

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert one.any()
        torch.testing.assert_close(one, other)


def test_a_router_is_asked_before_the_block_before_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a device is done with it long before the host needs to know."""
    tiny = ahead(max_reuse=0, tau=0.0)
    events: list[tuple[str, int]] = []
    ask, run_block = Routers._ask, Site.run
    monkeypatch.setattr(
        Routers, "_ask", lambda self, site, call: events.append(("ask", site.index)) or ask(self, site, call)
    )
    monkeypatch.setattr(Site, "run", lambda self, *args: events.append(("run", self.index)) or run_block(self, *args))
    output_of(tiny.transformer, tiny.inputs(1))
    events.clear()  # the first forward also measured the blocks
    output_of(tiny.transformer, tiny.inputs(1, seed=1))
    last = tiny.blocks - 1
    expected = [("ask", 0)]
    for index in range(tiny.blocks):
        expected += [("ask", index + 1)] * (index < last) + [("run", index)]
    assert events == expected


def test_an_answer_for_a_block_that_is_skipped_is_no_other_blocks() -> None:
    """SD3's skip-layer guidance does not call it."""
    tiny = ahead("sd3")
    inputs = tiny.inputs(1) | {"skip_layers": [1]}
    output_of(tiny.transformer, inputs)
    said = tiny.elastic.trace.array("keep_prob", "skip_layers")[0, 2, 0]
    own: list[RouterOutput] = []
    tiny.elastic.routers[2].register_forward_hook(lambda _, __, output: own.append(output))
    tiny.elastic.train_mode()
    tiny.transformer(**inputs)
    assert said == pytest.approx(float(own[0].gate_logit.sigmoid()), abs=1e-5)


def test_routers_of_the_timestep_read_nothing_to_be_ahead_of() -> None:
    with pytest.raises(ConfigError, match="decide_ahead is about tokens"):
        ElasticConfig.of(decide_ahead=True, router_input="timestep")
