"""PPCL (arXiv 2511.16156): neighbouring blocks that a linear map could follow are merged into the first of them.

Linear probing: block i's change of the image tokens is fitted by least squares, T_i(x) - x ~ x W_i (its Eq. 1). From
block u on, the probes of u + 1, u + 2... stand for the blocks, and CKA tells how alike the tokens still are to those
that left u. Each further block costs some of that likeness: an interval goes on while it costs less than the block
before did, and ends where it costs more (Eq. 3-5).

In the paper one block, which starts as block u, is distilled to replace the whole interval; here block u stays and the
rest are left out, to be trained by the recipe of all pruned models. Not covered: its linear layers in place of text
streams and MLPs. Which intervals are merged first is ours: those that lose the least likeness for the FLOPs saved.

T tokens of all samples, D model width.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elastic_dit.backbones.base import IMAGE
from elastic_dit.core.cost import BlockCost
from elastic_dit.engine.site import Site
from elastic_dit.pruning.base import Pruning, Route, Subject, fit, prunings

RIDGE = 1e-6
"""Added to the diagonal of X^T X, as a share of its mean: tokens may span fewer than D directions."""


class Moments:
    """Sums over the tokens that enter and leave one block: all that probes and CKA need of them."""

    def __init__(self) -> None:
        self.count = 0
        self.entered, self.changed, self.left, self.sum_left = (torch.zeros(()) for _ in range(4))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Tokens before and after the block, each (..., D)."""
        x, y = (each.detach().flatten(0, -2).double() for each in (x, y))  # (T, D)
        self.count += len(x)
        self.entered = self.entered.to(x) + x.T @ x  # (D, D)
        self.changed = self.changed.to(x) + x.T @ (y - x)  # (D, D)
        self.left = self.left.to(x) + y.T @ y  # (D, D)
        self.sum_left = self.sum_left.to(x) + y.sum(dim=0)  # (D,)

    def probe(self) -> Tensor:
        """I + W (D, D), so that X (I + W) is nearest to what leaves the block: Eq. 1 solves Eq. 2 exactly."""
        size = len(self.entered)
        eye = torch.eye(size).to(self.entered)
        ridge = RIDGE * self.entered.diagonal().mean()
        return eye + torch.linalg.solve(self.entered + ridge * eye, self.changed)

    def covariance(self) -> Tensor:
        """Of the tokens that leave the block, times their number, (D, D)."""
        return self.left - torch.outer(self.sum_left, self.sum_left) / self.count


def mapped_cka(covariance: Tensor, mapping: Tensor) -> float:
    """Linear CKA (arXiv 1905.00414) of tokens X and X M, from the covariance of X and M, both (D, D)."""
    cross = covariance @ mapping
    norms = torch.linalg.matrix_norm(covariance) * torch.linalg.matrix_norm(mapping.T @ cross)
    return float(torch.linalg.matrix_norm(cross).square() / norms)


class Interval(NamedTuple):
    """Blocks that are merged into the first of them."""

    blocks: tuple[int, ...]
    """In running order; one alone has nobody to be merged with."""
    cka: float
    """Of what leaves the first block and what the probes of all others make of it."""

    def harm(self, costs: Sequence[BlockCost]) -> float:
        """Likeness lost for each of the FLOPs saved."""
        saved = sum(costs[index].dense for index in self.blocks[1:])
        return (1 - self.cka) / saved if saved else float("inf")


def end_of_interval(likeness: Sequence[float]) -> int:
    """How many of the blocks after u belong to its interval: Eq. 5, read so that two blocks may make one.

    The authors' own list for Qwen-Image has many of two.

    Args:
        likeness: CKA after the probes of 1, 2... blocks after u.
    """
    ckas = [1.0, *likeness]
    losses = [before - after for before, after in pairwise(ckas)]
    rises = (count for count in range(1, len(losses)) if losses[count] > losses[count - 1])
    return next(rises, len(losses))


def intervals(moments: Sequence[Moments], first: int) -> list[Interval]:
    """Where a list of equal blocks falls into intervals.

    Args:
        moments: of its blocks, in running order.
        first: index of the first of them.
    """
    probes = [each.probe() for each in moments]
    found: list[Interval] = []
    start = 0
    while start < len(moments):
        covariance, mapping = moments[start].covariance(), torch.eye(len(probes[start])).to(probes[start])
        likeness: list[float] = []
        for probe in probes[start + 1 :]:
            mapping = mapping @ probe
            likeness.append(mapped_cka(covariance, mapping))
        more = end_of_interval(likeness)
        blocks = tuple(range(first + start, first + start + more + 1))
        found.append(Interval(blocks, likeness[more - 1] if more else 1.0))
        start += more + 1
    return found


def keep_order(found: Sequence[Interval], costs: Sequence[BlockCost]) -> list[int]:
    """The blocks, those to keep first: those that stay for an interval, then those that are merged, least harm last.

    An interval that the budget does not need whole is merged from its start: block u into as many as it takes.
    """
    ranked = sorted(found, key=lambda interval: -interval.harm(costs))
    firsts = [interval.blocks[0] for interval in ranked]
    return firsts + [index for interval in ranked for index in reversed(interval.blocks[1:])]


def _choose(subject: Subject, budget: float) -> Route:
    sites = subject.elastic.sites
    moments = [Moments() for _ in sites]
    with _measured(sites, moments), torch.no_grad():
        for done, (inputs, _) in enumerate(subject.batches):
            subject.progress("probing", done, len(subject.batches))
            subject.elastic.reset()
            subject.elastic.transformer(**inputs, return_dict=False)
    found: list[Interval] = []
    for _, group in groupby(sites, key=lambda site: site.declared.path):
        indices = [site.index for site in group]
        found += intervals([moments[index] for index in indices], indices[0])
    return fit(keep_order(found, subject.costs), subject.costs, budget)


@contextmanager
def _measured(sites: Sequence[Site], moments: Sequence[Moments]) -> Iterator[None]:
    """While entered, what passes through the blocks is added up."""

    def measure(site: Site, sums: Moments) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            streams = output if isinstance(output, tuple) else (output,)
            sums.add(site.call(args, kwargs).image, streams[site.declared.returns.index(IMAGE)])

        return site.block.register_forward_hook(hook, with_kwargs=True)

    handles = [measure(site, sums) for site, sums in zip(sites, moments, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


prunings.add(
    "ppcl",
    Pruning(
        name="ppcl",
        about="Merges neighbouring blocks that a linear map could follow into the first of them.",
        source="PPCL, arXiv 2511.16156; its choice of blocks, without its distillation",
        choose=_choose,
    ),
)
