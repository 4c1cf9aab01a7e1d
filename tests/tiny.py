"""Small random transformers, their inputs over several steps, and routers that disagree."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from elastic_dit import ElasticConfig, ElasticModel, elasticize
from elastic_dit.backbones import Backbone
from elastic_dit.core.router import Router, RouterOutput

Inputs = dict[str, Any]
FALL = 0.85
"""Share of a timestep that is left after one step."""


class Tiny:
    """A backbone's small transformer, with no parameter at zero: a zero would hide a mistake."""

    def __init__(self, backbone: Backbone, seed: int = 0) -> None:
        assert backbone.tiny is not None, f"backbone {backbone.name!r} has no tiny()"
        torch.manual_seed(seed)
        self.backbone = backbone
        self.transformer, self._inputs = backbone.tiny()
        self.transformer.eval()
        with torch.no_grad():
            for parameter in self.transformer.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.1)
        self.dense = copy.deepcopy(self.transformer)

    @property
    def blocks(self) -> int:
        return len(self.backbone.sites(self.transformer))

    def inputs(self, batch: int = 2, seed: int = 0, size: int = 4) -> Inputs:
        return self._inputs(batch, seed=seed, size=size)

    def steps(self, batch: int, count: int, seed: int = 0) -> list[Inputs]:
        """Inputs of a run: the timestep falls, the latents change, the rest stays."""
        first = self.inputs(batch, seed)
        steps = []
        for step in range(count):
            inputs = dict(first)
            inputs["timestep"] = (first["timestep"] * FALL**step).to(first["timestep"].dtype)
            if step:
                other = self.inputs(batch, seed + 100 * step)["hidden_states"]
                inputs["hidden_states"] = 0.8 * first["hidden_states"] + 0.6 * other
            steps.append(inputs)
        return steps

    def row(self, inputs: Inputs, row: int) -> Inputs:
        """The inputs of one sample of a batch."""
        one, two = self.inputs(1), self.inputs(2)
        batched = [name for name in two if _length(one[name]) != _length(two[name])]
        return {name: value[row : row + 1] if name in batched else value for name, value in inputs.items()}


class TinyElastic(Tiny):
    """An elastic tiny transformer with mixed routes."""

    def __init__(self, tiny: Tiny, config: ElasticConfig | None = None, seed: int = 0) -> None:
        self.backbone, self.transformer, self.dense = tiny.backbone, tiny.transformer, tiny.dense
        self._inputs = tiny._inputs
        self.elastic: ElasticModel = elasticize(self.transformer, config or mixed_config())
        scatter_routers(self.elastic, self.inputs(6, seed=11), seed)
        self._config = self.elastic.config.model_copy()
        self._routers = copy.deepcopy(self.elastic.stack.state_dict())

    def as_new(self) -> None:
        """Undo what a test set."""
        for name, value in self._config:
            setattr(self.elastic.config, name, value)
        self.elastic.stack.load_state_dict(self._routers)
        self.elastic.stack.zero_grad(set_to_none=True)
        self.transformer.zero_grad(set_to_none=True)
        self.elastic.force(None)
        self.elastic.eval_mode()


def mixed_config(**changes: Any) -> ElasticConfig:
    """Random routers and a wide band, so that skipping, reuse and all widths happen."""
    values: dict[str, Any] = {"init": "random", "delta": 0.3, "max_reuse": 2, "router_hidden_size": 16}
    return ElasticConfig.of(**values | {"modulation_rank": 8} | changes)


@torch.no_grad()
def scatter_routers(elastic: ElasticModel, inputs: Inputs, seed: int = 0) -> None:
    """Scale and shift each router's heads so that on `inputs` its logits have mean 0 and deviation 1.

    About half the samples are then open at each block, and each width has its share.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in elastic.stack.parameters():
        parameter.normal_(std=0.3, generator=generator)

    def spread(router: Router, _: Any, output: RouterOutput) -> RouterOutput:
        result = []
        for head, logits in ((router.gate_head, output.gate_logit), (router.width_head, output.width_logits)):
            mean, deviation = logits.mean(dim=0), logits.std(dim=0).clamp(min=1e-4)
            head.weight.div_(deviation.reshape(-1, 1))
            head.bias.copy_((head.bias - mean) / deviation)
            result.append((logits - mean) / deviation)
        return RouterOutput(*result)

    handles = [router.register_forward_hook(spread) for router in elastic.routers]
    elastic.train_mode()
    elastic.transformer(**inputs)
    elastic.eval_mode()
    for handle in handles:
        handle.remove()


@torch.no_grad()
def output_of(transformer: nn.Module, inputs: Inputs) -> Tensor:
    """The transformer's prediction."""
    return transformer(**inputs, return_dict=False)[0]


def run(transformer: nn.Module, steps: list[Inputs]) -> list[Tensor]:
    """The predictions of a run, step by step."""
    return [output_of(transformer, inputs) for inputs in steps]


@contextmanager
def in_dtype(dtype: torch.dtype, *modules: nn.Module) -> Iterator[None]:
    """Modules in a dtype, and afterwards with the values they had, in buffers that no state dict has as well."""
    tensors = [tensor for module in modules for tensor in chain(module.parameters(), module.buffers())]
    values = [tensor.detach().clone() for tensor in tensors]
    for module in modules:
        module.to(dtype)
    try:
        yield
    finally:
        for module in modules:
            module.float()
        now = (tensor for module in modules for tensor in chain(module.parameters(), module.buffers()))
        for tensor, value in zip(now, values, strict=True):
            tensor.data = value


def to_dtype(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Inputs with their floating-point tensors in a dtype, the timestep apart."""
    return {
        name: value.to(dtype)
        if isinstance(value, Tensor) and value.is_floating_point() and name != "timestep"
        else value
        for name, value in inputs.items()
    }


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, list) or (isinstance(value, Tensor) and value.ndim) else None
