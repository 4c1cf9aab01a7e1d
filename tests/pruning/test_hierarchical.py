"""HierarchicalPrune removes what is missed least, late blocks rather than early ones."""

import math

import pytest
import torch

from elastic_dit.pruning import prunings
from elastic_dit.pruning.base import Subject
from elastic_dit.pruning.hierarchical import importance
from elastic_dit.pruning.prune import prune
from noisy import batches_of
from tiny import Tiny


def test_of_equal_losses_the_later_counts_less() -> None:
    matters = importance([2.0] * 6)
    assert matters == sorted(matters, reverse=True)
    assert matters[0] / matters[-1] == pytest.approx(math.exp(5 / 6))


def test_place_outweighs_a_small_loss_and_no_large_one() -> None:
    """Between the first and the last of ten blocks the weight changes by exp(0.9) = 2.46."""
    slightly, clearly = [1.0] * 9 + [2.4], [1.0] * 9 + [2.5]
    assert importance(slightly)[0] > importance(slightly)[-1]
    assert importance(clearly)[0] < importance(clearly)[-1]
    assert importance([-1.0, 1.0])[0] == importance([1.0, 1.0])[0]  # a gain is a change too


def test_a_block_that_does_nothing_goes_first(tiny_flux: Tiny) -> None:
    """An early one: what it does decides before where it is."""
    with torch.no_grad():
        for norm in (
            tiny_flux.transformer.transformer_blocks[0].norm1.linear,
            tiny_flux.transformer.transformer_blocks[0].norm1_context.linear,
        ):
            norm.weight.zero_()
            norm.bias.zero_()  # gates of 0: the block adds nothing
    elastic = prune(tiny_flux.transformer, batches_of(tiny_flux), prunings["hierarchical"], 0.68)
    route = elastic.config.route
    assert route is not None
    assert route[0] == 0
    assert all(route[1:])


def test_it_keeps_what_its_measurements_say(tiny_flux: Tiny) -> None:
    batches = batches_of(tiny_flux)
    elastic = prune(tiny_flux.transformer, batches, prunings["random"], 1.0)
    subject = Subject(elastic, batches)
    losses = [subject.error([float(other != index) for other in range(4)]) for index in range(4)]
    matters = importance(losses)
    route = prunings["hierarchical"].choose(subject, 0.3)
    kept = [index for index, width in enumerate(route) if width]
    assert 0 < len(kept) < 4
    assert min(matters[index] for index in kept) > max(matters[index] for index in range(4) if index not in kept)
