"""A conversion changes a dense transformer into one that decides for itself what to compute, and is trained as a whole.

To add one, write a file beside this one that registers a `Conversion`; the contract tests pick it up, and so do
`elastic-dit train` (`conversion: {method: NAME}`) and `elastic-dit judge images --adapter FOLDER`.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from elastic_dit.checkpoint import base_name, fingerprint
from elastic_dit.config import explain
from elastic_dit.core.cost import count_flops
from elastic_dit.core.objective import BudgetLoss
from elastic_dit.errors import CheckpointError, ConfigError
from elastic_dit.files import replaced_folder
from elastic_dit.registry import Registry

CONVERSION_NAME, WEIGHTS_NAME = "conversion.json", "model.safetensors"
ROUTERS = "conversion"
"""The submodule of a converted transformer that holds what decides."""
ROUTES = "routes"
"""In the folder of a converted transformer: the adapter that decides which of its blocks run, if one was trained."""


class Options(BaseModel):
    """What a method can be told; each has its own."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Converted(ABC):
    """A converted transformer, its routers below `transformer.conversion`.

    In train mode everything is computed and decisions are masks that have gradients; in eval mode nothing is
    computed that a decision leaves out.
    """

    def __init__(self, transformer: Any, options: Any) -> None:
        self.transformer, self.options = transformer, options
        self.about: dict[str, Any] = {}
        """What it was made from, and with which options: `conversion.json`."""
        self.dense_flops = 0.0
        """Of one sample, once `price` was called."""
        self.ramp = 1.0
        """0..1, how far training has gone from the dense model to the budget."""
        self.generator: torch.Generator | None = None
        """Of what is random in training; None: torch's own."""
        transformer.register_forward_pre_hook(lambda *_: self.begin())

    @abstractmethod
    def begin(self) -> None:
        """A forward of the transformer starts: forget the last one."""

    def price(self, dense: nn.Module, inputs: dict[str, Any]) -> None:
        """Count what the dense transformer spends on one sample of these inputs."""
        self.dense_flops = count_flops(lambda: dense(**inputs)) / len(inputs["hidden_states"])

    def follow(self, teacher: nn.Module) -> None:  # noqa: B027  most methods look at nothing
        """Look at the dense model as it runs, for methods that learn from what is inside it."""

    @abstractmethod
    def loss(self) -> BudgetLoss:
        """What the method adds to the training loss after a forward in train mode."""


@dataclass(frozen=True)
class Conversion:
    """One method."""

    name: str
    about: str
    """What it does, in one sentence."""
    source: str
    """Where it is published, and whose implementation runs here."""
    options: type[Options]
    """What it can be told, with defaults."""
    convert: Callable[[Any, Any], Converted]
    """(transformer, options): change a dense transformer in place; its MLP channels are in order of importance."""
    routable: bool = False
    """Whether its blocks may run on some rows of a batch, so that routers can decide which."""


conversions: Registry[Conversion] = Registry("conversion", "elastic_dit.conversions")


def read_options(values: dict[str, Any]) -> tuple[Conversion, Options]:
    """The method and its options from `{method: NAME, ...}`.

    Raises:
        ConfigError: no method, an unknown option or a bad value.
        UnknownNameError: no such method.
    """
    if "method" not in values:
        raise ConfigError(f"a conversion needs a `method`; known: {', '.join(conversions)}")
    method = conversions[str(values["method"])]
    try:
        return method, method.options.model_validate({k: v for k, v in values.items() if k != "method"})
    except ValidationError as error:
        raise ConfigError(f"conversion {method.name}: {explain(error, method.options)}") from error


def convert(transformer: Any, values: dict[str, Any]) -> Converted:
    """Convert a dense transformer in place; see `read_options` for the values and what is raised."""
    method, options = read_options(values)
    base = {"base_model": base_name(transformer), "base_fingerprint": fingerprint(transformer)}
    converted = method.convert(transformer, options)
    converted.about = base | values
    return converted


def save_converted(folder: Path, converted: Converted, dtype: torch.dtype | None = None) -> Path:
    """Write a converted transformer, whole or not at all: `conversion.json` and all weights.

    Args:
        folder: where to.
        converted: what is saved.
        dtype: of the weights; routers stay float32.
    """
    routers = f"{ROUTERS}."
    tensors = {
        name: value.detach().cpu().to(value.dtype if name.startswith(routers) else dtype or value.dtype).contiguous()
        for name, value in converted.transformer.state_dict().items()
    }
    with replaced_folder(folder) as temporary:
        (temporary / CONVERSION_NAME).write_text(json.dumps(converted.about, indent=2) + "\n")
        save_file(tensors, temporary / WEIGHTS_NAME)
    return folder


def is_converted(folder: str | Path) -> bool:
    """Whether `save_converted` wrote this folder."""
    return (Path(folder) / CONVERSION_NAME).is_file()


def load_converted(transformer: Any, folder: Path) -> Converted:
    """Convert a dense transformer in place into what `save_converted` wrote, in eval mode.

    Raises:
        CheckpointError: no such folder, damaged, or made from another base model.
    """
    try:
        values = json.loads((folder / CONVERSION_NAME).read_text())
        tensors = load_file(folder / WEIGHTS_NAME)
    except (OSError, json.JSONDecodeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} holds no converted transformer: {error}") from error
    base, expected = values.pop("base_model", None), values.pop("base_fingerprint", None)
    if expected != fingerprint(transformer):
        raise CheckpointError(f"{folder} was made from {base!r}, whose weights have other shapes than this transformer")
    converted = convert(transformer, values)
    try:
        transformer.eval().load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"the weights in {folder} do not fit its {CONVERSION_NAME}: {error}") from error
    return converted
