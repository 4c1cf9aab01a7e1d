"""Dense2MoE (arXiv 2510.09094): MLPs become mixtures of experts, and of every group of blocks some sit out.

Mixture of experts: the hidden channels of each MLP are a shared expert, which every token runs through, and routed
experts, of which each token runs through one. Mixture of blocks: consecutive blocks form groups, and of each group a
router picks, for each sample and step, the blocks that run.

Written after the paper's abstract and what is published about it, not its full text. From there: 37.5% of the MLPs'
FLOPs stay; channels go to experts by importance; load balancing; a loss on the features after each group; mixtures of
blocks come after mixtures of experts, here at the end of the ramp. Ours: a shared expert of a quarter of the channels,
the most important ones, and six routed ones of an eighth; importance is activation times outgoing weight in place of a
Taylor expansion; a chosen expert or block counts whole, with the gradient of its probability.

B batch, T tokens, D model width, F MLP hidden width, E routed experts, N blocks of a group.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.hooks import HookRegistry, ModelHook
from pydantic import Field
from torch import Tensor, nn

from elastic_dit.backbones.base import IMAGE, backbone_of
from elastic_dit.config import ElasticConfig
from elastic_dit.conversions.base import ROUTERS, Conversion, Converted, Options, conversions
from elastic_dit.core.block import Decision, run_block
from elastic_dit.core.cache import FeatureBank
from elastic_dit.core.gating import gated_output
from elastic_dit.core.objective import BudgetLoss
from elastic_dit.engine.linear import make_elastic
from elastic_dit.engine.site import BlockCall, Site, hidden_size
from elastic_dit.errors import ConfigError

HOOK = "dense2moe"


class Dense2MoEOptions(Options):
    """Dense2MoE's options: its FLOPs follow from them, about half with these."""

    shared: int = Field(default=2, ge=1)
    """Eighths of an MLP's channels that every token uses."""
    group: int = Field(default=4, ge=2)
    """Consecutive blocks of a group."""
    keep: int = Field(default=3, ge=1)
    """Blocks of a group that run."""
    balance: float = Field(default=0.01, ge=0)
    """Weight of the load balance of experts, and of blocks."""
    features: float = Field(default=1.0, ge=0)
    """Weight of the relative squared error of the features after each group."""


PARTS = 8
"""An MLP's channels are cut into so many parts; each is a routed expert, or the shared one's."""


class Experts:
    """The experts of one MLP, and the one that each token runs through in this forward.

    Routed expert e has the channels e, e + E, e + 2E... after the shared ones, so that all matter alike.
    """

    def __init__(self, model: "Dense2MoE", hidden: int, index: int) -> None:
        if hidden % PARTS:
            raise ConfigError(f"an MLP of {hidden} channels cannot be cut into {PARTS} equal parts")
        self.model, self.hidden, self.index = model, hidden, index
        self.shared = hidden // PARTS * model.options.shared
        self.count = PARTS - model.options.shared
        self.probs = torch.ones(1, 1, self.count)
        """(B, T, E)."""
        self.chosen = self.probs.argmax(dim=-1)
        """(B, T)."""
        self.places: list[Tensor] = []
        """In eval mode, for each expert the places of its tokens among all B T."""

    def choose(self, x: Tensor, training: bool) -> None:
        """By the MLP's input (B, T, D)."""
        self.probs = self.model.transformer.conversion.experts[self.index](x.float()).softmax(dim=-1)
        self.chosen = self.probs.argmax(dim=-1)
        if not training:
            chosen = self.chosen.flatten()
            counts = chosen.bincount(minlength=self.count).tolist()  # one wait for all experts
            self.places = list(chosen.argsort(stable=True).split(counts))

    def mask(self) -> Tensor:
        """1 on the channels of the shared and the chosen expert, with the gradient of its probability, (B, T, F)."""
        gates = F.one_hot(self.chosen, self.count) + (self.probs - self.probs.detach())  # (B, T, E)
        routed = gates.repeat(1, 1, (self.hidden - self.shared) // self.count)
        return F.pad(routed, (self.shared, 0), value=1.0)

    def imbalance(self) -> Tensor:
        """E sum_e f_e P_e of the Switch transformer (arXiv 2101.03961): 1 where all experts have equal shares."""
        return imbalance(F.one_hot(self.chosen, self.count).float(), self.probs)


def imbalance(chosen: Tensor, probs: Tensor) -> Tensor:
    """N sum_n f_n P_n, scaled to 1 where all are chosen alike, for (..., N)."""
    shares = chosen.flatten(0, -2).mean(dim=0)
    return (shares / shares.sum() * probs.flatten(0, -2).mean(dim=0)).sum() * probs.shape[-1]


class ExpertUp:
    """D -> F, or 2F where gated: in eval mode the shared channels, then those of each token's expert."""

    elastic_experts: Experts

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to (B, T, F) in train mode, else to the channels of two experts."""
        layer: Any = self
        experts = self.elastic_experts
        experts.choose(x, layer.training)
        if layer.training:
            return super().forward(x)  # type: ignore[misc]
        halves = [
            self._half(
                x, layer.weight[start : start + experts.hidden], None if layer.bias is None else layer.bias[start:]
            )
            for start in range(0, layer.out_features, experts.hidden)
        ]
        return torch.cat(halves, dim=-1)

    def _half(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        experts = self.elastic_experts
        shared = F.linear(x, weight[: experts.shared], None if bias is None else bias[: experts.shared])
        rows = x.flatten(0, 1)
        routed = x.new_empty(len(rows), (experts.hidden - experts.shared) // experts.count)
        for expert, places in enumerate(experts.places):
            own = slice(experts.shared + expert, experts.hidden, experts.count)
            routed[places] = F.linear(rows[places], weight[own], None if bias is None else bias[own])
        return torch.cat([shared, routed.view(*x.shape[:2], -1)], dim=-1)


class ExpertDown:
    """F -> D, perhaps with attention's columns before the F, of what `ExpertUp` gave."""

    elastic_experts: Experts

    def forward(self, h: Tensor) -> Tensor:
        """(B, T, n) to (B, T, D)."""
        layer: Any = self
        experts = self.elastic_experts
        stay = layer.in_features - experts.hidden
        if layer.training:
            return super().forward(h * F.pad(experts.mask(), (stay, 0), value=1.0).to(h.dtype))  # type: ignore[misc]
        first = stay + experts.shared
        out, routed = F.linear(h[..., :first], layer.weight[:, :first], layer.bias), h[..., first:].flatten(0, 1)
        rows = out.view(-1, layer.out_features)
        for expert, places in enumerate(experts.places):
            own = layer.weight[:, first + expert :: experts.count]
            rows.index_add_(0, places, F.linear(routed[places], own))
        return out


class BlockHook(ModelHook):
    """On a block of a group: it runs for the samples that its group's router picks it for."""

    def __init__(self, model: "Dense2MoE", site: Site, group: int, place: int) -> None:
        super().__init__()
        self.model, self.site, self.group, self.place = model, site, group, place

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Masked in train mode; in eval mode only those samples are computed."""
        call: BlockCall = self.site.call(args, kwargs)
        if module.training:
            gate = self.model.gates[self.group][:, self.place]  # (B,)
            after = call.run(call.x, None, [1.0])
            out = tuple(
                None if b is None or a is None else gated_output(b, a, gate) for b, a in zip(call.x, after, strict=True)
            )
            if self.place == self.model.options.group - 1:
                self.model.features.append(out[self.site.declared.returns.index(IMAGE)])
        else:
            keep, no = [picked[self.place] for picked in self.model.picked[self.group]], [False] * call.batch
            decision = Decision(keep, no, [1.0] * call.batch, [float(one) for one in keep], no)
            out, _ = run_block(call.x, call.run, decision, FeatureBank(0), 0)
        return call.output(out)


class Dense2MoE(Converted):
    """See the top of the file."""

    options: Dense2MoEOptions

    def __init__(self, transformer: Any, options: Dense2MoEOptions) -> None:
        super().__init__(transformer, options)
        if options.keep >= options.group or options.shared >= PARTS:
            raise ConfigError(
                f"keep < group and shared < {PARTS}, got {options.keep}, {options.group} and {options.shared}"
            )
        backbone = backbone_of(transformer)
        self.gates: list[Tensor] = []
        """Of each group in this forward, (B, N), 0 or 1."""
        self.picked: list[list[list[bool]]] = []
        """The same in eval mode, for the host."""
        self.probs: list[Tensor] = []
        self.features: list[Tensor | None] = []
        self.wanted: list[Tensor] = []
        """In train mode, after each group the image stream (B, T, D), of this model and of the dense one."""
        self.ends: dict[str, tuple[str, ...]] = {}
        """The last block of each group, and the streams that it returns."""
        self.experts: list[Experts] = []
        config, groups = ElasticConfig.of(width_streams=()), 0
        for declared in backbone.blocks:
            blocks = list(transformer.get_submodule(declared.path))
            for place, block in enumerate(blocks):
                site = Site(place, declared, block, config)
                for mlp in [mlp for mlp in declared.mlps if getattr(block, mlp.up.partition(".")[0]) is not None]:
                    self.experts.append(Experts(self, hidden_size(block, mlp), len(self.experts)))
                    for path, kind in ((mlp.up, ExpertUp), (mlp.down, ExpertDown)):
                        make_elastic(block.get_submodule(path), kind, elastic_experts=self.experts[-1])
                if place >= len(blocks) // options.group * options.group:  # the rest of a list always runs
                    continue
                hook = BlockHook(self, site, groups + place // options.group, place % options.group)
                HookRegistry.check_if_exists_or_initialize(block).register_hook(hook, HOOK)
                site.forward = hook.fn_ref.original_forward  # type: ignore[assignment]
                if hook.place == options.group - 1:
                    self.ends[f"{declared.path}.{place}"] = declared.returns
            groups += len(blocks) // options.group
        dim = backbone.dim(transformer)
        routers = nn.Module()
        routers.experts = nn.ModuleList(nn.Linear(dim, experts.count, bias=False) for experts in self.experts)
        routers.blocks = nn.ModuleList(nn.Linear(dim, options.group) for _ in range(groups))
        for router in (*routers.experts, *routers.blocks):
            nn.init.normal_(router.weight, std=1e-3)  # type: ignore[arg-type]
        transformer.add_module(ROUTERS, routers.to(transformer.device))
        embedder = transformer.get_submodule(backbone.timestep_embedder)
        embedder.register_forward_hook(lambda module, inputs, output: self.see(output))

    def begin(self) -> None:
        """A forward of the transformer starts."""
        self.features, self.wanted = [], []

    def see(self, output: Any) -> None:
        """Pick the blocks of each group, by the timestep embedding (B, D), in which FLUX also has the pooled text."""
        temb: Tensor = output[0] if isinstance(output, tuple) else output
        temb = F.silu(temb.float() if temb.ndim == 2 else temb.float().mean(dim=1))
        self.probs = [router(temb).softmax(dim=-1) for router in self.transformer.conversion.blocks]
        training = self.transformer.training
        self.gates = []
        for probs in self.probs:
            hard = torch.zeros_like(probs).scatter(-1, probs.topk(self.options.keep, dim=-1).indices, 1.0)
            if training and self.ramp < 1:
                hard = torch.ones_like(probs)
            self.gates.append(hard + (probs - probs.detach()) if training else hard)
        if not training and self.gates:
            self.picked = torch.stack(self.gates).bool().tolist()  # one wait for all groups

    def follow(self, teacher: nn.Module) -> None:
        """Take the dense model's features after each group."""

        def keep(returns: tuple[str, ...], output: Any) -> None:
            self.wanted.append((output if isinstance(output, tuple) else (output,))[returns.index(IMAGE)].float())

        for path, returns in self.ends.items():
            teacher.get_submodule(path).register_forward_hook(lambda m, i, output, own=returns: keep(own, output))

    def loss(self) -> BudgetLoss:
        """The imbalance of experts and of blocks, and what the features after each group are off by."""
        experts = torch.stack([each.imbalance() for each in self.experts]).mean()
        zero = experts.new_zeros(())
        blocks = [imbalance(gates.detach(), probs) for gates, probs in zip(self.gates, self.probs, strict=True)]
        balance = experts + (torch.stack(blocks).mean() if blocks else zero)
        pairs = zip(self.features, self.wanted, strict=False)
        off = [(own - dense).square().mean() / dense.square().mean() for own, dense in pairs if own is not None]
        features = torch.stack(off).mean() if off and self.ramp >= 1 else zero
        total = self.options.balance * balance + self.options.features * features
        logs = {"experts/imbalance": experts, "features_loss": features, "budget_loss": total}
        return BudgetLoss(total, {name: float(value.detach()) for name, value in logs.items()})


conversions.add(
    "dense2moe",
    Conversion(
        name="dense2moe",
        about="MLPs become a shared and routed experts; of each group of blocks a router picks those that run.",
        source="arXiv 2510.09094; written here after its abstract and what is published about it",
        options=Dense2MoEOptions,
        convert=Dense2MoE,
    ),
)
