"""The handle of an elastic transformer: its settings, what ran, its training mode, and how it is saved."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, overload

import torch
from torch import Tensor, nn

from elastic_dit import checkpoint
from elastic_dit.backbones import backbone_of
from elastic_dit.calibration import Calibration, Setting
from elastic_dit.config import ElasticConfig
from elastic_dit.core.cost import BlockCost
from elastic_dit.core.objective import BudgetLoss, GlobalMean, budget_loss, routing_logs
from elastic_dit.core.router_stack import RouterStack
from elastic_dit.engine.engine import Engine
from elastic_dit.engine.offload import refuse_absent_weights
from elastic_dit.engine.plan import Plan
from elastic_dit.engine.site import Site
from elastic_dit.engine.trace import Trace
from elastic_dit.errors import ConfigError, PlanError

T = TypeVar("T")


class Dial(Generic[T]):
    """A field of the config that may be turned between runs."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    @overload
    def __get__(self, model: None, owner: type) -> "Dial[T]": ...
    @overload
    def __get__(self, model: "ElasticModel", owner: type) -> T: ...
    def __get__(self, model: "ElasticModel | None", owner: type) -> "Dial[T] | T":
        return self if model is None else getattr(model.config, self.name)

    def __set__(self, model: "ElasticModel", value: T) -> None:
        checked = ElasticConfig.of(**model.config.model_dump() | {self.name: value})
        setattr(model.config, self.name, getattr(checked, self.name))
        model._speedup = None


class ElasticModel:
    """A transformer with routers on it: the handle that `elasticize` and `load` return.

    The transformer and its pipeline are used as before. Settings may change between runs.
    """

    __slots__ = (  # so that a misspelt setting is an error
        "__weakref__",
        "_engine",
        "_speedup",
        "backbone",
        "calibration",
        "mean",
        "stack",
        "transformer",
        "weights",
    )

    def __init__(self, transformer: Any, config: ElasticConfig) -> None:
        backbone = backbone_of(transformer)
        blocks = len(backbone.sites(transformer))
        for index in config.always_open:
            if not -blocks <= index < blocks:
                raise ConfigError(f"always_open names block {index}; the transformer has {blocks} blocks")
        for name, route in config.routes:
            if len(route) != blocks:
                raise ConfigError(f"{name} has {len(route)} blocks; the transformer has {blocks}")
        named = [("init_path", index) for _, index, _ in config.init_path or ()]
        named += [("allocate_at", config.allocate_at)] if config.allocate_at is not None else []
        for name, index in named:
            if index >= blocks:
                raise ConfigError(f"{name} names block {index}; the transformer has {blocks} blocks")
        dim = backbone.dim(transformer)
        self.transformer = transformer
        self.backbone = backbone
        self.stack = RouterStack(config, dim, dim, blocks)
        self.mean = GlobalMean()
        self.weights = checkpoint.ChangedWeights()
        self.calibration: Calibration | None = None
        """What settings gave on some machine: `elastic-dit calibrate` writes it, `load` reads it, training drops it."""
        self._speedup: float | None = None
        self._engine = Engine(transformer, backbone, config, self.stack)
        self._engine.attach()

    # Settings

    @property
    def config(self) -> ElasticConfig:
        """How the routers are built and used; for another one, `elasticize` again."""
        return self._engine.config

    tau = Dial[float]("Threshold: a block is skipped where its keep probability is below.")
    delta = Dial[float]("Width of the band above tau in which stored residuals are reused.")
    max_reuse = Dial[int]("K: how often one stored residual is reused; 0 turns the cache off.")
    decision_lag = Dial[int](
        "1: blocks do what their routers read at the step before: a device waits once a forward, not at every block."
    )
    max_forecast = Dial[int]("How many steps in a row may have their velocity forecast; 0 computes all.")
    forecast_below = Dial[float]("Noise level below which they may.")
    forecast_order = Dial[Literal[0, 1]]("0 takes the last velocity again, 1 goes on along the line through two.")
    step_share = Dial[float]("Share of the steps that run, on average over prompts; for several `step_intervals`.")
    guidance_from = Dial[float]("Noise level at which guidance begins; 1 guides from the first step on.")
    max_guidance_reuse = Dial[int](
        "How many steps in a row may take the guidance of an earlier one; 0 runs all branches."
    )
    guidance_reuse_below = Dial[float]("Noise level below which they may.")
    guidance_fade = Dial[float]("What is left of that guidance from one such step to the next: 1 holds it, 0 drops it.")

    @property
    def budget(self) -> float | list[float]:
        """Share of the dense FLOPs to spend; a list has one for each sample of the batch.

        For routers that were trained on a range of budgets (`ElasticConfig.budget_range`).
        """
        shares = [round(float(share), 6) for share in self._engine.budgets.dial]
        return shares[0] if len(shares) == 1 else shares

    @budget.setter
    def budget(self, value: float | Sequence[float] | Tensor) -> None:
        """Takes effect with the next forward.

        Raises:
            ConfigError: the routers know one budget alone, or this one lies outside their range.
        """
        if self.config.budget_range is None:
            raise ConfigError("these routers were trained for one budget; turn tau, or speedup after calibration")
        low, high = self.config.budget_range
        shares = torch.as_tensor(value, dtype=torch.float32).reshape(-1)
        if not len(shares) or not ((shares >= low - 1e-6) & (shares <= high + 1e-6)).all():
            raise ConfigError(f"budget = {value}: these routers were trained for {low:g} to {high:g}")
        self._engine.budgets.dial = shares
        self._speedup = None

    @property
    def speedup(self) -> float | None:
        """The speed-up over dense that was asked for, of a denoising step; None where the dial was turned by hand."""
        return self._speedup

    @speedup.setter
    def speedup(self, value: float) -> None:
        """Take the setting from the calibration.

        Raises:
            ConfigError: there is no calibration, or it does not reach so far.
        """
        if self.calibration is None:
            raise ConfigError("speedup needs a calibration, and the adapter has none: run `elastic-dit calibrate`")
        self.setting = self.calibration.at_speedup(value)
        self._speedup = value

    @property
    def setting(self) -> Setting:
        """Everything the dial turns, at once."""
        budget = None if self.config.budget_range is None else float(self._engine.budgets.dial[0])
        return Setting(self.tau, self.delta, self.max_reuse, budget, self.max_guidance_reuse)

    @setting.setter
    def setting(self, value: Setting) -> None:
        self.tau, self.delta, self.max_reuse, budget, self.max_guidance_reuse = value
        if budget is not None:
            self.budget = budget

    @property
    def routers(self) -> nn.ModuleList:
        """The routers, one a block in running order; none under a fixed route."""
        return self.stack.routers

    @property
    def sites(self) -> list[Site]:
        """The blocks with their declarations, in running order."""
        return self._engine.sites

    def force(self, plan: Plan | None, *, routed: bool = False) -> None:
        """Run a fixed plan in place of the routers, or of the config's route; None releases.

        Args:
            plan: the decisions.
            routed: let the routers decide all the same and throw it away, to measure what that costs.

        Raises:
            PlanError: the plan is for another number of blocks.
        """
        if plan is not None and plan.blocks != len(self.sites):
            raise PlanError(f"the plan has {plan.blocks} blocks; the transformer has {len(self.sites)}")
        self._engine.plan = self._engine.own_plan if plan is None else plan
        self._engine.routed_plan = routed
        self.reset()

    def freeze(self, traces: Sequence[Trace] | None = None) -> Plan:
        """Run one fixed route table from now on: no routers, no waiting for their decisions.

        Args:
            traces: of the calibration runs it is averaged over (`Plan.average`); default: the last run.

        Returns:
            The plan, which `force` sets again and `force(None)` releases.

        Raises:
            PlanError: no run to average, or runs of different lengths.
        """
        plan = Plan.average([self.trace] if traces is None else traces, self.config.width_ratios)
        self.force(plan)
        return plan

    @property
    def costs(self) -> list[BlockCost]:
        """FLOPs of each block for one sample, at the shapes of the last forward.

        Raises:
            ConfigError: there was no forward.
        """
        known = self._engine.costs.last
        if not known:
            raise ConfigError("the blocks' costs are known after a first forward")
        return [known[site.index] for site in self.sites]

    def compile(self, **options: Any) -> None:
        """Compile each block inside its hook: one graph per block class and width, the decisions outside.

        In place of the transformer's `compile_repeated_blocks`, which would break its graphs at every decision.

        Args:
            options: of `torch.compile`.
        """
        self._engine.compile(options)

    # What ran

    @property
    def trace(self) -> Trace:
        """The last run: (step, block, branch, sample) to what happened there, and FLOPs."""
        return self._engine.trace

    @property
    def cache_bytes(self) -> int:
        """Memory that stored residuals take now."""
        return self._engine.cache_bytes

    def reset(self) -> None:
        """Forget stored residuals; the next forward starts a new run."""
        self._engine.reset()

    def summary(self) -> str:
        """The last run in a few lines for a person."""
        trace = self.trace
        name, blocks = type(self.transformer).__name__, len(self.sites)
        if not trace:
            return f"{name}, {blocks} elastic blocks; nothing has run yet"
        steps = max(key[0] for key in trace) + 1
        samples = max(key[3] for key in trace) + 1
        branches = ", ".join(str(branch) for branch in trace.branches)
        ran = trace.mean_width
        lines = [
            f"{name}: {blocks} blocks x {steps} steps x {samples} samples, branches: {branches}",
            f"blocks   {trace.open_rate:6.1%} open, {trace.reuse_rate:.1%} of them reused; mean MLP width {ran:.2f}",
            f"compute  {trace.flops_share:6.1%} of dense, routers included: "
            f"{_flops(trace.flops_spent)} of {_flops(trace.flops_dense)}",
            f"time     {self._engine.seconds:.2f} s in the transformer",
        ]
        return "\n".join(lines)

    # Training

    def train_mode(self, *, gradient_checkpointing: bool | None = None) -> None:
        """From now on every block runs and decisions are differentiable masks (Eq. 7, 8, 13).

        A calibration is dropped: it is of the model before training.

        Args:
            gradient_checkpointing: recompute the blocks in the backward pass, as is always done for the
                routers. None takes over the transformer's own setting, which would record each decision twice.
        """
        if gradient_checkpointing is None:
            gradient_checkpointing = self._engine.learning.gradient_checkpointing or getattr(
                self.transformer, "gradient_checkpointing", False
            )
        if getattr(self.transformer, "gradient_checkpointing", False):
            self.transformer.disable_gradient_checkpointing()
        self.weights.watch(self.transformer)
        self.calibration = None  # it holds for routers and weights as they were
        self._engine.learning.gradient_checkpointing = bool(gradient_checkpointing)
        self._engine.training = True
        self.reset()

    def eval_mode(self) -> None:
        """Back to inference: blocks are skipped, MLPs sliced."""
        self._engine.training = False
        self.reset()

    def seed_noise(self, generator: torch.Generator | None, *, enabled: bool = True) -> None:
        """The noise on decisions (`ElasticConfig.decision_noise`) in the next forwards of training.

        Args:
            generator: where it comes from; None: torch's own.
            enabled: whether there is any.
        """
        self._engine.learning.generator, self._engine.learning.noisy = generator, enabled

    def losses(self, ramp: float = 1.0) -> BudgetLoss:
        """lambda * L_eff (Eq. 17) of the last forward in train mode: add `.total` to the quality loss.

        Args:
            ramp: 0..1, how far the target has gone from 1 to the budget.

        Raises:
            ConfigError: there was no forward in train mode.
        """
        if not self._engine.learning.routed:
            raise ConfigError("no losses yet: call train_mode(), run a forward, then losses(); a fixed route has none")
        routing = self._engine.learning.routing()
        budgets = None if self.config.budget_range is None else self._engine.budgets.of(len(routing.keep_prob))
        return budget_loss(routing, self.config, self.stack.ratios, self.mean, ramp, budgets)

    def routing_logs(self) -> dict[str, float]:
        """What the routers did in the last forward in train mode: open rate, mean width, share of FLOPs..."""
        return routing_logs(self._engine.learning.routing(), self.config, self.stack.ratios)

    # Saving

    def save(self, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write an adapter folder: routers, config, what training changed in the backbone, and the calibration.

        Args:
            folder: where to. Other files in it stay; those of an adapter are replaced, all or none of them. A
                calibration that this model does not carry is another adapter's and is deleted.
            dtype: store the backbone's weights in this dtype; routers stay float32.

        Raises:
            BackboneError: the backbone's weights are offloaded layer by layer.
            CheckpointError: several LoRAs are active, and none is the adapter's.
        """
        refuse_absent_weights(self.transformer, "take that off first, with `pipe.remove_all_hooks()`")
        return checkpoint.save(
            Path(folder), self.transformer, self.stack, self.config, self.weights, dtype, self.calibration
        )


def _flops(value: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if value < 1000:
            return f"{value:.3g} {unit}FLOP"
        value /= 1000
    return f"{value:.3g} PFLOP"
