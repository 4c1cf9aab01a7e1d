"""FLOPs in the trace are those that torch counts around the real forward."""

import numpy as np
import pytest
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from elastic_dit import Plan, elasticize, restore
from elastic_dit.backbones import backbones
from tiny import Inputs, Tiny, TinyElastic, mixed_config, output_of


def counted(transformer: nn.Module, inputs: Inputs) -> int:
    """Attention counts as its two products under the math kernel, the only one the counter sees through."""
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        output_of(transformer, inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("batch", [1, 3])
def test_counted_equals_run(routed: TinyElastic, batch: int) -> None:
    elastic, shape = routed.elastic, (1, routed.blocks, batch)
    inputs = routed.inputs(batch, seed=batch)
    elastic.force(Plan(np.zeros(shape)))
    output_of(routed.transformer, inputs)  # measures the blocks, which would be counted too
    outside = counted(routed.transformer, inputs)
    assert elastic.trace.flops_spent == 0

    rng = np.random.default_rng(batch)
    keep, width = rng.random(shape) < 0.7, rng.choice([0.25, 0.5, 0.75, 1.0], shape)
    keep.flat[0] = True
    elastic.force(Plan(keep, width=width))
    assert counted(routed.transformer, inputs) - outside == pytest.approx(elastic.trace.flops_spent, rel=1e-9)

    elastic.force(Plan(np.ones(shape)))
    assert counted(routed.transformer, inputs) - outside == pytest.approx(elastic.trace.flops_dense, rel=1e-9)
    assert elastic.trace.flops_share == 1


def test_a_reused_residual_costs_nothing(routed: TinyElastic) -> None:
    elastic, ones = routed.elastic, np.ones((2, routed.blocks))
    elastic.force(Plan(ones, reuse=ones))
    for inputs in routed.steps(2, 2):
        output_of(routed.transformer, inputs)
    assert elastic.trace.array("flops")[0].all()
    assert not elastic.trace.array("flops")[1].any()
    assert elastic.trace.flops_share == pytest.approx(0.5)


@pytest.mark.parametrize("router_input", ["image", "joint", "timestep"])
def test_routers_count(router_input: str) -> None:
    tiny = Tiny(backbones["flux"])
    elastic = elasticize(tiny.transformer, mixed_config(router_input=router_input, max_reuse=0, tau=0.0))
    inputs = tiny.inputs(2)
    output_of(tiny.transformer, inputs)
    total = counted(tiny.transformer, inputs)
    spent = elastic.trace.flops_spent
    elastic.force(Plan(np.zeros((1, tiny.blocks))))
    outside = counted(tiny.transformer, inputs)
    trunk = 2 * 2 * elastic.stack.condition.trunk.weight.numel()  # shared by all routers; no block's trace has it
    assert total - outside == pytest.approx(spent + trunk, rel=1e-9)
    restore(tiny.transformer)


def test_the_text_length_counts(routed: TinyElastic) -> None:
    """A longer prompt costs more, also where text comes in by cross-attention only."""
    shape = (1, routed.blocks)
    inputs = routed.inputs(1)
    text = inputs["encoder_hidden_states"]
    longer = dict(inputs, encoder_hidden_states=text.repeat(1, 3, 1))
    if "encoder_hidden_states_mask" in inputs:
        longer["encoder_hidden_states_mask"] = inputs["encoder_hidden_states_mask"].repeat(1, 3)
    if "txt_ids" in inputs:
        longer["txt_ids"] = inputs["txt_ids"].repeat(3, 1)
    for given in (inputs, longer):
        routed.elastic.force(Plan(np.zeros(shape)))
        output_of(routed.transformer, given)
        outside = counted(routed.transformer, given)
        routed.elastic.force(Plan(np.ones(shape)))
        total = counted(routed.transformer, given)
        assert total - outside == pytest.approx(routed.elastic.trace.flops_spent, rel=1e-9)
