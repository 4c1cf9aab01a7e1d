"""A baseline is another way to make a diffusion transformer faster.

To add one, write a file beside this one that registers a `Baseline`; the contract tests and the benchmark pick
it up.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from elastic_dit.registry import Registry


class Applied(NamedTuple):
    """A baseline at work on a transformer."""

    restart: Callable[[], None]
    """Forgets the last run: called before every run."""
    steps: Collection[int] | None = None
    """The steps at which the transformer is called at all; None: every step."""


@dataclass(frozen=True)
class Task:
    """The runs that a baseline will speed up, and the means to try them beforehand."""

    steps: int
    """Denoising steps of a run."""
    branches: int
    """Guidance passes in a step; each has a cache context of its own."""
    sample: Callable[[Any, Callable[[], None]], None]
    """(transformer, restart): one run from noise to the end, for methods that calibrate on the model."""


@dataclass(frozen=True)
class Baseline:
    """One method."""

    name: str
    about: str
    """What it does, in one sentence."""
    source: str
    """Where it is published, and whose implementation runs here."""
    setting: str
    """What its setting is, in a few words; empty: there is none."""
    settings: tuple[float, ...]
    """The settings worth trying, from the mildest to the strongest."""
    apply: Callable[[Any, float, Task], Applied]
    """(transformer, setting, task): change a fresh transformer in place. Nothing is undone: take a copy."""
    continuous: bool = False
    """Whether any setting between two of `settings` makes sense too."""


baselines: Registry[Baseline] = Registry("baseline", "elastic_dit.baselines")
