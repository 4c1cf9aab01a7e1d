"""Which forwards get how much of a budget, fitted to what every budget does to the velocity; nothing is trained.

Captions are denoised with the whole budget. On the way each step is taken again at every budget, and the squared change
of the guided velocity is the harm; both branches of a step have one budget. `core.allocation` predicts it by ridge
regression. N forwards (steps times captions), F features, G budgets.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elastic_dit.backbones import backbone_of
from elastic_dit.backbones.base import IMAGE
from elastic_dit.config import ElasticConfig
from elastic_dit.core.allocation import PRICES, Allocator, interpolate, summary
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import Progress
from elastic_dit.pruning.noise_levels import Denoising, Point
from elastic_dit.pruning.prices import price_of
from elastic_dit.verbs import reroute

READ = 2
"""The block whose input is read: the first two are always worth running."""
RIDGE = 30.0
"""Strength of the regression, on features of unit variance."""


class Allocation(NamedTuple):
    """A model whose forwards share its budget out, and how they do where it was fitted."""

    elastic: ElasticModel
    budget: float
    """Where its dial stands."""
    by_step: list[float]
    """Mean budget of each step."""
    apart: float
    """Standard deviation of the budgets of one step, mean over the steps."""
    explained: float
    """Share of the harm's variance within steps that the prediction explains, at the lowest budget, of captions that
    it was not fitted to."""


@torch.no_grad()
def with_allocation(
    elastic: ElasticModel, denoising: Denoising, progress: Progress = lambda label, done, total: None
) -> Allocation:
    """Let each forward have a budget of its own, so that their mean is the one that is asked for.

    Args:
        elastic: with routers for a range of budgets; its handle is not to be used any more.
        denoising: what it is meant for.
        progress: see `base.Progress`.

    Raises:
        ConfigError: the routers know one budget alone, or read tokens.
    """
    config = elastic.config
    if config.budget_range is None:
        raise ConfigError("the adapter knows one budget; expected routers for a range of them, to share one out")
    values = config.model_dump() | {"allocate_at": READ}
    state = elastic.stack.state_dict()
    allocated = reroute(elastic, ElasticConfig.of(**values))
    allocated.stack.load_state_dict(state, strict=False)  # all but the allocator's
    allocator = allocated.stack.allocator
    assert allocator is not None
    allocated.config.allocate_at = None  # until it is fitted, budgets are what they are said to be
    features, sigma, harm = measure(allocated, denoising, progress)
    fit(allocator, features, sigma, harm)
    allocated.config.allocate_at = READ
    allocated.budget = config.default_budget
    return _described(allocated, features, sigma, harm, captions=denoising.latent_shape[0])


def measure(elastic: ElasticModel, denoising: Denoising, progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, F), noise levels (N,), and the harm of each of the allocator's budgets (N, G)."""
    allocator = elastic.stack.allocator
    assert allocator is not None
    budgets = [float(budget) for budget in allocator.budgets]
    elastic.budget = budgets[-1]
    path: list[Point] = []
    denoising.run(lambda step: None, path)
    features: list[Tensor] = []
    sigmas: list[Tensor] = []
    harms: list[Tensor] = []
    for number, point in enumerate(path):
        progress("harm of each budget", number, len(path))
        elastic.budget = budgets[-1]
        with reading(elastic.transformer) as read:
            whole = _guided(elastic, denoising, point)
        features.append(read[0])
        sigmas.append(torch.full((len(point.x),), point.sigma, device=point.x.device))
        harm: list[Tensor] = []
        for budget in budgets:
            elastic.budget = budget
            harm.append((_guided(elastic, denoising, point) - whole).square().flatten(1).mean(dim=1))
        harms.append(torch.stack(harm, dim=-1))  # (B, G)
    return torch.cat(features), torch.cat(sigmas), torch.cat(harms)


def _described(elastic: ElasticModel, features: Tensor, sigma: Tensor, harm: Tensor, captions: int) -> Allocation:
    """How the budget that the dial stands at is shared out, and how well harm is predicted on the other half of it."""
    allocator, budget = elastic.stack.allocator, elastic.config.default_budget
    assert allocator is not None
    steps = len(harm) // captions
    places = torch.tensor([budget])
    price = interpolate(allocator.prices, allocator.place(places)).expand(len(harm))
    chosen = allocator.budgets[allocator.cheapest(allocator.design(features, sigma) @ allocator.weight, price)]
    by_step = chosen.view(steps, captions)
    half = torch.arange(len(harm)) % captions % 2 == 0
    trial = copy.deepcopy(allocator)
    fit(trial, features[half], sigma[half], harm[half])
    predicted = (trial.design(features[~half], sigma[~half]) @ trial.weight)[:, 0].view(steps, -1)
    found = (harm[~half][:, 0] / harm[half].mean()).view(steps, -1)
    left = ((found - predicted) - (found - predicted).mean(dim=1, keepdim=True)).square().sum()
    total = (found - found.mean(dim=1, keepdim=True)).square().sum()
    return Allocation(
        elastic,
        budget,
        by_step.mean(dim=1).tolist(),
        float(by_step.std(dim=1).mean()),
        float(1 - left / total),
    )


def fit(allocator: Allocator, features: Tensor, sigma: Tensor, harm: Tensor) -> None:
    """Fit the prediction, and find the price of each budget.

    Args:
        allocator: to be fitted, in place.
        features: (N, F).
        sigma: noise levels, (N,).
        harm: of each budget, (N, G).
    """
    allocator.center.copy_(features.mean(dim=0))
    allocator.scale.copy_(features.std(dim=0) + 1e-6)
    unit = harm.mean()  # so that prices and the ridge mean the same for every model
    design = allocator.design(features, sigma).double()
    gram = design.T @ design + RIDGE * torch.eye(design.shape[1], dtype=torch.float64, device=design.device)
    allocator.weight.copy_(torch.linalg.solve(gram, design.T @ (harm / unit).double()))
    predicted = (design @ allocator.weight.double()).float()
    low, high = float(allocator.budgets[0]), float(allocator.budgets[-1])
    for index, wanted in enumerate(torch.linspace(low, high, PRICES).tolist()):
        allocator.prices[index] = price_of(wanted, lambda price: _mean(allocator, predicted, price))


def _mean(allocator: Allocator, harm: Tensor, price: float) -> float:
    prices = torch.full((len(harm),), price, device=harm.device)
    return float(allocator.budgets[allocator.cheapest(harm, prices)].mean())


def _guided(elastic: ElasticModel, denoising: Denoising, point: Point) -> Tensor:
    """The velocity that a step takes, (B, T, C)."""
    elastic.reset()
    velocity = denoising.velocity(point.x, point.sigma, denoising.text)
    if denoising.empty is None:
        return velocity
    without = denoising.velocity(point.x, point.sigma, denoising.empty)
    return without + denoising.guidance * (velocity - without)


@contextmanager
def reading(transformer: Any) -> Iterator[list[Tensor]]:
    """What block `READ` is given in each forward, as features (B, F)."""
    read: list[Tensor] = []

    def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        read.append(summary(kwargs[IMAGE] if IMAGE in kwargs else args[0]))

    _, block = backbone_of(transformer).sites(transformer)[READ]
    handle = block.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield read
    finally:
        handle.remove()
