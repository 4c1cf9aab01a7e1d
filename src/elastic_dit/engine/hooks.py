"""The hooks on a transformer and the engine behind them: one forward at a time, one block at a time."""

import inspect
import time
from collections.abc import Callable, Hashable
from functools import partial
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import BaseState, StateManager
from diffusers.models.attention_dispatch import attention_backend
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

from elastic_dit.backbones.base import IMAGE, TEXT, Backbone
from elastic_dit.config import ElasticConfig
from elastic_dit.core.block import Decision, decide, pack, run_block, train_block
from elastic_dit.core.cache import FeatureBank, Streams
from elastic_dit.core.cost import BlockCost, fake_mode, measure_block, router_flops
from elastic_dit.core.gating import keep_probability
from elastic_dit.core.objective import Routing
from elastic_dit.core.router import Router, RouterOutput, RouterStack, mean_over_ranks, with_noise
from elastic_dit.core.width import width_probabilities
from elastic_dit.engine.plan import Plan
from elastic_dit.engine.run import Branch, Run, enter
from elastic_dit.engine.site import HOOK, BlockCall, Site, unhook
from elastic_dit.engine.trace import Taken, Trace
from elastic_dit.errors import ConfigError

ALWAYS_OPEN_LOGIT = 20.0
"""sigmoid(20) is 1 in float32's eyes: above every threshold, and reused only where tau + delta reaches 1."""


class Engine:
    """Decides and carries out what happens at each block of one transformer."""

    def __init__(self, transformer: Any, backbone: Backbone, config: ElasticConfig, stack: RouterStack) -> None:
        self.transformer, self.backbone, self.config, self.stack = transformer, backbone, config, stack
        self.sites = [
            Site(index, declared, block, config) for index, (declared, block) in enumerate(backbone.sites(transformer))
        ]
        for index in config.always_open:
            self.sites[index].always_open = True
        self.training = False
        self.gradient_checkpointing = False
        self.plan = self.own_plan = None if config.route is None else Plan.static(config.route)
        """What runs in place of the routers' decisions, and what does where nobody forces anything."""
        self.routed_plan = False
        self.trace = Trace()
        self.seconds = 0.0
        self.routed: list[tuple[Tensor, Tensor, BlockCost, float]] = []
        self.budget = torch.tensor([config.default_budget])
        """Of each sample (B,), or of all (1,); read where the routers were made for a range of budgets."""
        self.generator: torch.Generator | None = None
        """Of the noise on decisions in training; on the CPU."""
        self.noisy = True
        """Whether training has the noise that the config says."""
        self._run: Run | None = None
        self._branch: Branch | None = None
        self._condition: Tensor | None = None
        self._ahead: Tensor | None = None
        self._call_router: Callable[..., RouterOutput] = _call_router
        self.costs: dict[int, BlockCost] = {}
        """Of each block, at the shapes of its last call."""
        self._costs: dict[Hashable, BlockCost] = {}
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Put all hooks on."""
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

    def detach(self) -> None:
        """Take all hooks off."""
        registry = HookRegistry.check_if_exists_or_initialize(self.transformer)
        for handle in self._handles:
            handle.remove()
        for site in self.sites:
            site.detach_mlps()
            unhook(site.block)
        registry.invalidate_child_registries_cache()
        unhook(self.transformer)
        self.reset()

    def compile(self, options: dict[str, Any]) -> None:
        """Compile the blocks and the routers; the decisions stay in Python."""
        for site in self.sites:
            site.compile(options)
        self._call_router = torch.compile(_call_router, **options)

    def reset(self) -> None:
        """Forget the current run's residuals; its trace stays readable."""
        self._run = self._branch = self._condition = self._ahead = None

    @property
    def cache_bytes(self) -> int:
        """Memory of the stored residuals."""
        return self._run.memory.used if self._run else 0

    def begin(self, arguments: dict[str, Any], context: str | None) -> None:
        """A forward of the transformer starts."""
        image: Tensor = arguments[IMAGE]
        if any(parameter.device != image.device for parameter in islice(self.stack.parameters(), 1)):
            self.stack.to(image.device)
        self.budget = self.budget.to(image.device)
        if self.training:
            self.routed = []
            self._run, self._branch = None, Branch("training", None, 0)
            return
        timestep = float(torch.as_tensor(arguments["timestep"]).max())
        self._run, self._branch = enter(self._run, image.shape, timestep, arguments.get(TEXT), context)
        if self._run.trace is not self.trace:
            self.trace, self.seconds = self._run.trace, 0.0
            self._run.memory.limit, self._run.memory.device = self.config.cache_limit, self.config.cache_device
            for site in self.sites:
                site.attach_mlps()

    def forecast(self) -> Tensor | None:
        """The velocity of the forward that has begun, if it is forecast and nothing need run."""
        config = self.config
        if self.training or not config.max_forecast:
            return None
        assert self._run is not None and self._branch is not None
        sigma, bank = self._run.timestep / self.backbone.timestep_scale, self._branch.velocities
        if sigma >= config.forecast_below or not bank.can_forecast(config.max_forecast, config.forecast_order):
            return None
        velocity = bank.forecast(sigma, config.forecast_order)
        for block, cost in self.costs.items():
            taken = Taken(keep_prob=1.0, keep=True, reuse=True, width=0.0, flops=0.0, dense_flops=cost.dense)
            for row in range(len(velocity)):
                self.trace.add((self._run.step, block, self._branch.name, row), taken)
        return velocity

    def computed(self, velocity: Tensor) -> None:
        """A forward ran, and may be what others are forecast from."""
        config = self.config
        if config.max_forecast and not self.training:
            assert self._run is not None and self._branch is not None
            sigma = self._run.timestep / self.backbone.timestep_scale
            self._branch.velocities.store(sigma, velocity, config.forecast_order)

    def end(self) -> None:
        """A forward of the transformer is over: blocks called by hand now are dense.

        Not in training, where the backward pass of checkpointed blocks comes later.
        """
        if not self.training:
            self._branch = self._condition = None

    def block(self, site: Site, call: BlockCall) -> Any:
        """One block: Algorithm 1, or its differentiable form in training."""
        if self._branch is None:  # called by hand, outside a forward of the transformer
            return site.forward(**call.arguments)
        cost = self.costs[site.index] = self._cost(site, call)
        if self.training and self.config.route is not None:
            return call.output(self._train_fixed(call, self.config.route[site.index]))
        if self.training:
            output = self._route(site, call)
            decided = keep_probability(output.gate_logit), width_probabilities(output.width_logits)
            self.routed.append((*decided, cost, self._router_flops(site, call)))  # the budget is on what inference does
            if self.config.decision_noise and self.noisy and torch.is_grad_enabled():
                output = with_noise(output, self.config.decision_noise, self.generator)
            run = partial(train_block, block=call.run_masked, output=output, tau=self.config.tau)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                run = partial(checkpoint, run, use_reentrant=False)
            return call.output(run(call.x))

        assert self._run is not None
        step = self._run.step
        decision = self._decide(site, call, step) if self._routes else None
        if self.plan is not None:
            decision = self.plan.decision(step, site.index, call.batch)
        assert decision is not None
        banks = self._branch.banks
        if site.index not in banks:
            banks[site.index] = FeatureBank(self.config.max_reuse, self.config.max_age, self._run.memory)
        out, taken = run_block(call.x, call.run, decision, banks[site.index], step)
        self._record(site, call, taken, cost)
        return call.output(out)

    def _train_fixed(self, call: BlockCall, width: float) -> Streams:
        """One block of a fixed route, differentiable: left out, or as narrow as it will be."""
        if not width:
            return call.x
        call.any_rows = False
        run = partial(call.run, rows=None, ratios=[width] * call.batch)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        return run(call.x)

    def budgets(self, batch: int) -> Tensor:
        """The budget of each row (B,), also where a pipeline's batch holds several guidance branches.

        Raises:
            ConfigError: budgets were given for another number of samples.
        """
        if batch % len(self.budget):
            raise ConfigError(f"budgets were given for {len(self.budget)} samples, but the batch has {batch}")
        return self.budget.repeat(batch // len(self.budget))

    def routing(self) -> Routing:
        """What the routers said in the last training forward."""
        p, q, costs, routers = zip(*self.routed, strict=True)
        fixed = torch.tensor([cost.fixed for cost in costs], device=p[0].device)
        mlp = torch.tensor([cost.mlp for cost in costs], device=p[0].device)
        share = sum(routers) / sum(cost.dense for cost in costs)
        return Routing(torch.stack(p, dim=1), torch.stack(q, dim=1), fixed, mlp, share)

    @property
    def _routes(self) -> bool:
        """Whether the routers run."""
        return len(self.stack.routers) > 0 and (self.training or self.plan is None or self.routed_plan)

    def _decide(self, site: Site, call: BlockCall, step: int) -> Decision:
        """What the router wants, in one host synchronisation; it serves all blocks where no router reads tokens."""
        config = self.config
        delta = config.delta if step >= config.reuse_from_step else -1.0
        near = 1.0 if config.store_margin is None else config.delta + config.store_margin
        if config.router_input == "timestep":
            if self._ahead is None:
                self._ahead = torch.stack([pack(self._route(each, call)) for each in self.sites]).cpu()  # (L, B, 1 + S)
            packed = self._ahead[site.index]
        else:
            packed = pack(self._route(site, call))
        return decide(packed, config.tau, delta, near, config.width_ratios)

    def _route(self, site: Site, call: BlockCall) -> RouterOutput:
        """Eq. 4-6 on the tokens the config names."""
        assert self._condition is not None
        tokens = None if self.config.router_input == "timestep" else call.image
        mask, text = None, self._router_text(site, call)
        if tokens is not None and text is not None:
            tokens = torch.cat([text, tokens], dim=1)
            text_mask = call.arguments.get(self.backbone.text_mask) if self.backbone.text_mask else None
            if text_mask is not None:
                mask = torch.cat([text_mask.bool(), text_mask.new_ones(call.image.shape[:2]).bool()], dim=1)
        condition = self._condition[: call.batch]  # some models append rows for a second, clean timestep
        route: Callable[..., RouterOutput] = partial(self._call_router, self.stack.routers[site.index])
        if torch.is_grad_enabled():  # its activations would be a tenth of a block's; to compute them again is cheap
            route = partial(checkpoint, route, use_reentrant=False)
        budget = None if self.config.budget_range is None else self.budgets(call.batch)
        output = route(tokens, condition, mask, budget)
        group = _token_group(self.transformer)
        if group is not None:
            output = mean_over_ranks(output, group)
        if site.always_open:  # times zero: every parameter keeps its place in the graph
            output = output._replace(gate_logit=output.gate_logit * 0 + ALWAYS_OPEN_LOGIT)
        return output

    def _router_text(self, site: Site, call: BlockCall) -> Tensor | None:
        """The text tokens a router reads beside the image's."""
        joint = self.config.router_input == "joint" and TEXT in site.declared.returns
        return call.arguments.get(TEXT) if joint else None

    def _router_flops(self, site: Site, call: BlockCall) -> float:
        """Of a block's router, for one sample."""
        router = self.stack.routers[site.index]
        assert isinstance(router, Router)
        text = self._router_text(site, call)
        image = 0 if self.config.router_input == "timestep" else call.image.shape[1]
        return router_flops(router, image + (0 if text is None else text.shape[1]))

    def _record(self, site: Site, call: BlockCall, taken: Decision, cost: BlockCost) -> None:
        assert self._run is not None and self._branch is not None
        routing = self._router_flops(site, call) if self._routes else 0.0
        for row in range(call.batch):
            ran = taken.keep[row] and not taken.reuse[row]
            width = taken.width[row] if ran else 0.0
            flops = routing + (cost.at(width) if ran else 0.0)
            entry = Taken(taken.keep_prob[row], taken.keep[row], taken.reuse[row], width, flops, cost.dense)
            self.trace.add((self._run.step, site.index, self._branch.name, row), entry)

    def _cost(self, site: Site, call: BlockCall) -> BlockCost:
        """FLOPs of a block for one sample at this shape, measured once on fake tensors."""
        key = (site.signature, tuple(None if s is None else s.shape[1:] for s in (*call.x, call.arguments.get(TEXT))))
        if key not in self._costs:
            with torch.compiler.set_stance("force_eager"), fake_mode() as mode, attention_backend("native"):
                fake = tree_map(lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v, call.arguments)
                copy = BlockCall(site, fake)
                copy.any_rows = False
                self._costs[key] = measure_block(lambda ratio: copy.run(copy.x, None, [ratio]), call.batch)
        return self._costs[key]

    def _capture_timestep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._branch is not None and self._routes:
            assert self.stack.condition is not None
            temb: Tensor = output[0] if isinstance(output, tuple) else output
            self._condition, self._ahead = self.stack.condition(temb), None


def _call_router(router: nn.Module, *inputs: Tensor | None) -> RouterOutput:
    """A function, so that one compiled graph serves all routers."""
    return router(*inputs)


def _token_group(transformer: Any) -> dist.ProcessGroup | None:
    """The ranks that share out the tokens, if diffusers' context parallelism is on."""
    parallel = getattr(transformer, "_parallel_config", None)
    context = None if parallel is None else parallel.context_parallel_config
    return None if context is None else context._flattened_mesh.get_group()


class RootHook(ModelHook):
    """Around the transformer: tells the engine where in which run a forward is."""

    _is_stateful = True

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self.engine = engine
        self.names = list(inspect.signature(engine.transformer.forward).parameters)
        # diffusers sets the cache context on any StateManager it finds on a stateful hook
        self.state = StateManager(BaseState)  # type: ignore[arg-type]

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The forward, between the engine's begin and, if it fails, its reset."""
        context = self.state._context
        start = time.perf_counter()
        try:
            arguments = dict(zip(self.names, args, strict=False)) | kwargs
            self.engine.begin(arguments, context.name if context else None)
            velocity = self.engine.forecast()
            if velocity is not None:
                return Transformer2DModelOutput(velocity) if arguments.get("return_dict", True) else (velocity,)
            forward: Any = self.fn_ref.original_forward
            output = forward(*args, **kwargs)
            self.engine.computed(output[0])
            return output
        except BaseException:
            self.engine.reset()
            raise
        finally:
            self.engine.end()
            self.engine.seconds += time.perf_counter() - start

    def reset_state(self, module: nn.Module) -> nn.Module:
        """What diffusers calls when a pipeline is done."""
        self.engine.reset()
        return module


class BlockHook(ModelHook):
    """Around a block: it may run, run narrower or on fewer rows, or not at all."""

    def __init__(self, engine: Engine, site: Site) -> None:
        super().__init__()
        self.engine, self.site = engine, site

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Hand the call to the engine."""
        return self.engine.block(self.site, self.site.call(args, kwargs))
