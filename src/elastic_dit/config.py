"""Every constant of the paper, with its meaning and its range; presets; `elastic_config.json`."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elastic_dit.errors import ConfigError, UnknownNameError

CONFIG_NAME = "elastic_config.json"


class ElasticConfig(BaseModel):
    """How a backbone is made elastic. Defaults are design decisions or the paper's FLUX values."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, validate_assignment=True)

    # Router (Eq. 4-6)
    router_hidden_size: int = Field(default=64, gt=0)
    """Router hidden width R, H_r in Eq. 5."""
    router_input: Literal["image", "joint", "timestep"] = "image"
    """Tokens the router averages over: the image's, or image and text together. `timestep`: none, but the backbone's
    timestep embedding all the same, in which FLUX also has the pooled text."""
    decide_ahead: bool = False
    """Whether a block's router reads the input of the block before it (the first one its own). What it says is then on
    the host before the block is due, and a GPU need not wait for it. Not in the paper."""
    decision_lag: Literal[0, 1] = 0
    """1: a block does what its router read at the step before, so a device waits once a forward, not once a block; at
    a run's first step, what it reads then. Inference alone; training goes on as with 0. Not in the paper."""
    router_activation: Literal["relu", "gelu", "silu"] = "relu"
    """Activation in Eq. 5."""
    modulation: Literal["low_rank", "full"] = "low_rank"
    """How gamma(t), delta(t) of Eq. 4 come from the timestep embedding; `full` is the paper's."""
    modulation_rank: int = Field(default=32, gt=0)
    """Rank of the low-rank modulation."""
    init: Literal["full_capacity", "random"] = "full_capacity"
    """Start with every block open at full width (section 3.3), or at random (Table 5)."""
    init_keep_prob: float = Field(default=0.95, gt=0, lt=1)
    """Keep probability p of every block at the full-capacity start."""
    init_width_logit: float = Field(default=2.0, gt=0)
    """Logit of the full width at the full-capacity start; the other widths have 0."""

    init_route: tuple[float, ...] | None = None
    """Start near this route in place of `init`: the width of each block, 0 where p starts at 1 - init_keep_prob."""
    init_schedule: tuple[tuple[float, ...], ...] | None = None
    """Start near these routes in place of one: for as many equal ranges of noise levels, from the lowest up."""
    init_path: tuple[tuple[float, int, float], ...] | None = None
    """Start with a route for every budget, each within the next larger one: below this share of the dense FLOPs, this
    block runs at this width, 0 where it is left out; from the largest share down."""

    # Decisions (Eq. 7-16)
    tau: float = Field(default=0.5, ge=0, le=1)
    """Threshold: a block is skipped where its keep probability is below."""
    width_ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """The widths S an MLP may run at, as shares of full, rising, the last 1."""
    width_streams: tuple[Literal["image", "text"], ...] = ("image",)
    """Whose MLPs shrink; an MLP that serves both streams counts as the image's. Empty: none."""
    width_gradient: Literal["straight_through", "budget"] = "straight_through"
    """Whether the quality loss reaches the width logits, or the budget alone does (the paper's text)."""
    always_open: tuple[int, ...] = ()
    """Blocks that are never skipped, by running order; negative counts from the end."""

    route: tuple[float, ...] | None = None
    """One route for every sample and step in place of routers: the MLP width of each block, 0 where it is left out."""

    # Cache (Algorithm 1)
    delta: float = Field(default=0.1, ge=0, le=1)
    """Width of the band above tau in which a stored block residual is reused."""
    max_reuse: int = Field(default=3, ge=0)
    """K: how often one stored residual is reused; 0 turns the cache off."""
    max_age: int | None = Field(default=None, gt=0)
    """Steps after which a stored residual is too old to reuse; None sets no limit."""
    reuse_from_step: int = Field(default=0, ge=0)
    """First step that may reuse."""

    store_margin: float | None = Field(default=None, ge=0, le=1)
    """Residuals are stored up to so far above the band; None stores every one, as Algorithm 1 does."""
    cache_limit: int | None = Field(default=None, ge=0)
    """Bytes that stored residuals may take together; a block whose residual does not fit runs again."""
    cache_device: Literal["cpu"] | None = None
    """Where stored residuals wait; None leaves them where they were computed."""

    # Forecast velocities (not in the paper)
    max_forecast: int = Field(default=0, ge=0)
    """How many steps in a row may take a velocity forecast from earlier ones, with no block run; 0 forecasts none."""
    forecast_below: float = Field(default=1.0, gt=0, le=1)
    """Noise level, 0..1, below which they may."""
    forecast_order: Literal[0, 1] = 0
    """0 takes the last velocity again, 1 goes on along the line through the last two."""

    # Fewer steps, as a prompt needs (not in the paper)
    step_intervals: tuple[int, ...] | None = None
    """A sample runs every so-many-th step and keeps its velocity between: with Euler's steps that is a run of so many
    times fewer steps. Which of these intervals it has is predicted from its prompt (`elastic-dit select-steps`); one
    alone holds for all. None: every step runs."""
    step_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the steps that run, on average over prompts like those that the prediction was fitted to."""

    # Leave guidance out, or take it again (not in the paper)
    guidance_from: float = Field(default=1.0, gt=0, le=1)
    """Noise level, 0..1, at which guidance begins. Above it the first guidance branch runs alone and stands for the
    others: it must be the one with the prompt."""
    max_guidance_reuse: int = Field(default=0, ge=0)
    """How many steps in a row may run the first guidance branch alone, at the last step's distance from the others; 0:
    none. SD3's pipeline runs both in one batch; known to `elasticize` or `load`, it runs them one by one then."""
    guidance_reuse_below: float = Field(default=0.7, gt=0, le=1)
    """Noise level, 0..1, below which they may. Above, where it is decided what the image shows, all is computed."""
    guidance_fade: float = Field(default=1.0, ge=0, le=1)
    """What is left of that distance from one such step to the next; 0 leaves guidance out there, 1 holds it."""

    # Budget (Eq. 9, 14, 15)
    budget: Literal["compute", "blocks", "paper"] = "compute"
    """What is held to target: the share of FLOPs, hard gates and widths apart, or the paper's soft means."""
    budget_scope: Literal["global", "sample"] = "global"
    """Whether the budget holds on average, or for each sample alone (for comparison)."""
    rho_g: float = Field(default=0.5, gt=0, le=1)
    """Target share of open blocks."""
    rho_w: float = Field(default=0.6, gt=0, le=1)
    """Target mean width of the open blocks."""
    budget_weight: float = Field(default=1.0, ge=0)
    """lambda in Eq. 17."""
    commitment: float = Field(default=0.0, ge=0)
    """Weight of mean p(1-p), which keeps probabilities off the threshold."""

    decision_noise: float = Field(default=0.0, ge=0)
    """Scale of the random noise on all logits in training: what is undecided is then random, and learns to decide."""

    # One checkpoint for many budgets
    budget_range: tuple[float, float] | None = None
    """Lowest and highest share of the dense FLOPs the routers are trained for; None: one budget, rho_g and rho_w."""
    budget_embedding: bool = False
    """Whether the backbone is told the budget too, through its timestep embedding; needs a `budget_range`."""
    allocate_at: int | None = Field(default=None, ge=1)
    """From this block on each forward has a budget of its own, by what is predicted from the block's input; the one
    that is asked for is their mean. None: all have that one. `elastic-dit allocate` fits the prediction."""
    default_budget: float = Field(default=0.5, gt=0, le=1)
    """Where the dial stands after loading, if there is a `budget_range`."""

    @property
    def routes(self) -> list[tuple[str, tuple[float, ...]]]:
        """Every route in the config, and the field it stands in."""
        found = [("route", self.route), ("init_route", self.init_route)]
        found += [("init_schedule", route) for route in self.init_schedule or ()]
        return [(name, route) for name, route in found if route is not None]

    @model_validator(mode="after")
    def _budgets_are_shares(self) -> "ElasticConfig":
        if self.budget_range is None:
            if self.budget_embedding:
                raise ValueError("budget_embedding tells the backbone a budget; it needs a budget_range")
            if self.allocate_at is not None:
                raise ValueError("allocate_at shares a budget out; it needs a budget_range")
            return self
        low, high = self.budget_range
        if not 0 < low < high <= 1:
            raise ValueError(f"budget_range must rise and lie in (0, 1], got {self.budget_range}")
        if not low <= self.default_budget <= high:
            raise ValueError(f"default_budget must lie in budget_range {self.budget_range}, got {self.default_budget}")
        if self.budget != "compute":
            raise ValueError(f'budget_range needs budget = "compute", got {self.budget!r}')
        return self

    @model_validator(mode="after")
    def _intervals_rise(self) -> "ElasticConfig":
        intervals, share = self.step_intervals, self.step_share
        if share < 1 and len(intervals or ()) < 2:
            raise ValueError(f"step_share chooses among several step_intervals; got {share:g} of {intervals}")
        if intervals is None:
            return self
        if not intervals or intervals[0] < 1 or list(intervals) != sorted(set(intervals)):
            raise ValueError(f"step_intervals must rise and be 1 or more, got {intervals}")
        for name, value in (("max_forecast", self.max_forecast), ("budget_range", self.budget_range)):
            if value:
                raise ValueError(f"step_intervals leave whole steps out; they go with no {name}, got {value}")
        low, high = 1 / intervals[-1], 1 / intervals[0]
        if len(intervals) > 1 and not low - 1e-6 <= share <= high + 1e-6:
            raise ValueError(f"step_share = {share:g}; these intervals run {low:.2f} to {high:.2f} of the steps")
        return self

    @model_validator(mode="after")
    def _tokens_are_read_ahead(self) -> "ElasticConfig":
        for name, value in (("decide_ahead", self.decide_ahead), ("decision_lag", self.decision_lag)):
            if value and self.router_input == "timestep":
                raise ValueError(f"{name} is about tokens; routers of the timestep read none, and all decide ahead")
        return self

    @model_validator(mode="after")
    def _path_narrows(self) -> "ElasticConfig":
        if self.init_path is None:
            return self
        if self.budget_range is None:
            raise ValueError("init_path has a route for every budget; it needs a budget_range")
        shares = [share for share, _, _ in self.init_path]
        if not all(0 < share <= 1 for share in shares) or shares != sorted(shares, reverse=True):
            raise ValueError(f"the shares of init_path must fall and lie in (0, 1], got {shares}")
        widths: dict[int, float] = {}
        for share, block, width in self.init_path:
            if block < 0 or width not in (0, *self.width_ratios) or width >= widths.get(block, 1.0):
                raise ValueError(
                    f"init_path takes block {block} to width {width:g} at a share of {share:g}: expected one of "
                    f"width_ratios, or 0, and narrower than before"
                )
            widths[block] = width
        return self

    @model_validator(mode="after")
    def _route_is_widths(self) -> "ElasticConfig":
        starts = [name for name in ("init_route", "init_schedule", "init_path") if getattr(self, name) is not None]
        if len(starts) > 1:
            raise ValueError(f"{' and '.join(starts[:2])} both say where routers start; give one of them")
        for name, widths in self.routes:
            if not (all(0 <= width <= 1 for width in widths) and any(widths)):
                raise ValueError(f"{name} must hold widths in 0..1, not all of them 0, got {widths}")
        if self.route is not None and self.budget_range is not None:
            raise ValueError("a fixed route has no budget_range: routers that know one decide themselves")
        return self

    @model_validator(mode="after")
    def _ratios_rise_to_one(self) -> "ElasticConfig":
        ratios = self.width_ratios
        if not ratios or ratios[-1] != 1 or ratios[0] <= 0 or list(ratios) != sorted(set(ratios)):
            raise ValueError(f"width_ratios must rise to 1 and lie in (0, 1], got {ratios}")
        return self

    @classmethod
    def of(cls, **values: Any) -> "ElasticConfig":
        """Build from keywords, with `ConfigError` instead of pydantic's error."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(explain(error, cls)) from error

    def save(self, folder: Path) -> None:
        """Write `elastic_config.json` into a folder."""
        (folder / CONFIG_NAME).write_text(self.model_dump_json(indent=2) + "\n")


PRESETS: dict[str, dict[str, Any]] = {
    "qwen-image-base": {"rho_g": 0.6, "rho_w": 0.65, "delta": 0.10, "max_reuse": 5},
    "qwen-image-turbo": {"rho_g": 0.5, "rho_w": 0.6, "delta": 0.15, "max_reuse": 10},
    "flux": {"rho_g": 0.5, "rho_w": 0.6, "delta": 0.10, "max_reuse": 3},
    "hunyuan3d": {"rho_g": 0.45, "rho_w": 0.5, "delta": 0.15, "max_reuse": 5},
}
"""The settings of the paper's section 4.1."""


def preset(name: str, **changes: Any) -> ElasticConfig:
    """The `ElasticConfig` of a named preset, with changes.

    Raises:
        UnknownNameError: no such preset; the message lists them.
    """
    if name not in PRESETS:
        raise UnknownNameError("preset", name, PRESETS)
    return ElasticConfig.of(**PRESETS[name] | changes)


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """A validation error in one sentence, with the nearest known key for an unknown one."""
    parts: list[str] = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            close = get_close_matches(str(item["loc"][-1]), model.model_fields, n=1)
            parts.append(f"unknown key {key!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        elif item["type"] == "missing":
            parts.append(f"missing key {key!r}")
        elif not item["loc"]:  # of all keys together: to show what came would be to show everything
            parts.append(item["msg"].removeprefix("Value error, "))
        else:
            parts.append(f"{key} = {item['input']!r}: {item['msg']}")
    return "; ".join(parts)
