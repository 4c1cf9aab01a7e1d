"""One route for every sample and step, without routers: in inference, in training, in an adapter folder."""

import copy
from itertools import cycle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elastic_dit import ElasticConfig, Plan, elasticize, load, restore
from elastic_dit.errors import ConfigError
from tiny import Tiny, TinyElastic, output_of, run


def route_of(tiny: Tiny) -> tuple[float, ...]:
    """Every second block is left out; the others have different widths."""
    return tuple(width for width, _ in zip(cycle((0.5, 0.0, 1.0, 0.0)), range(tiny.blocks), strict=False))


def fixed(tiny: Tiny) -> ElasticConfig:
    return ElasticConfig.of(route=route_of(tiny))


def test_it_is_the_plan_of_the_same_decisions(routed: TinyElastic) -> None:
    routed.elastic.force(Plan.static(route_of(routed)))
    steps = routed.steps(2, 3)
    expected = run(routed.transformer, steps)
    transformer = copy.deepcopy(routed.dense)
    elastic = elasticize(transformer, fixed(routed))
    for a, b in zip(run(transformer, steps), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len(elastic.routers) == 0
    assert {taken.width for (_, block, _, _), taken in elastic.trace.items() if block % 2} == {0.0}


def test_training_computes_what_inference_does(tiny: Tiny) -> None:
    elastic = elasticize(tiny.transformer, fixed(tiny))
    inputs = tiny.inputs()
    expected = output_of(tiny.transformer, inputs)
    elastic.train_mode()
    out = tiny.transformer(**inputs, return_dict=False)[0]
    torch.testing.assert_close(out, expected)
    out.square().mean().backward()
    for site, width in zip(elastic.sites, elastic.config.route or (), strict=True):
        has_gradient = any(p.grad is not None and bool(p.grad.any()) for p in site.block.parameters())
        assert has_gradient == bool(width)
    with pytest.raises(ConfigError, match="a fixed route has none"):
        elastic.losses()


def test_checkpointing_changes_no_gradient(tiny_flux: Tiny) -> None:
    elastic = elasticize(tiny_flux.transformer, fixed(tiny_flux))
    gradients = []
    for checkpointing in (False, True):
        elastic.train_mode(gradient_checkpointing=checkpointing)
        tiny_flux.transformer.zero_grad()
        tiny_flux.transformer(**tiny_flux.inputs(), return_dict=False)[0].square().mean().backward()
        gradients.append([p.grad for p in tiny_flux.transformer.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_released_plans_give_way_to_the_route(tiny_flux: Tiny) -> None:
    elastic = elasticize(tiny_flux.transformer, fixed(tiny_flux))
    inputs = tiny_flux.inputs()
    expected = output_of(tiny_flux.transformer, inputs)
    elastic.force(Plan.static([1.0] * tiny_flux.blocks))
    torch.testing.assert_close(output_of(tiny_flux.transformer, inputs), output_of(tiny_flux.dense, inputs))
    elastic.force(None)
    torch.testing.assert_close(output_of(tiny_flux.transformer, inputs), expected)


def test_the_adapter_has_the_route_and_no_router(tiny: Tiny, tmp_path: Path) -> None:
    elastic = elasticize(tiny.transformer, fixed(tiny))
    elastic.train_mode()
    with torch.no_grad():
        next(iter(elastic.sites[0].block.parameters())).add_(0.1)
    elastic.eval_mode()
    inputs = tiny.inputs()
    expected = output_of(tiny.transformer, inputs)
    folder = elastic.save(tmp_path / "adapter")
    assert not any(name.startswith("routers.") for name in load_file(folder / "elastic_model.safetensors"))
    other = Tiny(tiny.backbone)
    loaded = load(other.transformer, folder)
    assert loaded.config.route == route_of(tiny)
    torch.testing.assert_close(output_of(other.transformer, inputs), expected)
    restore(other.transformer)
    torch.testing.assert_close(output_of(other.transformer, inputs), output_of(other.dense, inputs))


def test_costs_are_known_after_a_forward(tiny_flux: Tiny) -> None:
    elastic = elasticize(tiny_flux.transformer, fixed(tiny_flux))
    with pytest.raises(ConfigError, match="after a first forward"):
        _ = elastic.costs
    output_of(tiny_flux.transformer, tiny_flux.inputs(batch=1))
    spent = [cost.at(w) if w else 0 for cost, w in zip(elastic.costs, route_of(tiny_flux), strict=True)]
    assert sum(spent) == pytest.approx(elastic.trace.flops_spent)


def test_bad_routes(tiny_flux: Tiny) -> None:
    with pytest.raises(ConfigError, match=f"2 blocks; the transformer has {tiny_flux.blocks}"):
        elasticize(tiny_flux.transformer, ElasticConfig.of(route=(1.0, 0.5)))
    for route in ((1.0, 1.5), (-0.5, 1.0), (0.0, 0.0)):
        with pytest.raises(ConfigError, match=r"widths in 0\.\.1"):
            ElasticConfig.of(route=route)
    with pytest.raises(ConfigError, match="no budget_range"):
        ElasticConfig.of(route=(1.0,), budget_range=(0.3, 1.0))
