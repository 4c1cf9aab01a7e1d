"""Blocks in training: every one runs, its decisions are masks, and what the routers said is kept for the budget."""

from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from elastic_dit.config import ElasticConfig
from elastic_dit.core.block import train_block
from elastic_dit.core.cache import Streams
from elastic_dit.core.cost import BlockCost
from elastic_dit.core.gating import keep_probability
from elastic_dit.core.objective import Routing
from elastic_dit.core.router import with_noise
from elastic_dit.core.width import width_probabilities
from elastic_dit.engine.routers import Routers
from elastic_dit.engine.site import BlockCall, Site


class Learning:
    """The differentiable form of what inference does at each block."""

    def __init__(self, config: ElasticConfig, routers: Routers) -> None:
        self.config, self.routers = config, routers
        self.gradient_checkpointing = False
        self.generator: torch.Generator | None = None
        """Of the noise on decisions; on the CPU."""
        self.noisy = True
        """Whether there is the noise that the config says."""
        self.routed: list[tuple[Tensor, Tensor, BlockCost, float]] = []
        """p (B,), q (B, S), cost and the router's FLOPs of each block in the last forward."""

    def run(self, site: Site, call: BlockCall, cost: BlockCost) -> Streams:
        """One block: masked by its router, or as a fixed route has it."""
        config = self.config
        if config.route is None:
            output = self.routers.route(site, call)
            decided = keep_probability(output.gate_logit), width_probabilities(output.width_logits)
            self.routed.append((*decided, cost, self.routers.flops(site, call)))  # the budget is on what inference does
            if config.decision_noise and self.noisy and torch.is_grad_enabled():
                output = with_noise(output, config.decision_noise, self.generator)
            run = partial(train_block, block=call.run_masked, output=output, tau=config.tau)
        elif width := config.route[site.index]:
            call.any_rows = False
            run = partial(call.run, rows=None, ratios=[width] * call.batch)
        else:
            return call.x
        if self.gradient_checkpointing and torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False)
        return run(call.x)

    def routing(self) -> Routing:
        """What the routers said in the last forward."""
        p, q, costs, routers = zip(*self.routed, strict=True)
        fixed = torch.tensor([cost.fixed for cost in costs], device=p[0].device)
        mlp = torch.tensor([cost.mlp for cost in costs], device=p[0].device)
        share = sum(routers) / sum(cost.dense for cost in costs)
        return Routing(torch.stack(p, dim=1), torch.stack(q, dim=1), fixed, mlp, share)
