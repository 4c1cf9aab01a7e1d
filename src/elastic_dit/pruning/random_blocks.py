"""The paper's non-adaptive ablation (Table 4): random blocks are removed and widths cut, before training."""

import torch

from elastic_dit.pruning.base import Pruning, Route, Subject, fit, prunings

WIDTH = 0.65
"""Of every MLP that stays; the mean width of the paper's Qwen-Image models."""


def _choose(subject: Subject, budget: float) -> Route:
    blocks = len(subject.costs)
    order: list[int] = torch.randperm(blocks, generator=torch.Generator().manual_seed(subject.seed)).tolist()
    # so little may be cut that all blocks at this width are not enough
    width = max(WIDTH, next(w / 20 for w in range(1, 21) if _all_at(subject, w / 20) >= budget))
    return fit(order, subject.costs, budget, width)


def _all_at(subject: Subject, width: float) -> float:
    costs = subject.costs
    return sum(cost.at(width) for cost in costs) / sum(cost.dense for cost in costs)


prunings.add(
    "random",
    Pruning(
        name="random",
        about="Removes random blocks and cuts the MLPs of the others to 0.65.",
        source="Elastic Diffusion Transformer, arXiv 2602.13993, Table 4",
        choose=_choose,
    ),
)
