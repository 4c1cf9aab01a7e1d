"""Ways to make images: the dense model, an adapter, an adapter at a budget, a baseline at a setting."""

from collections.abc import Collection, Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

from elastic_dit.baselines import baselines
from elastic_dit.bench.race import DENSE
from elastic_dit.checkpoint import read
from elastic_dit.config import ElasticConfig
from elastic_dit.conversions import is_converted
from elastic_dit.conversions.base import ROUTES
from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.variants import known_budgets

ASKED: dict[str, tuple[str, type]] = {
    "": ("budget", float),
    "K": ("max_reuse", int),
    "steps": ("steps", int),
    "tau": ("tau", float),
    "lag": ("decision_lag", int),
    "share": ("step_share", float),
    "guidance": ("guidance", float),
    "shift": ("shift", float),
}
"""What may stand behind the `@` of an adapter, before its `=`: a field of `Entry`."""
WORDS = {
    "max_reuse": "K = {}",
    "steps": "{} steps",
    "tau": "tau = {:g}",
    "decision_lag": "lag = {}",
    "step_share": "{:.0%} of the steps",
    "guidance": "guidance {:g}",
    "shift": "shift {:g}",
}
OF_ROUTERS = {"max_reuse", "tau", "decision_lag"}
"""What changes nothing where there are none."""
OF_SAMPLING = ("guidance", "shift")
"""What any way to make images may have of its own."""


class Entry(NamedTuple):
    """One way, by its name; without an adapter and a baseline it is the dense model."""

    name: str
    adapter: str | None = None
    budget: float | None = None
    baseline: str | None = None
    setting: float = 0.0
    max_reuse: int | None = None
    """K in place of the adapter's own."""
    steps: int | None = None
    """Denoising steps in place of everybody's."""
    tau: float | None = None
    """The threshold in place of the adapter's own."""
    decision_lag: int | None = None
    """Likewise, whether blocks do what was read in the step before."""
    guidance: float | None = None
    """Guidance scale in place of everybody's."""
    shift: float | None = None
    """Likewise, the scheduler's shift of the noise levels: above 1 more of the steps are at high noise."""
    step_share: float | None = None
    """Share of the steps that run, in place of the adapter's own."""


class Row(NamedTuple):
    """What is compared with others: one way, or several trainings of one recipe, which differ by their seed."""

    name: str
    runs: tuple[Entry, ...]


class Wish(NamedTuple):
    """A baseline as a user asks for it: at a setting, at a share of the FLOPs, or, without either, as it is."""

    name: str
    setting: float | None = None
    share: float | None = None
    guidance: float | None = None
    """See `Entry`."""
    shift: float | None = None
    """See `Entry`."""

    @classmethod
    def read(cls, text: str) -> "Wish":
        """From NAME=SETTING, NAME@SHARE or NAME, each with @guidance=NUMBER or @shift=NUMBER behind it, or both.

        Raises:
            UnknownNameError: no such baseline.
            ConfigError: no number where one is due.
        """
        asked, own = _at(text, OF_SAMPLING)
        sign = "@" if "@" in asked else "="
        name, _, value = asked.partition(sign)
        baseline = baselines[name]
        if not baseline.setting and not value:
            return cls(name, **own)
        try:
            number = float(value)
        except ValueError as error:
            raise ConfigError(
                f"baseline {text!r} has no setting; expected {name}=NUMBER ({baseline.setting}), for example "
                f"{name}={baseline.settings[0]:g}, or {name}@SHARE for the one that spends such a share of the FLOPs"
            ) from error
        return cls(name, share=number, **own) if sign == "@" else cls(name, setting=number, **own)

    def at(self, setting: float | None) -> Entry:
        """The way that has a setting; None: what has none."""
        own: dict[str, Any] = {name: value for name in OF_SAMPLING if (value := getattr(self, name)) is not None}
        name = self.name if setting is None else f"{self.name} {setting:g}"
        return Entry(name + in_words(own), baseline=self.name, setting=setting or 0.0, **own)


def list_rows(adapters: Sequence[str], budgets: Sequence[float]) -> list[Row]:
    """The dense model, and each adapter: at each budget in its range if its routers know one, else as it is.

    An adapter with a `*` is a pattern of folders: the trainings of one recipe, as `ablate` leaves them. One that ends
    in `@` and a number is at that budget alone, in `@K=` and a number reuses with that K, in `@steps=` and a number
    takes so many steps, in `@tau=` and a number has that threshold, in `@lag=` and a number that `decision_lag`, in
    `@guidance=` and a number that guidance scale, in `@shift=` and a number that shift of the noise levels,
    in `@share=` and a number runs that share of the steps.

    Raises:
        ConfigError: a pattern that no folder fits, or one whose folders differ in their `budget_range`; no budget in
            that range; a K, a tau or a lag for what has no routers, a share of the steps for what does not choose them.
    """
    rows = [Row(DENSE, (Entry(DENSE),))]
    for asked in adapters:
        adapter, own = _at(asked)
        own_budget = own.pop("budget", None)
        folders = sorted(glob(adapter)) if "*" in adapter else [adapter]  # noqa: PTH207  Path's takes no absolute pattern
        if not folders:
            raise ConfigError(f"no adapter fits {adapter!r}; expected folders, as runs/noise-*/adapter")
        configs = {folder: _config(folder) for folder in folders}
        turned = sorted(OF_ROUTERS & own.keys())
        for folder, config in configs.items():
            if turned and (config is None or config.route is not None):
                raise ConfigError(f"{asked} asks for another {turned[0]}; {folder} has no routers that it would change")
            if "step_share" in own and (config is None or len(config.step_intervals or ()) < 2):
                raise ConfigError(f"{asked} asks for a share of the steps; {folder} has no intervals to choose from")
        ranges = {folder: config.budget_range if config else None for folder, config in configs.items()}
        limits = ranges[folders[0]]
        if odd := [folder for folder, own in ranges.items() if own != limits]:
            raise ConfigError(f"{odd[0]} has budget_range {ranges[odd[0]]}, {folders[0]} has {limits}: no one recipe")
        if own_budget is not None and not (limits and limits[0] <= own_budget <= limits[1]):
            raise ConfigError(f"{asked} asks for a budget of {own_budget:g}; {folders[0]} has budget_range {limits}")
        wanted = budgets if own_budget is None else [own_budget]
        for budget in known_budgets(asked, wanted, limits):
            at = "" if budget is None else f" at {budget:g}"
            at += in_words(own)
            runs = [Entry(folder + at, adapter=folder, budget=budget, **own) for folder in folders]
            rows.append(Row(adapter + at, tuple(runs)))
    return rows


def in_words(own: dict[str, Any]) -> str:
    """What an entry's name says of the fields it has of its own."""
    return "".join(f", {WORDS[name].format(value)}" for name, value in own.items())


def _config(folder: str) -> ElasticConfig | None:
    """An adapter's, or that of the routes in a converted transformer; None where there are none."""
    if not is_converted(folder):
        return read(folder).config
    routes = Path(folder) / ROUTES
    return read(routes).config if routes.is_dir() else None


def _at(
    text: str, fields: Collection[str] = frozenset(field for field, _ in ASKED.values())
) -> tuple[str, dict[str, Any]]:
    """What stands before the first `@`, and what stands behind, by those fields of `Entry` that may."""
    own: dict[str, Any] = {}
    while True:
        before, sign, asked = text.rpartition("@")
        name, _, number = asked.rpartition("=")
        field, kind = ASKED.get(name, ("", str))
        if not sign or field not in fields:
            return text, own
        try:
            own = {field: kind(number)} | own
        except ValueError:
            return text, own
        text = before
