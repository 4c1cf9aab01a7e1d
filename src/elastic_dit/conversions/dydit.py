"""DyDiT (arXiv 2410.03456; for FLUX, DyDiT++, arXiv 2504.06803): widths follow the timestep, and tokens pass MLPs by.

Timestep-wise dynamic width: from the timestep's embedding alone, each block chooses its attention heads and the
channel groups of its MLPs. Spatial-wise dynamic token: each MLP chooses the image tokens that it is computed for.

As in the papers and the authors' code: Gumbel-sigmoid of temperature 5 with hard straight-through gates; all of them
open at the start, by a bias of 5; the most important head and group always on; at least a tenth of the tokens; loss
2 (FLOPs - budget)^2, the budget ramped; in FLUX's single blocks a token that passes by leaves attention's output out
too. Ours: the noise ends when the budget has come down, so that the backbone learns the routes that it will run; a
token is judged by the MLP's input, which the timestep has modulated, without the mean of the text beside it (DyDiT++'s
addition); heads are kept by their order, and chosen only in FLUX and Qwen-Image, whose attention counts its heads by
what arrives.

B batch, T tokens, D model width, F MLP hidden width, H heads or groups.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding
from pydantic import Field
from torch import Tensor, nn

from elastic_dit.backbones.base import IMAGE, backbone_of
from elastic_dit.conversions.base import ROUTERS, Conversion, Converted, Options, conversions
from elastic_dit.conversions.dydit_layers import AttentionInput, AttentionOutput, Channels, Down, Heads, Up, Width
from elastic_dit.core.objective import BudgetLoss
from elastic_dit.engine.linear import make_elastic
from elastic_dit.engine.site import hidden_size
from elastic_dit.errors import BackboneError

TEMPERATURE = 5.0
"""Of the Gumbel-sigmoid."""
OPEN = 5.0
"""Bias of all gates at the start."""
FEWEST_TOKENS = 0.1
"""Share of the tokens below which an MLP is held not to fall."""
HEADED = ("flux", "qwen-image")
"""Backbones whose attention counts its heads by what arrives."""
INPUTS, OUTPUTS = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj"), ("to_out.0", "to_add_out")
"""Projections of diffusers' attention, where they are there."""


class DyDiTOptions(Options):
    """DyDiT's options."""

    budget: float = Field(default=0.5, gt=0, le=1)
    """Share of the dense transformer's FLOPs to spend."""
    tokens: bool = True
    """Whether MLPs choose their tokens."""
    weight: float = Field(default=2.0, ge=0)
    """Of the budget's loss."""


def gumbel_sigmoid(logits: Tensor, noisy: bool, generator: torch.Generator | None = None) -> Tensor:
    """0 or 1, with the gradient of sigmoid((logit + logistic noise) / temperature); without noise, logit > 0."""
    if noisy:
        uniform = torch.rand(logits.shape, generator=generator).to(logits).clamp(1e-6, 1 - 1e-6)
        logits = logits + uniform.log() - (-uniform).log1p()
    soft = (logits / TEMPERATURE).sigmoid()
    return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())  # in this order: 0 and 1 to the bit


class DyDiT(Converted):
    """See the top of the file."""

    options: DyDiTOptions

    def __init__(self, transformer: Any, options: DyDiTOptions) -> None:
        super().__init__(transformer, options)
        backbone = backbone_of(transformer)
        embedder = transformer.get_submodule(backbone.timestep_embedder)
        timesteps = [module for module in embedder.modules() if isinstance(module, TimestepEmbedding)]
        if not timesteps:
            raise BackboneError(f"DyDiT reads the timestep's embedding alone; {type(embedder).__name__} has none")
        timesteps[0].register_forward_hook(self._see)
        self.saved: list[Tensor] = []
        """FLOPs that each decision of this forward leaves out, by sample (B,), where all is computed and masked."""
        self.slicing = True
        """In eval mode, compute nothing that is left out. Where rows differ in width it is masked all the same."""
        self.image_tokens: int | None = None
        self.widths: list[Width] = []
        dim, heads, gates = backbone.dim(transformer), transformer.config.num_attention_heads, 0
        for declared, block in backbone.sites(transformer):
            attention = self._attention(block, heads, dim) if backbone.name in HEADED else None
            for mlp in [mlp for mlp in declared.mlps if getattr(block, mlp.up.partition(".")[0]) is not None]:
                channels = Channels(heads, hidden_size(block, mlp))
                self.widths.append(channels)
                up, down = block.get_submodule(mlp.up), block.get_submodule(mlp.down)
                make_elastic(up, Up, elastic_owner=self, elastic_channels=channels)
                own = attention if down.in_features > channels.channels else None  # type: ignore[operator]
                make_elastic(down, Down, elastic_owner=self, elastic_channels=channels, elastic_heads=own)
                if options.tokens and mlp.stream == "image":
                    channels.gate, gates = gates, gates + 1
        routers = nn.Module()
        routers.width = nn.Linear(dim, sum(width.count for width in self.widths))
        routers.tokens = nn.ModuleList(nn.Linear(dim, 1) for _ in range(gates))
        for gate in (routers.width, *routers.tokens):
            nn.init.normal_(gate.weight, std=1e-3)  # type: ignore[arg-type]
            nn.init.constant_(gate.bias, OPEN)  # type: ignore[arg-type]
        transformer.add_module(ROUTERS, routers.to(transformer.device))
        transformer.register_forward_pre_hook(self._count_tokens, with_kwargs=True)

    def _attention(self, block: Any, count: int, dim: int) -> Heads:
        heads = Heads(count, dim)
        self.widths.append(heads)
        for names, kind in ((INPUTS, AttentionInput), (OUTPUTS, AttentionOutput)):
            for name in names:
                try:
                    layer = block.attn.get_submodule(name)
                except AttributeError:  # single streams have no text, and FLUX's leave through the MLP's projection
                    continue
                counts = {"elastic_counts": name in ("to_q", "add_q_proj")} if names is INPUTS else {}
                make_elastic(layer, kind, elastic_owner=self, elastic_heads=heads, **counts)
        return heads

    def begin(self) -> None:
        """A forward of the transformer starts."""
        self.saved = []
        for width in self.widths:
            if isinstance(width, Heads):
                width.tokens = 0

    def _count_tokens(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        image: Tensor = kwargs[IMAGE] if IMAGE in kwargs else args[0]
        self.image_tokens = image.shape[1] if image.ndim == 3 else None

    def _see(self, module: nn.Module, inputs: Any, temb: Tensor) -> None:
        """Choose all heads and channel groups of this forward by the timestep's embedding (B, D)."""
        logits = self.transformer.conversion.width(F.silu(temb.float()))
        gates = gumbel_sigmoid(logits, self.noisy, self.generator)  # (B, all H)
        counts = [width.count for width in self.widths]
        masks = [torch.cat([torch.ones_like(own[:, :1]), own[:, 1:]], dim=-1) for own in gates.split(counts, dim=-1)]
        on: list[bool] = []
        if self.slicing and not self.transformer.training:
            alike = (gates == gates[:1]).all().unsqueeze(0)
            same, *on = torch.cat([alike, *(mask[0].bool() for mask in masks)]).tolist()  # one wait for all widths
            on = on if same else []
        for width, mask in zip(self.widths, masks, strict=True):
            width.set(mask, on[: width.count] if on else None)
            on = on[width.count :]

    @property
    def noisy(self) -> bool:
        """Whether gates are drawn: in training, until the budget has come down."""
        return self.transformer.training and self.ramp < 1

    def choose_tokens(self, channels: Channels, x: Tensor) -> None:
        """Choose the tokens that an MLP is computed for, by its input (B, T, D)."""
        if channels.gate is None:
            channels.tokens = x.new_ones(1, x.shape[1], 1, dtype=torch.float32)
            return
        channels.text = 0 if self.image_tokens is None else x.shape[1] - self.image_tokens
        always = x.new_ones(len(x), channels.text, 1, dtype=torch.float32)
        logits = self.transformer.conversion.tokens[channels.gate](x[:, channels.text :].float())
        gates = gumbel_sigmoid(logits, self.noisy, self.generator)
        channels.tokens = torch.cat([always, gates], dim=1)
        if channels.kept is not None:
            channels.places = channels.tokens.flatten().nonzero().squeeze(-1)

    def share(self) -> Tensor:
        """FLOPs of the last forward, which was masked, of the dense transformer's, by sample (B,)."""
        return 1 - torch.stack(self.saved).sum(dim=0) / self.dense_flops

    def save(self, layer: nn.Linear, tokens: int, share: Tensor) -> None:
        """Note that a share (B,) of a projection's FLOPs is left out."""
        self.saved.append(2.0 * tokens * layer.weight.numel() * share)

    def save_attention(self, heads: Heads, queries: int) -> None:
        """Note what heads that are off save in the two products of attention."""
        self.saved.append(4.0 * queries * heads.tokens * heads.channels * (1 - heads.share))

    def loss(self) -> BudgetLoss:
        """2 (mean share of FLOPs - budget)^2, and what an MLP falls below a tenth of its tokens."""
        share = self.share()
        mlps = [width for width in self.widths if isinstance(width, Channels)]
        tokens = torch.stack([mlp.token_share.mean() for mlp in mlps])
        target = 1 + (self.options.budget - 1) * self.ramp
        loss = self.options.weight * (share.mean() - target).square() + (FEWEST_TOKENS - tokens).clamp(min=0).sum()
        heads = [width.share.mean() for width in self.widths if isinstance(width, Heads)] or [torch.ones(())]
        logs = {
            "budget_loss": loss,
            "flops/share": share.mean(),
            "flops/std": share.std(correction=0),
            "heads/mean": torch.stack(heads).mean(),
            "width/mean": torch.stack([mlp.share.mean() for mlp in mlps]).mean(),
            "tokens/mean": tokens.mean(),
        }
        return BudgetLoss(loss, {name: float(value.detach()) for name, value in logs.items()})


conversions.add(
    "dydit",
    Conversion(
        name="dydit",
        about="Chooses heads and MLP channel groups by the timestep, and the tokens that each MLP is computed for.",
        source="arXiv 2410.03456 and 2504.06803; written here after the papers and the authors' released code",
        options=DyDiTOptions,
        convert=DyDiT,
        routable=True,
    ),
)
