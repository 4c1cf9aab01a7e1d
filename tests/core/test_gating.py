"""Eq. 7, 8, 10."""

import torch

from elastic_dit.core.gating import gated_output, is_open, keep_probability, straight_through_gate


def test_the_threshold_itself_is_open() -> None:
    p = torch.tensor([0.4999999, 0.5, 0.5000001])
    assert is_open(p, 0.5).tolist() == [False, True, True]
    assert straight_through_gate(p, 0.5).tolist() == [0, 1, 1]


def test_gate_is_hard_with_the_gradient_of_p() -> None:
    logit = torch.tensor([-2.0, -0.1, 0.0, 0.3, 5.0], requires_grad=True)
    gate = straight_through_gate(keep_probability(logit), 0.5)
    assert gate.tolist() == [0, 0, 1, 1, 1]
    weight = torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0])
    (gate * weight).sum().backward()
    p = 1 / (1 + torch.exp(-logit.detach()))
    torch.testing.assert_close(logit.grad, weight * p * (1 - p))


def test_a_shut_gate_keeps_the_input_to_the_bit() -> None:
    x, out = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    gated = gated_output(x, out, torch.tensor([0.0, 1.0]))
    assert torch.equal(gated[0], x[0])
    torch.testing.assert_close(gated[1], out[1])


def test_output_keeps_the_backbones_dtype() -> None:
    x = torch.randn(1, 2, 4).bfloat16()
    assert gated_output(x, 2 * x, torch.ones(1)).dtype == torch.bfloat16
