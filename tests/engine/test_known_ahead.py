"""Forwards whose decisions are known before their first block runs: quicker, and otherwise as any."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from elastic_dit import ElasticConfig, ElasticModel, Plan, elasticize
from elastic_dit.engine.engine import Engine
from elastic_dit.engine.site import Site
from tiny import Tiny, TinyElastic, mixed_config, output_of, run

Prepare = Callable[[Tiny], ElasticModel]


def by_route(tiny: Tiny) -> ElasticModel:
    widths = [0.5, 0.0, 1.0, 0.25] * tiny.blocks
    return elasticize(tiny.transformer, ElasticConfig.of(route=tuple(widths[: tiny.blocks])))


def by_timestep(tiny: Tiny) -> ElasticModel:
    elastic = TinyElastic(tiny, mixed_config(router_input="timestep", budget_range=(0.2, 1.0), max_reuse=0)).elastic
    elastic.budget = 0.5
    return elastic


def by_plan(tiny: Tiny) -> ElasticModel:
    """Reuse in the third of five steps, which therefore is not quick, nor is the second, which stores for it."""
    elastic = elasticize(tiny.transformer)
    keep, reuse = np.ones((5, tiny.blocks)), np.zeros((5, tiny.blocks))
    reuse[2, 1] = 1
    elastic.force(Plan(keep, reuse, np.full((5, tiny.blocks), 0.5)))
    return elastic


@pytest.mark.parametrize("prepare", [by_route, by_timestep, by_plan])
def test_they_do_what_block_by_block_does(tiny: Tiny, prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    elastic = prepare(tiny)
    steps = tiny.steps(1 if prepare is by_timestep else 2, 5)  # some timestep embeddings know the text

    def outcome() -> tuple[list[Tensor], dict[object, object], int]:
        quick: list[int] = []
        original = Site.run_uniform
        with monkeypatch.context() as patch:
            patch.setattr(Site, "run_uniform", lambda site, *rest: quick.append(site.index) or original(site, *rest))
            return run(tiny.transformer, steps), dict(elastic.trace), len(quick)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "_ahead", lambda engine: None)
        slow, slow_trace, none = outcome()
    first, first_trace, _ = outcome()  # as many as cost nothing to know
    again, again_trace, quick = outcome()
    assert none == 0 and quick == tiny.blocks * (3 if prepare is by_plan else 5)
    assert slow_trace == first_trace == again_trace
    for a, b, c in zip(slow, first, again, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_samples_that_differ_are_asked_about_block_by_block(tiny_flux: Tiny) -> None:
    elastic = by_timestep(tiny_flux)
    wanted = [1.0, 0.2]
    elastic.budget = wanted
    steps = tiny_flux.steps(2, 3)
    both = [run(tiny_flux.transformer, steps)[-1] for _ in range(2)][-1]
    for row, budget in enumerate(wanted):
        elastic.budget = budget
        alone = run(tiny_flux.transformer, [tiny_flux.row(inputs, row) for inputs in steps])[-1]
        torch.testing.assert_close(both[row], alone[0])


def test_afterwards_the_blocks_are_dense(tiny_flux: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a forward fails half-way."""
    by_route(tiny_flux)
    inputs = tiny_flux.inputs()
    block, dense = tiny_flux.transformer.transformer_blocks[0], tiny_flux.dense.transformer_blocks[0]
    x = inputs["hidden_states"].new_ones(1, 3, block.norm1.norm.normalized_shape[0])
    expected = dense.ff(x)
    for _ in range(2):
        output_of(tiny_flux.transformer, inputs)
        torch.testing.assert_close(block.ff(x), expected)
    with monkeypatch.context() as patch:
        patch.setattr(tiny_flux.transformer.norm_out, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            output_of(tiny_flux.transformer, inputs)
    torch.testing.assert_close(block.ff(x), expected)
