"""The engine behind the hooks: one forward at a time, one block at a time."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers.hooks import HookRegistry
from torch import Tensor, nn

from elastic_dit.backbones.base import IMAGE, TEXT, Backbone
from elastic_dit.config import ElasticConfig
from elastic_dit.core.block import Decision, run_block
from elastic_dit.core.cache import FeatureBank
from elastic_dit.core.router_stack import RouterStack
from elastic_dit.engine import forecasts
from elastic_dit.engine.costs import Costs
from elastic_dit.engine.hooks import BlockHook, RootHook
from elastic_dit.engine.learning import Learning
from elastic_dit.engine.offload import below_offload
from elastic_dit.engine.plan import Plan
from elastic_dit.engine.routers import Routers
from elastic_dit.engine.run import Branch, Run, enter
from elastic_dit.engine.site import HOOK, BlockCall, Site, set_route, unhook
from elastic_dit.engine.trace import Taken, Trace, left_out
from elastic_dit.errors import ConfigError

RESET = "_reset_stateful_cache"
"""What a pipeline calls on its models when it is done; SD3's transformer, which is no `CacheMixin`, has none."""


class Engine:
    """Decides and carries out what happens at each block of one transformer."""

    def __init__(self, transformer: Any, backbone: Backbone, config: ElasticConfig, stack: RouterStack) -> None:
        self.transformer, self.backbone, self.config = transformer, backbone, config
        self.sites = [
            Site(index, declared, block, config) for index, (declared, block) in enumerate(backbone.sites(transformer))
        ]
        for index in config.always_open:
            self.sites[index].always_open = True
        self.routers = Routers(transformer, backbone, config, stack, self.sites)
        self.budgets = self.routers.budgets
        self.learning = Learning(config, self.routers)
        self.costs = Costs()
        self.training = False
        self.pipeline: Callable[[], Any] = lambda: None
        """The pipeline of the transformer, as far as it is known."""
        self.plan = self.own_plan = None if config.route is None else Plan.static(config.route)
        """What runs in place of the routers' decisions, and what does where nobody forces anything."""
        self.routed_plan = False
        self.trace = Trace()
        self.seconds = 0.0
        self._compiled = False
        self._routes = False
        """Whether the routers run in the current forward."""
        self._route: list[Decision] | None = None
        """The decisions of all blocks in the current forward, where they were known before it and are uniform."""
        self._spent: list[list[float]] = []
        """FLOPs of each of its blocks so far, by sample."""
        self._run: Run | None = None
        self._branch: Branch | None = None
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put all hooks on."""
        with below_offload(self.transformer):
            self._attach()

    def detach(self) -> None:
        """Take all hooks off."""
        with below_offload(self.transformer):
            self._detach()
        self.reset()

    def _attach(self) -> None:
        embedder = self.transformer.get_submodule(self.backbone.timestep_embedder)
        self._handles.append(embedder.register_forward_hook(self._capture_timestep))
        for site in self.sites:
            hook = BlockHook(self, site)
            HookRegistry.check_if_exists_or_initialize(site.block).register_hook(hook, HOOK)
            original: Any = hook.fn_ref.original_forward
            site.forward = original
            site.attach_mlps()
        registry = HookRegistry.check_if_exists_or_initialize(self.transformer)
        registry.register_hook(RootHook(self), HOOK)
        registry.invalidate_child_registries_cache()
        if not hasattr(self.transformer, RESET):
            setattr(self.transformer, RESET, self.reset)

    def _detach(self) -> None:
        registry = HookRegistry.check_if_exists_or_initialize(self.transformer)
        for handle in self._handles:
            handle.remove()
        for site in self.sites:
            site.detach_mlps()
            unhook(site.block)
        registry.invalidate_child_registries_cache()
        unhook(self.transformer)
        vars(self.transformer).pop(RESET, None)

    def compile(self, options: dict[str, Any]) -> None:
        """Compile the blocks and the routers; the decisions stay in Python."""
        for site in self.sites:
            site.compile(options)
        self.routers.compile(options)
        self._compiled = True

    def reset(self) -> None:
        """Forget the current run's residuals; its trace stays readable."""
        self._run = self._branch = None
        self.routers.forget()
        self.routers.renew()

    @property
    def cache_bytes(self) -> int:
        """Memory of the stored residuals."""
        return self._run.memory.used if self._run else 0

    def splits(self, arguments: dict[str, Any]) -> bool:
        """Whether a forward holds both guidance branches in its batch, and each needs one of its own."""
        config = self.config
        own = config.max_guidance_reuse > 0 or config.guidance_from < 1 or len(config.step_intervals or ()) > 1
        if not own or self.training or not self.backbone.guidance_in_one_batch:
            return False
        image: Tensor = arguments[IMAGE]
        without, guided = image[: len(image) // 2], image[len(image) // 2 :]
        return bool(getattr(self.pipeline(), "do_classifier_free_guidance", False)) and torch.equal(without, guided)

    def begin(self, arguments: dict[str, Any], context: str | None) -> None:
        """A forward of the transformer starts."""
        if self._compiled:  # with mode="reduce-overhead": the last forward's CUDA graphs may be written over
            torch.compiler.cudagraph_mark_step_begin()
        image: Tensor = arguments[IMAGE]
        self.routers.to(image.device)
        self.costs.begin(arguments, self.sites)
        self._routes = len(self.routers) > 0 and (self.training or self.plan is None or self.routed_plan)
        if self.training:
            for site in self.sites:  # a LoRA may have been put on since
                site.attach_mlps()
            self.learning.routed = []
            self._run, self._branch, self.budgets.unspent = None, Branch("training", None, len(image), 0), []
            return
        timestep = float(torch.as_tensor(arguments["timestep"]).max())
        self._run, self._branch = enter(self._run, image.shape, timestep, arguments.get(TEXT), context)
        intervals = self.config.step_intervals
        if intervals is not None and self.routers.stack.selector is None:
            self._run.intervals = [intervals[0]] * len(image)
        self.budgets.unspent, self.routers.last, self._spent = self._branch.unspent, self._branch.reading, []
        if self._run.trace is not self.trace:
            self.trace, self.seconds = self._run.trace, 0.0
            self.routers.renew()
            memory = self._run.memory
            memory.limit, memory.device = self.config.cache_limit, self.config.cache_device
            for site in self.sites:
                site.attach_mlps()

    def forecast(self) -> Tensor | None:
        """The velocity of the forward that has begun, if nothing need run for it."""
        if self.training:
            return None
        assert self._run is not None and self._branch is not None
        velocity = forecasts.forecast(self.config, self._run, self._branch, self._sigma)
        if velocity is None:
            return None
        for block, cost in self.costs.nearest.items():
            for row in range(len(velocity)):
                self.trace.add((self._run.step, block, self._branch.name, row), left_out(cost.dense))
        return velocity

    def computed(self, velocity: Tensor) -> Tensor:
        """A forward ran, and may be what others follow from; what it comes to."""
        if self.training:
            return velocity
        assert self._run is not None and self._branch is not None
        if self._route is not None:
            for site, decision in zip(self.sites, self._route, strict=True):
                self._record(site, decision, None)
        if self._routes:
            self._branch.reading = self.routers.reading
        return forecasts.remember(self.config, self._run, self._branch, self._sigma, velocity)

    @property
    def _sigma(self) -> float:
        """Noise level of the current step, 0..1."""
        assert self._run is not None
        return self._run.timestep / self.backbone.timestep_scale

    def end(self) -> None:
        """A forward of the transformer is over: blocks called by hand now are dense.

        Not in training, where the backward pass of checkpointed blocks comes later.
        """
        if not self.training:
            dialled = self.config.budget_range is not None and self._routes and self.plan is None
            if self._branch is not None and self._spent and dialled:
                dense = sum(cost.dense for cost in self.costs.last.values())
                self._branch.unspent = self.budgets.left(self._spent, dense)
            if self._route is not None:
                set_route(self.sites, [1.0] * len(self.sites))
            self._branch = self._route = None
            self.routers.forget()

    def block(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One block: Algorithm 1, or its differentiable form in training."""
        if self._branch is None:  # called by hand, outside a forward of the transformer
            return site.forward(*args, **kwargs)
        if site.index == 0:
            self._select_steps(site, args, kwargs)
        if self._route is not None:
            return site.run_uniform(self._route[site.index], args, kwargs)
        call = site.call(args, kwargs)
        cost = self.costs.of(site, call)
        if self.training:
            return call.output(self.learning.run(site, call, cost))

        assert self._run is not None
        step = self._run.step
        if self._routes and site.index == self.config.allocate_at:
            self._run.allocated[step] = self.routers.allocate(call, self._sigma, self._run.allocated.get(step))
        decision = self.routers.decide(site, call, step) if self._routes else None
        if self.plan is not None:
            decision = self.plan.decision(step, site.index, call.batch)
        assert decision is not None
        if (due := self._run.due(self._branch)) is not None:
            keep, reuse, store = (
                [a and b for a, b in zip(part, due, strict=True)]
                for part in (decision.keep, decision.reuse, decision.store)
            )
            decision = decision._replace(keep=keep, reuse=reuse, store=store)
        banks = self._branch.banks
        if site.index not in banks:
            banks[site.index] = FeatureBank(self.config.max_reuse, self.config.max_age, self._run.memory)
        out, taken = run_block(call.x, call.run, decision, banks[site.index], step)
        self._record(site, taken, call)
        return call.output(out)

    def _select_steps(self, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """At a run's first step: which steps each sample will run, by the text that the first block is given."""
        selector, run = self.routers.stack.selector, self._run
        if selector is None or run is None or run.step or run.intervals is not None:
            return
        text = site.call(args, kwargs).arguments.get(TEXT)
        if text is None:
            raise ConfigError(
                "step_intervals are chosen by the text, and the first block is given none; give one alone"
            )
        run.intervals = selector.to(text.device)(text, self.config.step_share).tolist()

    def _record(self, site: Site, taken: Decision, call: BlockCall | None) -> None:
        """Note what a block did; `call` is None where its router read no tokens."""
        assert self._run is not None and self._branch is not None
        routing = self.routers.flops(site, call) if self._routes else 0.0
        cost, step, branch = self.costs.last[site.index], self._run.step, self._branch.name
        spent: list[float] = []
        due = self._run.due(self._branch) or [True] * len(taken.keep)
        for row, (keep, reuse, wanted, keep_prob, _) in enumerate(zip(*taken, strict=True)):
            width = wanted if keep and not reuse else 0.0
            spent.append(routing + (cost.at(wanted) if keep else 0.0))
            flops = routing + (cost.at(width) if width else 0.0)
            ran = Taken(keep_prob, keep, reuse, width, flops, cost.dense)
            self.trace.add((step, site.index, branch, row), ran if due[row] else left_out(cost.dense))
        self._spent.append(spent)

    def _ahead(self) -> list[Decision] | None:
        """The decisions of all blocks in the forward that has begun, where blocks need not ask one by one.

        That is where a plan or routers of the timestep say them, they are uniform and the blocks' costs are known.
        """
        assert self._run is not None and self._branch is not None
        config, step, rows = self.config, self._run.step, self._branch.rows
        if len(self.costs.last) < len(self.sites) or self._run.due(self._branch) is not None:
            return None
        if self.plan is not None and not self._routes:
            decisions = [self.plan.decision(step, site.index, rows) for site in self.sites]
        elif self.plan is None and config.router_input == "timestep" and config.allocate_at is None:
            decisions = self.routers.decide_all(rows, step)
            if config.max_reuse == 0:
                nothing = [False] * rows
                decisions = [decision._replace(reuse=nothing, store=nothing) for decision in decisions]
        else:
            return None
        return decisions if all(decision.uniform for decision in decisions) else None

    def _capture_timestep(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Show the routers the timestep embedding, and give the backbone one that knows the budget."""
        if self._branch is None:
            return None
        temb: Tensor = output[0] if isinstance(output, tuple) else output
        if self._routes:
            self.routers.see(temb)
        if not self.training and (route := self._ahead()) is not None:
            self._route = route
            set_route(self.sites, [decision.width[0] for decision in route])
        if self.routers.stack.embedding is None:
            return None
        told = self.routers.tell(temb)
        return (told, *output[1:]) if isinstance(output, tuple) else told
