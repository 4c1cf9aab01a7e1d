"""In bfloat16 and under autocast the routers stay float32, and decide by the float32 formula."""

from collections.abc import Iterator

import pytest
import torch

from reference import OneSample, by_routers
from tiny import TinyElastic, in_dtype, output_of, to_dtype


@pytest.fixture
def half(routed: TinyElastic) -> Iterator[TinyElastic]:
    """The transformer, and the dense copy of it, in bfloat16."""
    with in_dtype(torch.bfloat16, routed.transformer, routed.dense):
        yield routed


def test_decisions_are_the_float32_formula_on_bfloat16_inputs(half: TinyElastic) -> None:
    inputs = to_dtype(half.inputs(1, seed=4), torch.bfloat16)
    elastic = half.elastic
    assert output_of(half.transformer, inputs).dtype == torch.bfloat16
    assert {parameter.dtype for parameter in elastic.stack.parameters()} == {torch.float32}
    seen: list[float] = []
    by_equations = by_routers(elastic.stack.state_dict(), half.backbone, elastic.config)
    alone = OneSample(half.dense, half.backbone, by_equations, elastic.config)
    expected = alone.run([inputs])[0]
    for (step, block), action in alone.actions.items():
        taken = elastic.trace[step, block, 0, 0]
        seen.append(taken.keep_prob)
        assert (action.what == "run") == taken.keep
        assert action.width == pytest.approx(taken.width)
    torch.testing.assert_close(output_of(half.transformer, inputs), expected, rtol=0.1, atol=0.1)
    # a bfloat16 probability has 8 bits: these have more
    assert any(p != float(torch.tensor(p).bfloat16()) for p in seen)


def test_autocast_does_not_reach_the_routers(routed_flux: TinyElastic) -> None:
    outputs: list[torch.dtype] = []
    handles = [
        router.register_forward_hook(lambda module, inputs, output: outputs.append(output.gate_logit.dtype))
        for router in routed_flux.elastic.routers
    ]
    routed_flux.elastic.train_mode()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routed_flux.transformer(**routed_flux.inputs(2), return_dict=False)[0].float().sum().backward()
    for handle in handles:
        handle.remove()
    assert outputs == [torch.float32] * routed_flux.blocks
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in routed_flux.elastic.stack.parameters())
