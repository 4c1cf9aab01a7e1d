"""A baseline is another way to make a diffusion transformer faster.

To add one, write a file beside this one that registers a `Baseline`; the contract tests and the benchmark pick
it up.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from elastic_dit.registry import Registry

HALVINGS = 5
"""How often the range between two listed settings is halved."""


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
    learned: dict[str, Any] = field(default_factory=dict[str, Any], compare=False)
    """By baseline, what it learned of the model and does not learn again for another setting."""


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

    def nearest(self, spent: Callable[[float], float], wanted: float) -> float:
        """The setting whose compute comes nearest to what is wanted, by bisection: it falls from setting to setting.

        First among the listed settings, then, if the setting is a continuous one, between two of them.

        Args:
            spent: compute at a setting.
            wanted: in the same unit.
        """
        low, high = 0, len(self.settings) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if spent(self.settings[middle]) > wanted else (low, middle)
        mild, strong = self.settings[low], self.settings[high]
        for _ in range(HALVINGS if self.continuous else 0):
            between = float(f"{(mild + strong) / 2:.3g}")
            mild, strong = (between, strong) if spent(between) > wanted else (mild, between)
        return min((mild, strong), key=lambda setting: abs(spent(setting) - wanted))


baselines: Registry[Baseline] = Registry("baseline", "elastic_dit.baselines")
