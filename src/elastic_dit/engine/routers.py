"""What the routers of a transformer read at a call of a block, and what they say to it."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from elastic_dit.backbones.base import TEXT, Backbone
from elastic_dit.config import ElasticConfig
from elastic_dit.core.block import Decision, decide
from elastic_dit.core.cost import router_flops
from elastic_dit.core.gating import keep_probability
from elastic_dit.core.ready_routers import Reading, ReadyRouters, StackedRouters, plain_read
from elastic_dit.core.router import Router, RouterOutput, mean_over_ranks
from elastic_dit.core.router_stack import RouterStack
from elastic_dit.engine.budgets import Budgets
from elastic_dit.engine.site import BlockCall, Site

ALWAYS_OPEN_LOGIT = 20.0
"""sigmoid(20) is 1 in float32's eyes: above every threshold, and reused only where tau + delta reaches 1."""
Said = tuple[list[float], list[list[float]]]
"""p and the width logits of each sample."""


class Routers:
    """One router for each block, or none."""

    def __init__(
        self, transformer: Any, backbone: Backbone, config: ElasticConfig, stack: RouterStack, sites: Sequence[Site]
    ) -> None:
        self.transformer, self.backbone, self.config = transformer, backbone, config
        self.stack, self.sites = stack, sites
        self.budgets = Budgets(config)
        self.watch: Callable[[int, tuple[Tensor | None, ...]], None] | None = None
        """Where there is one, called with a block's index and what its router, if it reads tokens, is asked."""
        self.reading, self.last = Reading(), Reading()
        """What was read in this forward, and in the last one of its branch."""
        self._late = False
        """Whether blocks do what was read in the last one."""
        self._condition: Tensor | None = None
        self._stacked: StackedRouters | None = None
        """The weights of this run: nobody trains during one."""
        self._ready: ReadyRouters | None = None
        self._heard: list[Said] | None = None
        """What all routers say in this forward, by block, where that is known before the first one."""
        self._due: dict[int, OnItsWay] = {}
        """What the router of the next block says, by its index."""
        self._before: BlockCall | None = None
        """Of the block before this one."""
        self._flops: dict[int, float] = {}
        """Of one router, by the tokens that it reads."""
        self._call: Callable[..., RouterOutput] = _call
        self._read = plain_read

    def __len__(self) -> int:
        return len(self.stack.routers)

    def compile(self, options: dict[str, Any]) -> None:
        """From now on they run compiled, all of them in one graph's turns."""
        self._call = torch.compile(_call, **options)
        compiled: Callable[..., Tensor] = torch.compile(plain_read, **options)
        self._read = lambda *inputs: compiled(*inputs).clone()  # CUDA graphs write over what they gave

    def to(self, device: torch.device) -> None:
        """Go where the transformer's input is."""
        parameter = next(self.stack.parameters(), None)
        if parameter is not None and parameter.device != device:
            self.stack.to(device)
        self.budgets.dial = self.budgets.dial.to(device)

    def renew(self) -> None:
        """A run begins, perhaps after training."""
        self._stacked = None

    def see(self, temb: Tensor) -> None:
        """The timestep embedding of the forward that has begun."""
        assert self.stack.condition is not None
        self.forget()
        self._condition = self.stack.condition(temb)
        self.reading = Reading()
        self._late = self.config.decision_lag > 0 and len(self.last.pooled) == len(self.sites)

    def tell(self, temb: Tensor) -> Tensor:
        """The timestep embedding, (B, D) or (B, T, D), with the budget in it; where there is a `BudgetEmbedding`."""
        assert self.stack.embedding is not None
        budget = self.stack.embedding(self.budgets.of(len(temb))).to(temb.dtype)  # (B, D)
        return temb + (budget if temb.ndim == 2 else budget.unsqueeze(1))

    def forget(self) -> None:
        """The forward is over."""
        self._condition = self._ready = self._heard = self._before = self.budgets.allocated = None
        self._due.clear()
        self._late = False

    def allocate(self, call: BlockCall, sigma: float, decided: Tensor | None) -> Tensor:
        """Give each row of this forward a budget of its own, (B,), which holds from this block on.

        Args:
            call: of the block whose input is read.
            sigma: noise level, 0..1.
            decided: what another branch of the step was given; guidance must not tell routes apart, but texts.
        """
        allocator = self.stack.allocator
        assert allocator is not None
        budgets = decided
        if budgets is None or len(budgets) != call.batch:
            levels = torch.full((call.batch,), sigma, device=call.image.device)
            budgets = allocator(call.image, levels, self.budgets.asked(call.batch))
        self.budgets.allocated, self._ready, self._heard = budgets, None, None
        self._due.clear()
        return budgets

    def decide(self, site: Site, call: BlockCall, step: int) -> Decision:
        """What a block's router wants, in one host synchronisation."""
        if self.config.router_input == "timestep":
            return self._decide(site, *self._hear_all(call.batch)[site.index], step)
        source = self._source(call)
        if self._late:
            said = self._hear_all(call.batch)[site.index]
            self._pool(site, source)  # for the next step
            return self._decide(site, *said, step)
        due = self._due.pop(site.index, None) or self._ask(site, source)
        if self.config.decide_ahead and site.index + 1 < len(self.sites):
            after = self.sites[site.index + 1]
            self._due[after.index] = self._ask(after, call)  # before this block is queued, not behind it
        said = due.wait()
        return self._decide(site, keep_probability(said[:, 0]).tolist(), said[:, 1:].tolist(), step)

    def decide_all(self, batch: int, step: int) -> list[Decision]:
        """What all routers want, where none reads tokens."""
        return [self._decide(site, *said, step) for site, said in zip(self.sites, self._hear_all(batch), strict=True)]

    def _hear_all(self, batch: int) -> list[Said]:
        """What all routers say, where none reads tokens of this step: in one host synchronisation for the forward."""
        if self._heard is None:
            ready = self._get_ready(batch)
            pooled = ready.without_tokens  # (L, B, R)
            if self._late:
                assert self.last.without_tokens is not None
                read = self._over_ranks(torch.stack([self.last.pooled[site.index] for site in self.sites]))
                pooled = ready.recall(read, self.last.without_tokens)
            said = ready.say_all(pooled).cpu()  # (L, B, 1 + S)
            p, widths = keep_probability(said[..., 0]).tolist(), said[..., 1:].tolist()
            self._heard = list(zip(p, widths, strict=True))
        return self._heard

    def _decide(self, site: Site, p: list[float], width_logits: list[list[float]], step: int) -> Decision:
        config = self.config
        if site.always_open:
            p = [1.0] * len(p)  # reused only where tau + delta reaches 1
        delta = config.delta if step >= config.reuse_from_step else -1.0
        near = 1.0 if config.store_margin is None else config.delta + config.store_margin
        return decide(p, width_logits, config.tau, delta, near, config.width_ratios)

    def _get_ready(self, batch: int) -> ReadyRouters:
        if self._stacked is None:
            self._stacked = StackedRouters(self.stack)
        if self._ready is None:
            self._ready = self._stacked.at(*self._told(batch))
        return self._ready

    def _ask(self, site: Site, source: BlockCall) -> "OnItsWay":
        """Begin to find out what a block's router says of the input of a block."""
        pooled = self._pool(site, source)
        return OnItsWay(self._over_ranks(self._get_ready(source.batch).say(site.index, pooled)))

    @torch.no_grad()
    def _pool(self, site: Site, source: BlockCall) -> Tensor:
        """What a block's router reads in the input of a block, (B, R)."""
        tokens, mask = self._tokens(source)
        if self.watch is not None:
            condition, budget = self._told(source.batch)
            self.watch(site.index, (tokens, condition, mask, budget))
        ready = self._get_ready(source.batch)
        pooled = ready.pool(site.index, tokens, mask, self._read)
        self.reading.pooled[site.index], self.reading.without_tokens = pooled, ready.without_tokens
        return pooled

    def _over_ranks(self, values: Tensor) -> Tensor:
        """What was pooled or said, or its mean over the ranks that share out the tokens."""
        group = _token_group(self.transformer)
        return values if group is None else mean_over_ranks(values, group)

    def route(self, site: Site, call: BlockCall) -> RouterOutput:
        """Eq. 4-6 on the tokens the config names, in training."""
        tokens = mask = None
        if self.config.router_input != "timestep":
            tokens, mask = self._tokens(self._source(call))
        condition, budget = self._told(call.batch)
        route: Callable[..., RouterOutput] = partial(self._call, self.stack.routers[site.index])
        if torch.is_grad_enabled():  # its activations would be a tenth of a block's; to compute them again is cheap
            route = partial(checkpoint, route, use_reentrant=False)
        output = route(tokens, condition, mask, budget)
        if _token_group(self.transformer) is not None:
            said = self._over_ranks(torch.cat([output.gate_logit.unsqueeze(-1), output.width_logits], dim=-1))
            output = RouterOutput(said[:, 0], said[:, 1:])
        if site.always_open:  # times zero: every parameter keeps its place in the graph
            output = output._replace(gate_logit=output.gate_logit * 0 + ALWAYS_OPEN_LOGIT)
        return output

    def _source(self, call: BlockCall) -> BlockCall:
        """The call of a block whose input its router reads; asked once a block, in their order."""
        if not self.config.decide_ahead:
            return call
        before, self._before = self._before, call
        return before or call

    def _tokens(self, call: BlockCall) -> tuple[Tensor, Tensor | None]:
        """The tokens of a block's input that are read, and which of them count."""
        text = self._text(call)
        if text is None:
            return call.image, None
        tokens = torch.cat([text, call.image], dim=1)
        mask = call.arguments.get(self.backbone.text_mask) if self.backbone.text_mask else None
        if mask is not None:
            mask = torch.cat([mask.bool(), mask.new_ones(call.image.shape[:2]).bool()], dim=1)
        return tokens, mask

    def _told(self, batch: int) -> tuple[Tensor, Tensor | None]:
        """What all routers are told beside tokens: the condition (B, C), and the budgets (B,) if they know any."""
        assert self._condition is not None
        condition = self._condition[:batch]  # some models append rows for a second, clean timestep
        return condition, None if self.config.budget_range is None else self.budgets.of(batch)

    def flops(self, site: Site, call: BlockCall | None) -> float:
        """Of a block's router, for one sample; `call` may be None where no router reads tokens."""
        tokens = 0
        if self.config.router_input != "timestep":
            assert call is not None
            text = self._text(call)
            tokens = call.image.shape[1] + (0 if text is None else text.shape[1])
        if tokens not in self._flops:  # all routers are alike
            router = self.stack.routers[site.index]
            assert isinstance(router, Router)
            self._flops[tokens] = router_flops(router, tokens)
        return self._flops[tokens]

    def _text(self, call: BlockCall) -> Tensor | None:
        """The text tokens a router reads beside the image's."""
        joint = self.config.router_input == "joint" and TEXT in call.site.declared.returns
        return call.arguments.get(TEXT) if joint else None


class OnItsWay:
    """A small tensor on its way from the device to the host, in the order of the work that is queued there."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=tensor.is_cuda)  # from CUDA into pinned memory, and nobody waits
        self._arrived = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def wait(self) -> Tensor:
        """The tensor, on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._host


def _call(router: nn.Module, *inputs: Tensor | None) -> RouterOutput:
    """A function, so that one compiled graph serves all routers."""
    return router(*inputs)


def _token_group(transformer: Any) -> dist.ProcessGroup | None:
    """The ranks that share out the tokens, if diffusers' context parallelism is on."""
    parallel = getattr(transformer, "_parallel_config", None)
    context = None if parallel is None else parallel.context_parallel_config
    return None if context is None else context._flattened_mesh.get_group()
