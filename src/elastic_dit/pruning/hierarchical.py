"""HierarchicalPrune (arXiv 2508.04663): what matters least is left out, and later blocks rather than early ones.

Its hierarchical position pruning removes each block alone, measures what quality is lost, and weighs that by the
block's place: early blocks lay out the image, later ones refine it. Here the loss is the error of the velocity, not of
HPSv2 on generated images. Not covered: parts of a block as units of their own, INT4, and its training, which freezes
early blocks and distils by sensitivity. Every pruned model of ours is trained by one recipe.
"""

import math
from collections.abc import Sequence

from elastic_dit.pruning.base import Pruning, Route, Subject, fit, prunings


def importance(losses: Sequence[float]) -> list[float]:
    """Of every block, from what is lost without it, (L,).

    The score of the paper is -|loss| exp((i - L) / L), the highest removed first. Taken literally, a weight that grows
    with depth makes later blocks harder to remove, against what it is meant for and what its authors removed (25 to 29
    and 31 to 35 of SD3.5 Large's 38). So the loss is divided by it: the last block's counts 1/e of the first's.
    """
    blocks = len(losses)
    return [abs(loss) / math.exp((index - blocks) / blocks) for index, loss in enumerate(losses)]


def _choose(subject: Subject, budget: float) -> Route:
    blocks = len(subject.costs)
    losses: list[float] = []
    for index in range(blocks):
        subject.progress("trying", index, blocks)
        losses.append(subject.error([float(other != index) for other in range(blocks)]))
    matters = importance(losses)
    return fit(sorted(range(blocks), key=lambda index: -matters[index]), subject.costs, budget)


prunings.add(
    "hierarchical",
    Pruning(
        name="hierarchical",
        about="Removes the blocks that alone are missed least, later ones rather than early ones.",
        source="HierarchicalPrune, arXiv 2508.04663; its choice of blocks, without its training",
        choose=_choose,
    ),
)
