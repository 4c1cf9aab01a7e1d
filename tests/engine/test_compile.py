"""Compiled blocks: the same result, one graph per block class and width, none after warm-up."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from elastic_dit import Plan
from tiny import Tiny, TinyElastic, output_of

RATIOS = (0.5, 1.0)
STEPS = 3


class Counting:
    """A torch.compile backend that counts graphs and runs them eagerly."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


@pytest.fixture
def fresh(tiny: Tiny) -> TinyElastic:
    return TinyElastic(tiny)


@pytest.fixture
def fresh_flux(tiny_flux: Tiny) -> TinyElastic:
    return TinyElastic(tiny_flux)


def run(tiny: TinyElastic, plan: Plan | None, batch: int) -> list[Tensor]:
    tiny.elastic.force(plan)
    with torch.no_grad():
        return [output_of(tiny.transformer, inputs) for inputs in tiny.steps(batch, STEPS)]


def mixed_plan(blocks: int, batch: int, seed: int) -> Plan:
    random = np.random.default_rng(seed)
    shape = (STEPS, blocks, batch)
    return Plan(random.random(shape) < 0.8, random.random(shape) < 0.3, random.choice(RATIOS, size=shape))


ROUTER = 1
"""Graphs of the routers: they share one."""


def kinds_of_blocks(tiny: TinyElastic) -> int:
    """Blocks of one class may still differ in what they hold: SD3's last has no text MLP."""
    return len({(type(site.block), site.signature) for site in tiny.elastic.sites})


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 6])
def test_a_graph_per_block_class_and_width_and_none_after_warm_up(fresh: TinyElastic, batch: int) -> None:
    plans = [mixed_plan(fresh.blocks, batch, seed) for seed in range(3)]
    eager = [run(fresh, plan, batch) for plan in plans]
    backend = Counting()
    fresh.elastic.compile(backend=backend, fullgraph=True)
    for ratio in RATIOS:
        shape = (STEPS, fresh.blocks)
        run(fresh, Plan(np.ones(shape), width=np.full(shape, ratio)), batch)
    warm = backend.graphs
    assert 0 < warm <= kinds_of_blocks(fresh) * len(RATIOS)
    compiled = [run(fresh, plan, batch) for plan in plans]
    assert backend.graphs == warm
    for mine, theirs in zip(compiled, eager, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_lone_row_does_not_get_a_graph_of_its_own(fresh_flux: TinyElastic) -> None:
    """Also not where it comes first."""
    backend = Counting()
    fresh_flux.elastic.compile(backend=backend, fullgraph=True)
    for rows in (1, 4, 2, 3):
        keep = np.zeros((STEPS, fresh_flux.blocks, 4))
        keep[..., :rows] = 1
        run(fresh_flux, Plan(keep), 4)
    assert backend.graphs == kinds_of_blocks(fresh_flux)


def test_routers_decide_the_same_when_compiled(fresh_flux: TinyElastic) -> None:
    eager = run(fresh_flux, None, 4)
    decisions = fresh_flux.elastic.trace.array("keep")
    backend = Counting()
    fresh_flux.elastic.compile(backend=backend)
    for a, b in zip(run(fresh_flux, None, 4), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert np.array_equal(fresh_flux.elastic.trace.array("keep"), decisions)
    assert 0 < decisions.mean() < 1
    assert backend.graphs <= kinds_of_blocks(fresh_flux) * len(fresh_flux.elastic.config.width_ratios) + ROUTER


def test_the_users_own_compile_keeps_working(fresh_flux: TinyElastic) -> None:
    """Graphs break at the decisions; the result stays."""
    eager = run(fresh_flux, None, 4)
    fresh_flux.transformer.compile_repeated_blocks(backend="eager")
    for a, b in zip(run(fresh_flux, None, 4), eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_frozen_plan_runs_under_cuda_graphs(fresh_flux: TinyElastic) -> None:
    """Run after run: no stored residual is written over by the graphs of a later step."""
    fresh_flux.transformer.cuda()
    try:
        plan = mixed_plan(fresh_flux.blocks, 1, 0)
        steps = [{name: on_gpu(value) for name, value in inputs.items()} for inputs in fresh_flux.steps(1, STEPS)]

        def outputs() -> list[Tensor]:
            fresh_flux.elastic.force(plan)
            with torch.no_grad():
                return [output_of(fresh_flux.transformer, inputs).clone() for inputs in steps]

        eager = outputs()
        fresh_flux.elastic.compile(fullgraph=True, mode="reduce-overhead")
        for _ in range(4):  # warm up, record, replay
            for a, b in zip(outputs(), eager, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    finally:
        fresh_flux.transformer.cpu()


def on_gpu(value: Any) -> Any:
    return value.cuda() if isinstance(value, Tensor) else value


def test_flops_are_still_counted(fresh_flux: TinyElastic) -> None:
    fresh_flux.elastic.compile(backend="eager")
    run(fresh_flux, Plan(np.ones((STEPS, fresh_flux.blocks))), 2)
    assert fresh_flux.elastic.trace.flops_share == 1


def test_training_compiled_has_the_same_gradients(fresh_flux: TinyElastic) -> None:
    elastic = fresh_flux.elastic
    elastic.train_mode()

    def gradients() -> list[Tensor]:
        modules = (fresh_flux.transformer, elastic.stack)
        parameters = [parameter for module in modules for parameter in module.parameters()]
        out = fresh_flux.transformer(**fresh_flux.inputs(3), return_dict=False)[0]
        loss = out.square().mean() + elastic.losses().total
        return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))

    eager = gradients()
    backend = Counting()
    elastic.compile(backend=backend, fullgraph=True)
    for mine, theirs in zip(gradients(), eager, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert backend.graphs == kinds_of_blocks(fresh_flux) + ROUTER
