"""Batches that a tiny transformer is pruned by."""

import torch

from elastic_dit.training.flow import NoisyBatch
from tiny import Inputs, Tiny, output_of


def batches_of(tiny: Tiny, count: int = 2) -> list[tuple[Inputs, NoisyBatch]]:
    """Two samples each, with a random velocity to learn."""
    made = []
    for seed in range(count):
        inputs = tiny.inputs(2, seed)
        velocity = torch.randn_like(output_of(tiny.dense, inputs))
        made.append((inputs, NoisyBatch(inputs["hidden_states"], velocity, torch.full((2,), 0.5))))
    return made
