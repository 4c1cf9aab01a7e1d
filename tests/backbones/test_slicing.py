"""Eq. 13 and 16: a narrower MLP is the MLP without the channels beyond the first ones."""

import numpy as np
import pytest
import torch

from elastic_dit import Plan
from elastic_dit.config import ElasticConfig
from reference import Call, OneSample, Wish
from tiny import TinyElastic, in_dtype, output_of, to_dtype


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75, 1.0])
def test_a_slice_equals_zeroed_channels(routed: TinyElastic, ratio: float) -> None:
    shape = (1, routed.blocks)
    routed.elastic.force(Plan(np.ones(shape), width=np.full(shape, ratio)))
    inputs = routed.inputs(1)
    by_hand = OneSample(routed.dense, routed.backbone, lambda call: Wish(True, False, ratio), ElasticConfig())
    expected = by_hand.run([inputs])[0]
    torch.testing.assert_close(output_of(routed.transformer, inputs), expected, rtol=1e-4, atol=1e-5)
    dense = output_of(routed.dense, inputs)
    assert torch.allclose(expected, dense, rtol=1e-4, atol=1e-5) == (ratio == 1)


def test_each_block_shrinks_on_its_own(routed: TinyElastic) -> None:
    """A quarter of the width in one block alone changes the output, as zeroing its channels does."""
    inputs = routed.inputs(1)
    dense = output_of(routed.dense, inputs)
    for block in range(routed.blocks):
        widths = np.ones((1, routed.blocks))
        widths[0, block] = 0.25
        routed.elastic.force(Plan(np.ones_like(widths), width=widths))

        def choose(call: Call, narrow: int = block) -> Wish:
            return Wish(True, False, 0.25 if call.index == narrow else 1.0)

        expected = OneSample(routed.dense, routed.backbone, choose, ElasticConfig()).run([inputs])[0]
        torch.testing.assert_close(output_of(routed.transformer, inputs), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(expected, dense, rtol=1e-4, atol=1e-5), f"block {block} does not shrink"


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_masks_in_training_equal_slices_in_inference(routed: TinyElastic, dtype: torch.dtype, tolerance: float) -> None:
    elastic, inputs = routed.elastic, to_dtype(routed.inputs(6, seed=3), dtype)
    with in_dtype(dtype, routed.transformer):
        elastic.train_mode()
        masked = output_of(routed.transformer, inputs)
        elastic.eval_mode()
        sliced = output_of(routed.transformer, inputs)
    keep, width = elastic.trace.array("keep"), elastic.trace.array("width")
    assert 0 < keep.mean() < 1
    assert len(set(width[width > 0])) > 1
    torch.testing.assert_close(masked, sliced, rtol=tolerance, atol=tolerance)
