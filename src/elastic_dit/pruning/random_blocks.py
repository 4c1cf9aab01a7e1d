"""The paper's non-adaptive ablation (Table 4): random blocks are removed and widths cut, before training."""

import torch

from elastic_dit.pruning.base import Pruning, Route, Subject, fit, prunings, share

WIDTH = 0.65
"""Of every MLP that stays; the mean width of the paper's Qwen-Image models."""


def _choose(subject: Subject, budget: float) -> Route:
    costs = subject.costs
    generator = torch.Generator().manual_seed(subject.seed)
    order: list[int] = torch.randperm(len(costs), generator=generator).tolist()
    # so little may be cut that all blocks at this width are not enough
    width = next(w for w in (WIDTH, 0.8, 1.0) if share([w] * len(costs), costs) >= budget)
    return fit(order, costs, budget, width)


prunings.add(
    "random",
    Pruning(
        name="random",
        about="Removes random blocks and cuts the MLPs of the others to 0.65.",
        source="Elastic Diffusion Transformer, arXiv 2602.13993, Table 4",
        choose=_choose,
    ),
)
