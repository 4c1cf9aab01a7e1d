"""Ways to make images: the dense model, an adapter, an adapter at a budget, a baseline at a setting."""

from collections.abc import Sequence
from typing import NamedTuple

from elastic_dit.baselines import baselines
from elastic_dit.bench.race import DENSE
from elastic_dit.checkpoint import read
from elastic_dit.errors import ConfigError


class Entry(NamedTuple):
    """One way, by its name; without an adapter and a baseline it is the dense model."""

    name: str
    adapter: str | None = None
    budget: float | None = None
    baseline: str | None = None
    setting: float = 0.0


class Wish(NamedTuple):
    """A baseline as a user asks for it: at a setting, at a share of the FLOPs, or, without either, as it is."""

    name: str
    setting: float | None = None
    share: float | None = None

    @classmethod
    def read(cls, text: str) -> "Wish":
        """From NAME=SETTING, NAME@SHARE or NAME.

        Raises:
            UnknownNameError: no such baseline.
            ConfigError: no number where one is due.
        """
        sign = "@" if "@" in text else "="
        name, _, value = text.partition(sign)
        baseline = baselines[name]
        if not baseline.setting and not value:
            return cls(name)
        try:
            number = float(value)
        except ValueError as error:
            raise ConfigError(
                f"baseline {text!r} has no setting; expected {name}=NUMBER ({baseline.setting}), for example "
                f"{name}={baseline.settings[0]:g}, or {name}@SHARE for the one that spends such a share of the FLOPs"
            ) from error
        return cls(name, share=number) if sign == "@" else cls(name, setting=number)


def list_entries(adapters: Sequence[str], budgets: Sequence[float]) -> list[Entry]:
    """The dense model, and each adapter: at each budget in its range if its routers know one, else as it is."""
    entries = [Entry(DENSE)]
    for adapter in adapters:
        limits = read(adapter).config.budget_range
        known = [budget for budget in budgets if limits[0] <= budget <= limits[1]] if limits else [None]
        entries += [
            Entry(adapter if budget is None else f"{adapter} at {budget:g}", adapter=adapter, budget=budget)
            for budget in known
        ]
    return entries
