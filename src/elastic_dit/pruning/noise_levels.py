"""What a range of noise levels counts for: how often sampling goes there, and how far an error there moves the image.

Routes for several ranges are chosen together, under one budget. The velocity's own error would spend nearly all of it
at low noise, where the fine detail is that no model predicts well and no eye misses, and little where it is decided
what the image shows. So the error of each range is weighed by what becomes of it: in a denoising run every MLP is cut
to half of its width for the steps of that range alone, and the squared change of the image is divided by the squared
error of the velocity. B samples, T tokens, C channels.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.plan import Plan
from elastic_dit.errors import ConfigError
from elastic_dit.training.data.cache import EncodedDataset
from elastic_dit.training.families.base import Family, Text
from elastic_dit.training.flow import NoisyBatch

NARROW = 0.5
"""The width of every MLP whose error is followed."""


class Level(NamedTuple):
    """One of several equal ranges of noise levels."""

    visits: float
    """Share of the denoising steps; those of all ranges are 1 together."""
    worth: float
    """Of a squared error of the velocity there, in what it does to the image; 1 together."""


def even(count: int) -> list[Level]:
    """All ranges alike: the error of evenly spread noise levels."""
    return [Level(1 / count, 1 / count)] * count


class Point(NamedTuple):
    """What a denoising step saw."""

    x: Tensor
    """Where it starts, (B, T, C)."""
    sigma: float
    """Its noise level."""
    velocity: Tensor
    """Of the caption's branch, (B, T, C)."""
    without: Tensor | None
    """Of the empty caption's, (B, T, C); None without guidance."""


@dataclass(frozen=True)
class Denoising:
    """Euler steps from noise to images of given texts, as the pipeline's scheduler spaces them."""

    family: Family
    text: Text
    """Of B captions."""
    empty: Text | None
    """Of B empty captions, for guidance; None runs one branch."""
    latent_shape: torch.Size
    """(B, c, h, w)."""
    steps: int
    guidance: float = 1.0
    seed: int = 0

    def sigmas(self, tokens: int) -> list[float]:
        """The noise level of each step, and 0 at the end."""
        config = self.family.pipeline.scheduler.config
        scheduler = type(self.family.pipeline.scheduler).from_config(config)
        shift = {"mu": _mu(config, tokens)} if config.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(sigmas=np.linspace(1, 1 / self.steps, self.steps).tolist(), **shift)
        return scheduler.sigmas.tolist()

    def velocity(self, tokens: Tensor, sigma: float, text: Text) -> Tensor:
        """Of one branch, (B, T, C)."""
        levels = torch.full((len(tokens),), sigma, device=tokens.device)
        inputs = self.family.inputs(tokens, levels, text, self.latent_shape)
        return self.family.pipeline.transformer(**inputs, return_dict=False)[0].float()

    def run(self, begin: Callable[[int], None], path: list[Point] | None = None) -> Tensor:
        """The images, as tokens (B, T, C).

        Args:
            begin: called with the number of the step before each forward.
            path: where to put what each step saw.
        """
        generator = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(self.latent_shape, generator=generator).to(self.family.pipeline.transformer.device)
        x = self.family.pack(noise)
        sigmas = self.sigmas(x.shape[1])
        for step, (sigma, after) in enumerate(pairwise(sigmas)):
            begin(step)
            velocity, without = self.velocity(x, sigma, self.text), None
            if self.empty is not None:
                begin(step)
                without = self.velocity(x, sigma, self.empty)
            if path is not None:
                path.append(Point(x, sigma, velocity, without))
            if without is not None:
                velocity = without + self.guidance * (velocity - without)
            x = x + (after - sigma) * velocity
        return x

    def batches(self, path: Sequence[Point]) -> Iterator[tuple[dict[str, Any], NoisyBatch]]:
        """What the transformer was called with on the way, each branch by itself."""
        for point in path:
            sigma = torch.full((len(point.x),), point.sigma, device=point.x.device)
            for text in (self.text, self.empty):
                if text is not None:
                    inputs = self.family.inputs(point.x, sigma, text, self.latent_shape)
                    yield inputs, NoisyBatch(point.x, point.velocity, sigma)


def denoising_of(
    family: Family, data: EncodedDataset, samples: int, steps: int, guidance: float = 1.0, seed: int = 0
) -> Denoising:
    """The denoising of the first `samples` captions of encoded pairs."""
    device = family.pipeline.transformer.device
    text = data.batch(range(min(samples, len(data))), device)
    latents = text.pop("latents")
    empty = {name: value.expand_as(text[name]) for name, value in data.empty_text(device).items()}
    return Denoising(
        family,
        _named(text),
        _named(empty) if guidance != 1 else None,
        latents.shape,
        steps,
        guidance,
        seed,
    )


def _named(text: dict[str, Tensor]) -> Text:
    return {name.removeprefix("text."): value for name, value in text.items()}


def levels_of(path: Sequence[Point], count: int) -> list[int]:
    """Which of `count` equal ranges of noise levels each step falls into, the lowest 0."""
    return [min(int(point.sigma * count), count - 1) for point in path]


@torch.no_grad()
def weigh(elastic: ElasticModel, denoising: Denoising, count: int) -> list[Level]:
    """Measure what each of `count` equal ranges of noise levels counts for, the lowest first.

    Args:
        elastic: the denoising pipeline's transformer, as `pruning.base.whole` gives it.
        denoising: what the routes are meant for.
        count: of ranges.

    Raises:
        ConfigError: no step falls into one of the ranges.
    """
    narrow = Plan.static([NARROW] * len(elastic.sites))

    def use(plan: Plan | None) -> None:
        elastic.reset()
        elastic.force(plan)

    path: list[Point] = []
    image = denoising.run(lambda step: use(None), path)
    place = levels_of(path, count)
    visits = [place.count(level) for level in range(count)]
    if not all(visits):
        raise ConfigError(f"{len(path)} steps visit {sum(map(bool, visits))} of {count} levels of noise; ask for fewer")
    worth: list[float] = []
    for level in range(count):
        moved = denoising.run(lambda step, level=level: use(narrow if place[step] == level else None))
        errors: list[Tensor] = []
        for point in (point for point, own in zip(path, place, strict=True) if own == level):
            use(narrow)
            errors.append((denoising.velocity(point.x, point.sigma, denoising.text) - point.velocity).square().mean())
        worth.append(float((moved - image).square().mean() / torch.stack(errors).mean()))
    use(None)
    return [Level(seen / len(path), each / sum(worth)) for seen, each in zip(visits, worth, strict=True)]


def _mu(config: Any, tokens: int) -> float:
    """FLUX's shift of the noise levels, which grows with the number of tokens."""
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    return calculate_shift(tokens, *(config[name] for name in names))
