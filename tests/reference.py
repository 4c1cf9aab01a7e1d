"""The method a second time, as plainly as can be: one sample at a time, dense blocks, no slicing.

Written from the paper's equations to judge the library by; it shares nothing with it but the
backbones' declarations.
"""

import copy
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from elastic_dit import ElasticConfig, ElasticModel
from elastic_dit.backbones import MLP, Backbone, BlockList


class Wish(NamedTuple):
    """What a router or a plan wants at one block, for one sample."""

    keep: bool
    reuse: bool
    width: float


class Action(NamedTuple):
    """What happened: `skip`, `reuse` or `run`, and at which width it ran."""

    what: str
    width: float


class Call(NamedTuple):
    """One call of a block, as seen from outside."""

    step: int
    index: int
    declared: BlockList
    arguments: dict[str, Any]
    temb: Tensor


Choose = Callable[[Call], Wish]
Body = Callable[[int, BlockList, nn.Module, Callable[..., Any], dict[str, Any]], tuple[Any, ...]]


@dataclass
class _Stored:
    residual: list[Tensor | None]
    step: int
    uses: int = 0


class OneSample:
    """Algorithm 1 for one sample on a copy of a dense transformer."""

    def __init__(self, dense: nn.Module, backbone: Backbone, choose: Choose, config: ElasticConfig) -> None:
        self.transformer, self.choose, self.config = copy.deepcopy(dense), choose, config
        self.actions: dict[tuple[int, int], Action] = {}
        self._bank: dict[int, _Stored] = {}
        self._step = 0
        self._temb = torch.empty(0)
        embedder = self.transformer.get_submodule(backbone.timestep_embedder)
        embedder.register_forward_hook(self._remember_temb)
        wrap_blocks(self.transformer, backbone, self._block)

    @torch.no_grad()
    def run(self, steps: list[dict[str, Any]]) -> list[Tensor]:
        """The predictions of a run that starts now."""
        self._bank.clear()
        self.actions.clear()
        outputs = []
        for self._step, inputs in enumerate(steps):
            outputs.append(self.transformer(**inputs, return_dict=False)[0])
        return outputs

    def _block(
        self, index: int, declared: BlockList, block: nn.Module, forward: Callable[..., Any], arguments: dict[str, Any]
    ) -> tuple[Any, ...]:
        x = [arguments[name] for name in declared.returns]
        wish = self.choose(Call(self._step, index, declared, arguments, self._temb))
        if not wish.keep:
            self.actions[self._step, index] = Action("skip", 0.0)
            return tuple(x)
        stored = self._bank.get(index)
        if wish.reuse and stored is not None and self._fresh(stored):
            stored.uses += 1
            self.actions[self._step, index] = Action("reuse", 0.0)
            return tuple(a if r is None else a + r for a, r in zip(x, stored.residual, strict=True))
        there = [mlp for mlp in declared.mlps if getattr(block, mlp.up.split(".")[0]) is not None]
        mlps = [mlp for mlp in there if mlp.stream in self.config.width_streams]
        with zeroed_channels(block, mlps, wish.width):
            out = forward(**arguments)
        out = out if isinstance(out, tuple) else (out,)
        residual = [None if b is None else b - a for a, b in zip(x, out, strict=True)]
        self._bank[index] = _Stored(residual, self._step)
        self.actions[self._step, index] = Action("run", wish.width)
        return out

    def _fresh(self, stored: _Stored) -> bool:
        age = self._step - stored.step
        young = self.config.max_age is None or age <= self.config.max_age
        return young and stored.uses < self.config.max_reuse

    def _remember_temb(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self._temb = output[0] if isinstance(output, tuple) else output


def wrap_blocks(transformer: nn.Module, backbone: Backbone, body: Body) -> None:
    """Have every block's forward go through `body`, which gets the arguments by name and the true forward."""
    for index, (declared, block) in enumerate(backbone.sites(transformer)):
        _wrap(index, declared, block, body)


def _wrap(index: int, declared: BlockList, block: nn.Module, body: Body) -> None:
    original = block.forward
    names = list(inspect.signature(original).parameters)

    def forward(*args: Any, **kwargs: Any) -> Any:
        out = body(index, declared, block, original, dict(zip(names, args, strict=False)) | kwargs)
        return out if len(out) > 1 else out[0]

    block.forward = forward


@contextmanager
def zeroed_channels(block: nn.Module, mlps: list[MLP], ratio: float) -> Iterator[None]:
    """A block whose hidden channels beyond the first share count for nothing; columns before them stay."""
    kept: list[tuple[nn.Parameter, Tensor]] = []
    for mlp in mlps:
        up, down = block.get_submodule(mlp.up), block.get_submodule(mlp.down)
        hidden = up.weight.shape[0] // (2 if mlp.gated else 1)
        others = down.weight.shape[1] - hidden
        kept.append((down.weight, down.weight.detach().clone()))
        with torch.no_grad():
            down.weight[:, others + round(ratio * hidden) :] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, value in kept:
                weight.copy_(value)


def router_logits(
    weights: dict[str, Tensor], index: int, config: ElasticConfig, tokens: Tensor, temb: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 4-6 for one sample, token by token: gate logit () and width logits (S,).

    Args:
        weights: the state dict of all routers.
        index: which router.
        config: activation and modulation.
        tokens: those that count, (T, D).
        temb: timestep embedding, (C,).
    """
    own = {name.removeprefix(f"routers.{index}."): w for name, w in weights.items() if f"routers.{index}." in name}
    time = temb.float() * torch.sigmoid(temb.float())
    if config.modulation == "low_rank":
        time = weights["condition.trunk.weight"] @ time + weights["condition.trunk.bias"]
    scale_and_shift = own["modulation.weight"] @ time + own["modulation.bias"]
    dim = tokens.shape[-1]
    gamma, delta = scale_and_shift[:dim], scale_and_shift[dim:]
    gates, widths = [], []
    for token in tokens.float():
        centred = token - token.mean()
        normed = centred / (centred.square().mean() + 1e-6).sqrt()
        pre = own["proj.weight"] @ ((1 + gamma) * normed + delta) + own["proj.bias"]  # Eq. 4, 5
        h = {"relu": pre.clamp(min=0), "silu": pre * torch.sigmoid(pre), "gelu": nn.functional.gelu(pre)}
        h = h[config.router_activation]
        gates.append(own["gate_head.weight"][0] @ h + own["gate_head.bias"][0])
        widths.append(own["width_head.weight"] @ h + own["width_head.bias"])
    return torch.stack(gates).mean(), torch.stack(widths).mean(dim=0)  # Eq. 6


def router_tokens(backbone: Backbone, config: ElasticConfig, call: Call) -> Tensor:
    """The tokens (T, D) of one sample that its router averages over."""
    image = call.arguments["hidden_states"][0]
    if config.router_input == "timestep":
        return torch.zeros(1, image.shape[-1])  # whose LN is zero too: (1 + gamma) 0 + delta
    if config.router_input == "image" or "encoder_hidden_states" not in call.declared.returns:
        return image
    text = call.arguments["encoder_hidden_states"][0]
    if backbone.text_mask and call.arguments.get(backbone.text_mask) is not None:
        text = text[call.arguments[backbone.text_mask][0].bool()]
    return torch.cat([image, text])


def by_routers(weights: dict[str, Tensor], backbone: Backbone, config: ElasticConfig) -> Choose:
    """Eq. 10, 12 and Algorithm 1's band, by the routers' weights."""
    calls: dict[tuple[int, int], Call] = {}

    def choose(call: Call) -> Wish:
        calls[call.step, call.index] = call
        late = min(config.decision_lag, call.step)
        read = calls[call.step - late, max(call.index - config.decide_ahead, 0)]
        temb, then = (one[0] if one.ndim == 2 else one[0].float().mean(dim=0) for one in (call.temb, read.temb))
        tokens = router_tokens(backbone, config, read)
        gate, widths = router_logits(weights, call.index, config, tokens, then)
        if late:  # what the timestep alone has changed since
            for sign, time in ((1, temb), (-1, then)):
                blind = router_logits(weights, call.index, config, torch.zeros(1, tokens.shape[-1]), time)
                gate, widths = gate + sign * blind[0], widths + sign * blind[1]
        p = float(1 / (1 + torch.exp(-gate)))
        if call.index in config.always_open:
            p = 1.0
        band = config.tau <= p <= config.tau + config.delta and call.step >= config.reuse_from_step
        return Wish(p >= config.tau, band, config.width_ratios[int(widths.argmax())])

    return choose


def assert_each_alone(
    elastic: ElasticModel, dense: nn.Module, runs: list[list[dict[str, Any]]], outputs: list[Tensor]
) -> None:
    """What a batch's routers made of it is what the equations make of each sample alone.

    Args:
        elastic: the handle.
        dense: the transformer without it.
        runs: the inputs of each sample, step by step.
        outputs: of the batch, step by step.
    """
    for row, steps in enumerate(runs):
        choose = by_routers(elastic.stack.state_dict(), elastic.backbone, elastic.config)
        alone = OneSample(dense, elastic.backbone, choose, elastic.config)
        for mine, one in zip(outputs, alone.run(steps), strict=True):
            torch.testing.assert_close(mine[row : row + 1], one, rtol=1e-3, atol=1e-4)
