"""Fits how many steps a prompt needs to how good such images are with more and with fewer; nothing is trained.

The same prompts are drawn at each interval between the steps that run, and each image is scored. `core.step_selection`
predicts the scores from the text by logistic regression. N prompts, F features, S intervals.
"""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elastic_dit.config import ElasticConfig
from elastic_dit.core.allocation import hats, summary
from elastic_dit.core.step_selection import PRICES, StepSelector
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.prices import price_of
from elastic_dit.verbs import reroute

DECAY = 1e-3
"""Of the squared weights, on features of unit variance, beside the mean cross-entropy."""
ROUNDS = 300
"""Of L-BFGS, at most: the fit is convex."""
FOLDS = 4
"""Parts of the prompts, each scored by what was fitted to the others."""


class Selection(NamedTuple):
    """A model that takes as many steps as a prompt needs, and how it does where it was fitted."""

    elastic: ElasticModel
    scores: Tensor
    """Of each prompt's image at each interval, (N, S)."""
    taken: list[float]
    """Share of the prompts at each interval."""
    chosen: float
    """Mean score, of prompts that it was not fitted to."""
    alike: float
    """Mean score with as many steps for every prompt, between the two nearest intervals."""
    shares: Tensor
    """Of the steps, that each prompt gets by what was fitted to others, (N,)."""


@torch.no_grad()
def with_step_selection(
    elastic: ElasticModel,
    intervals: Sequence[int],
    share: float,
    read: Callable[[], object],
    score: Callable[[int], Tensor],
) -> Selection:
    """Let a model take as many steps as a prompt is predicted to need.

    Args:
        elastic: whatever it decides block by block, it does in the steps that run; its handle is not to be used any
            more.
        intervals: between the steps that run, rising; two or more.
        share: of the steps that run, on average over the prompts.
        read: runs the pipeline once with each of the N prompts, in their order; one step will do.
        score: what images of them are worth at this interval, 0..1, drawn with the pipeline as it stands, (N,).

    Raises:
        ConfigError: one interval leaves no choice, the share lies beyond them, or a score beyond 0..1.
    """
    if len(intervals) < 2:
        raise ConfigError(f"intervals = {tuple(intervals)} leave no choice; expected two or more, as 2, 3, 4")
    values = elastic.config.model_dump() | {"step_intervals": tuple(intervals), "step_share": share}
    config = ElasticConfig.of(**values)
    state = elastic.stack.state_dict()
    selecting = reroute(elastic, config)
    selecting.stack.load_state_dict(state, strict=False)  # all but the selector's
    selector = selecting.stack.selector
    assert selector is not None
    with forced(selector, intervals[-1]) as seen:
        read()
    features = torch.cat(seen).float().cpu()
    columns: list[Tensor] = []
    for interval in intervals:
        with forced(selector, interval):
            columns.append(score(interval).float().cpu())
    scores = torch.stack(columns, dim=-1)
    if not ((scores >= 0) & (scores <= 1)).all():
        raise ConfigError(f"scores of {scores.min():g} to {scores.max():g} came; expected 0 to 1")
    selector.to("cpu")
    fit(selector, features, scores)
    return _described(selecting, selector, features, scores, share)


def fit(selector: StepSelector, features: Tensor, scores: Tensor) -> None:
    """Fit the prediction, and find the price of each share of steps.

    Args:
        selector: to be fitted, in place.
        features: of the prompts, (N, F).
        scores: of their images at each interval, 0..1, the higher the better, (N, S).
    """
    selector.center.copy_(features.mean(dim=0))
    selector.scale.copy_(features.std(dim=0) + 1e-6)
    x = nn.functional.pad((features - selector.center) / selector.scale, (0, 1), value=1.0).double()
    selector.weight.copy_(_regression(x, scores.double()))
    predicted = selector.quality(features)
    for index, wanted in enumerate(torch.linspace(*selector.span, PRICES).tolist()):
        selector.prices[index] = price_of(wanted, lambda price: _mean(selector, predicted, price))


def _mean(selector: StepSelector, quality: Tensor, price: float) -> float:
    return float((1 / selector.intervals[selector.best(quality, price)]).mean())


@torch.enable_grad()
def _regression(x: Tensor, scores: Tensor) -> Tensor:
    """The weights (F + 1, S) of logistic regression; the last, of the constant, does not decay."""
    weight = torch.zeros(x.shape[1], scores.shape[1], dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = nn.functional.binary_cross_entropy_with_logits(x @ weight, scores) + DECAY * weight[:-1].square().sum()
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]  a tensor is a float to it
    return weight.detach()


@contextmanager
def forced(selector: StepSelector, interval: int) -> Iterator[list[Tensor]]:
    """Every sample at one interval; the features (B, F) of each run's prompts."""
    read: list[Tensor] = []

    def override(module: nn.Module, inputs: tuple[Any, ...], chosen: Tensor) -> Tensor:
        read.append(summary(inputs[0]))
        return torch.full_like(chosen, interval)

    handle = selector.register_forward_hook(override)
    try:
        yield read
    finally:
        handle.remove()


def _described(
    elastic: ElasticModel, selector: StepSelector, features: Tensor, scores: Tensor, share: float
) -> Selection:
    """Who gets which interval, and the scores that come of it by what was fitted to other prompts."""
    fold = _texts(features) % FOLDS  # a text that comes again is in one part alone
    found = torch.empty(len(scores))
    shares = torch.empty(len(scores))
    for part in range(FOLDS):
        trial, own = copy.deepcopy(selector), fold == part
        fit(trial, features[~own], scores[~own])
        best = _chosen(trial, trial.quality(features[own]), share)
        found[own] = scores[own].gather(1, best[:, None])[:, 0]
        shares[own] = 1 / trial.intervals[best]
    best = _chosen(selector, selector.quality(features), share)
    taken = torch.bincount(best, minlength=scores.shape[1]) / len(scores)
    alike = _between(selector, scores, float(shares.mean()))
    return Selection(elastic, scores, taken.tolist(), float(found.mean()), alike, shares)


def _texts(features: Tensor) -> Tensor:
    """The number of each prompt's text, in the order in which texts first come, (N,)."""
    unique, text = features.round(decimals=3).unique(dim=0, return_inverse=True)
    first = torch.full((len(unique),), len(text)).scatter_reduce(0, text, torch.arange(len(text)), "amin")
    return first.argsort().argsort()[text]


def _between(selector: StepSelector, scores: Tensor, share: float) -> float:
    """The mean score at equal shares: linear between those of the two intervals around it."""
    shares, means = (1 / selector.intervals).flip(0).tolist(), scores.mean(dim=0).flip(0).tolist()
    above = next(index for index in range(1, len(shares)) if share <= shares[index] + 1e-6)
    part = (share - shares[above - 1]) / (shares[above] - shares[above - 1])
    return means[above - 1] + part * (means[above] - means[above - 1])


def _chosen(selector: StepSelector, quality: Tensor, share: float) -> Tensor:
    price = hats(selector.place(share), PRICES) @ selector.prices
    return selector.best(quality, float(price))
