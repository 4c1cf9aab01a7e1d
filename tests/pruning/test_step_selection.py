"""Steps by prompt on the small model with random weights: the fit, what follows, and what a sampler makes of it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from elastic_dit.config import ElasticConfig
from elastic_dit.core.step_selection import StepSelector
from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.pruning.base import unpruned
from elastic_dit.pruning.step_selection import fit, with_step_selection
from elastic_dit.training.families.base import Family
from elastic_dit.verbs import elasticize, load, restore

CAPTIONS = [f"{kind} {number}" for number in range(8) for kind in ("a red apple", "two stars left of a house")]
HARD = torch.arange(len(CAPTIONS)) % 2 == 1


def settings(steps: int) -> SampleSettings:
    return SampleSettings(steps=steps, guidance=3.0, height=16, width=16, shift=1.5)


def test_every_second_step_is_half_as_many_steps(family: Family) -> None:
    """Of Euler's: a velocity that is kept through two steps is one step twice as long."""
    pipe = family.pipeline
    elasticize(pipe, ElasticConfig.of(route=(1.0,) * len(unpruned(pipe).sites), step_intervals=(2,)))
    kept = sample_images(pipe, CAPTIONS[:2], [0, 1], settings(8))
    restore(pipe)
    few = sample_images(pipe, CAPTIONS[:2], [0, 1], settings(4))
    for one, other in zip(kept, few, strict=True):
        assert np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max() <= 1


def test_prompts_that_need_steps_get_them(family: Family, tmp_path: Path) -> None:
    pipe = family.pipeline
    drawn: list[int] = []

    def read() -> None:
        sample_images(pipe, CAPTIONS, range(len(CAPTIONS)), settings(1))

    def score(interval: int) -> torch.Tensor:
        drawn.append(interval)
        return torch.where(HARD, 1.0 if interval == 1 else 0.0, 1.0)

    selection = with_step_selection(unpruned(pipe), (1, 2, 4), 0.625, read, score)
    assert drawn == [1, 2, 4]
    assert selection.taken == [0.5, 0, 0.5]
    assert selection.chosen == 1 and selection.alike == pytest.approx(0.5 + 0.5 * 0.25)
    selection.elastic.save(tmp_path / "adapter")

    elastic = load(pipe, tmp_path / "adapter")
    for share, by_kind in ((0.625, (1, 4)), (1.0, (4, 4)), (0.25, (1, 1))):
        elastic.step_share = share
        sample_images(pipe, CAPTIONS[:2], [0, 1], settings(4))
        ran = elastic.trace.array("flops")[:, 0] > 0
        assert tuple(ran.sum(axis=0)) == by_kind, share
    with pytest.raises(ConfigError, match=r"step_share = 0.2; .* 0.25 to 1.00"):
        elastic.step_share = 0.2


def test_the_mean_share_is_the_one_that_is_asked_for() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 8, generator=generator)
    need = features @ torch.randn(8, generator=generator)
    scores = torch.stack([1 - need.sigmoid() * lost for lost in (0.0, 0.5, 1.0)], dim=-1)
    selector = StepSelector(4, (2, 3, 4))
    fit(selector, features, scores)
    for share in (0.3, 0.35, 0.4, 0.45):
        price = float(np.interp(share, np.linspace(0.25, 0.5, len(selector.prices)), selector.prices.numpy()))
        best = selector.best(selector.quality(features), price)
        assert float((1 / selector.intervals[best]).mean()) == pytest.approx(share, abs=0.01)
        assert need[best == 0].mean() > need[best == 2].mean()


def test_bad_input(family: Family) -> None:
    elastic = unpruned(family.pipeline)

    def read() -> None:
        sample_images(family.pipeline, CAPTIONS[:1], [0], settings(1))

    with pytest.raises(ConfigError, match=r"\(2,\) leave no choice"):
        with_step_selection(elastic, (2,), 0.5, read, lambda interval: torch.zeros(1))
    with pytest.raises(ConfigError, match=r"step_share = 0.8; .* 0.25 to 0.50"):
        with_step_selection(elastic, (2, 4), 0.8, read, lambda interval: torch.zeros(1))
    with pytest.raises(ConfigError, match=r"scores of -1 to -1"):
        with_step_selection(elastic, (2, 4), 0.3, read, lambda interval: -torch.ones(1))
