"""The adapter folder: `elastic_config.json` beside `elastic_model.safetensors`.

The tensors are the routers' (`routers.*`) and what training changed in the backbone: weights
(`transformer.*`) or a LoRA (`lora.*`). The JSON names the base model and a fingerprint of its shapes.
`calibration.json` joins them once it has been measured. Other files in the folder are left alone.
"""

import hashlib
import json
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from elastic_dit.calibration import CALIBRATION_NAME, Calibration
from elastic_dit.config import CONFIG_NAME, ElasticConfig, explain
from elastic_dit.core.router_stack import RouterStack
from elastic_dit.errors import CheckpointError
from elastic_dit.files import replaced_files
from elastic_dit.lora import add_lora, lora_to_save, remove_lora

WEIGHTS_NAME = "elastic_model.safetensors"
FILES = (WEIGHTS_NAME, CALIBRATION_NAME, CONFIG_NAME)
FORMAT = 1
"""Of the adapters written here, and the newest that is read."""
CASTS = (torch.float32, torch.bfloat16, torch.float16)
"""What a transformer is cast to."""
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By bytes."""
PIECE = 2**16
"""So many values are summed at a time on a CPU, where their integers stay in the cache."""

Checksum = tuple[int, int]


class AdapterCard(BaseModel):
    """`elastic_config.json`."""

    model_config = ConfigDict(extra="forbid")

    format: int = FORMAT
    base_model: str
    base_fingerprint: str
    lora: dict[str, Any] | None = None
    elastic: ElasticConfig


class _Format(BaseModel):
    format: int = FORMAT


@dataclass(frozen=True)
class Adapter:
    """An adapter folder in memory."""

    card: AdapterCard
    tensors: dict[str, Tensor]
    calibration: Calibration | None = None

    @property
    def config(self) -> ElasticConfig:
        """How the routers are built and used."""
        return self.card.elastic

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {k.removeprefix(f"{name}."): v for k, v in self.tensors.items() if k.startswith(f"{name}.")}


@dataclass
class ChangedWeights:
    """Which backbone weights differ from the base model's: by training here, or by an adapter loaded.

    A cast of the whole model (`pipe.to(torch.bfloat16)`) is no change: a weight is compared with what the base model's
    is in the weight's dtype of now. One that went through a coarser dtype and back is changed, and so is one in a dtype
    that is neither its first nor one of `CASTS`.
    """

    sums: dict[str, dict[torch.dtype, Checksum]] = field(default_factory=dict[str, dict[torch.dtype, Checksum]])
    """Of each weight as it was, by the dtype that it may be cast to."""
    originals: dict[str, nn.Parameter] = field(default_factory=dict[str, nn.Parameter])
    lora: bool = False
    dtype: torch.dtype | None = None
    """What the weights of a loaded adapter are stored in."""

    def watch(self, transformer: nn.Module) -> None:
        """Remember checksums of all weights, once, before anything changes them."""
        if not self.sums:
            self.sums = {
                name: {dtype: _checksum(value, dtype) for dtype in {value.dtype, *CASTS}}
                for name, value in _base_parameters(transformer).items()
            }

    def changed(self, transformer: nn.Module) -> dict[str, Tensor]:
        """Weights that are no longer the base model's."""
        return {
            name: value.detach()
            for name, value in _base_parameters(transformer).items()
            if name in self.originals or (name in self.sums and self._differs(value, self.sums[name]))
        }

    def _differs(self, value: Tensor, sums: dict[torch.dtype, Checksum]) -> bool:
        return value.dtype not in sums or _checksum(value, value.dtype) != sums[value.dtype]

    def replace(self, transformer: nn.Module, values: dict[str, Tensor]) -> None:
        """Put other weights in, keeping the base model's (in host memory)."""
        parameters = _base_parameters(transformer)
        for name, value in values.items():
            self.dtype = value.dtype
            old = parameters[name]
            self.originals[name] = nn.Parameter(old.detach().to("cpu"), requires_grad=old.requires_grad)
            old_like = value.to(old.device, old.dtype)
            _assign(transformer, name, nn.Parameter(old_like, requires_grad=old.requires_grad))

    def put_back(self, transformer: Any) -> None:
        """Undo what loading an adapter did; the weights come back in the dtype and on the device of today."""
        parameters = _base_parameters(transformer)
        for name, original in self.originals.items():
            now = parameters[name]
            like_now = original.to(now.device, now.dtype)
            _assign(transformer, name, nn.Parameter(like_now, requires_grad=original.requires_grad))
        self.originals.clear()
        if self.lora:
            remove_lora(transformer)
            self.lora = False


def save(
    folder: Path,
    transformer: Any,
    stack: RouterStack,
    config: ElasticConfig,
    weights: ChangedWeights,
    dtype: torch.dtype | None = None,
    calibration: Calibration | None = None,
) -> Path:
    """Write an adapter's files into a folder, all or none; returns it. See `ElasticModel.save`."""
    tensors = {f"routers.{name}": value for name, value in stack.state_dict().items()}
    for name, value in weights.changed(transformer).items():
        tensors[f"transformer.{name}"] = value.to(dtype or value.dtype)
    lora: dict[str, Any] | None = None
    if chosen := lora_to_save(transformer):
        from peft import get_peft_model_state_dict

        state = get_peft_model_state_dict(transformer, adapter_name=chosen)
        tensors |= {f"lora.{name}": value.to(dtype or value.dtype) for name, value in state.items()}
        lora = json.loads(json.dumps(transformer.peft_config[chosen].to_dict(), default=_plain))
    card = AdapterCard(
        base_model=base_name(transformer),
        base_fingerprint=fingerprint(transformer),
        lora=lora,
        elastic=config,
    )
    with replaced_files(folder, FILES) as temporary:
        (temporary / CONFIG_NAME).write_text(card.model_dump_json(indent=2) + "\n")
        save_file({n: v.detach().cpu().contiguous() for n, v in tensors.items()}, temporary / WEIGHTS_NAME)
        if calibration is not None:
            calibration.write(temporary)
    return folder


def read(folder_or_hub_id: str | Path) -> Adapter:
    """Read an adapter folder, or download one from the Hub.

    Raises:
        CheckpointError: there is none, a file is damaged, or the config has unknown keys or a newer format.
    """
    folder = local_folder(folder_or_hub_id)
    config, weights = folder / CONFIG_NAME, folder / WEIGHTS_NAME
    for file in (config, weights):
        if not file.is_file():
            raise CheckpointError(f"{folder} has no {file.name}; expected an adapter folder written by `save`")
    try:
        return Adapter(_read_card(config), load_file(weights), Calibration.read(folder))
    except ValidationError as error:
        raise CheckpointError(f"{config}: {explain(error, ElasticConfig)}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{weights} is damaged: {error}") from error


def check_base(transformer: Any, adapter: Adapter) -> None:
    """Refuse a base model whose shapes are not those the adapter was made for.

    Raises:
        CheckpointError: says which model was expected.
    """
    found = fingerprint(transformer)
    if found != adapter.card.base_fingerprint:
        raise CheckpointError(
            f"this adapter is for {adapter.card.base_model!r} (fingerprint {adapter.card.base_fingerprint[:12]}), but "
            f"the transformer is {base_name(transformer)!r} (fingerprint {found[:12]}), whose weights have other shapes"
        )


def apply(transformer: Any, stack: RouterStack, weights: ChangedWeights, adapter: Adapter) -> None:
    """Load an adapter's tensors into routers and backbone.

    Raises:
        CheckpointError: tensors are missing, left over or of other shapes; `weights.put_back` then undoes the rest.
    """
    try:
        stack.load_state_dict(adapter.part("routers"))
    except RuntimeError as error:
        raise CheckpointError(f"the routers in the adapter do not fit its config: {error}") from error
    values = adapter.part("transformer")
    parameters = _base_parameters(transformer)
    if bad := [n for n, v in values.items() if n not in parameters or parameters[n].shape != v.shape]:
        raise CheckpointError(f"the adapter has weights the transformer has not: {', '.join(bad[:3])}")
    weights.replace(transformer, values)
    if adapter.card.lora is None:
        if left := adapter.part("lora"):
            raise CheckpointError(f"the adapter's config names no LoRA, but there are tensors of one: {min(left)}")
        return
    known = {name: value for name, value in adapter.card.lora.items() if value is not None}
    add_lora(transformer, known, adapter.part("lora"))
    weights.lora = True


def fingerprint(transformer: nn.Module) -> str:
    """Hash of the names and shapes of the base weights; a LoRA does not change it."""
    shapes = sorted((name, tuple(value.shape)) for name, value in _base_parameters(transformer).items())
    return hashlib.sha256(repr(shapes).encode()).hexdigest()


def digest(module: nn.Module) -> str:
    """Hash of the weights themselves, on whatever device they are."""
    hashed = hashlib.sha256()
    for name, value in module.state_dict().items():
        hashed.update(name.encode())
        hashed.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return hashed.hexdigest()


def base_name(transformer: Any) -> str:
    """The base model's Hub id or folder name, as diffusers remembers it, or its class."""
    name = str(transformer.config.get("_name_or_path") or type(transformer).__name__)
    path = Path(name)
    if path.is_absolute() or path.exists():  # a folder here: its place on this machine tells nobody anything
        return path.parent.name if path.name == "transformer" else path.name
    return name


def local_folder(folder_or_hub_id: str | Path) -> Path:
    """An adapter folder, downloaded if it is on the Hub.

    Raises:
        CheckpointError: there is none.
    """
    folder = Path(folder_or_hub_id)
    if folder.is_dir():
        return folder
    name = str(folder_or_hub_id)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"no adapter folder {name}; expected a folder or a Hub id like owner/name")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME, CALIBRATION_NAME]))
    except Exception as error:  # the Hub's errors have no common base
        raise CheckpointError(f"{name} is no folder here and could not be had from the Hub: {error}") from error


def _read_card(file: Path) -> AdapterCard:
    text = file.read_text()
    if (found := _Format.model_validate_json(text).format) > FORMAT:  # its other keys may be unknown here
        raise CheckpointError(
            f"{file} has format {found}, and this elastic-dit reads up to {FORMAT}: install a newer one"
        )
    return AdapterCard.model_validate_json(text)


def _base_parameters(transformer: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters under the names they have without a LoRA."""
    return {
        name.replace(".base_layer.", "."): value
        for name, value in transformer.named_parameters()
        if ".lora_" not in name
    }


def _assign(transformer: nn.Module, name: str, value: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    module = transformer.get_submodule(path)
    setattr(getattr(module, "base_layer", module), leaf, value)


def _checksum(value: Tensor, dtype: torch.dtype) -> Checksum:
    """Two sums over the bits of a tensor in a dtype, one of which minds the order: permuted channels differ.

    They are of integers that wrap, so no device, number of threads or order of adding changes them. The tensor is cast
    and widened a piece at a time; pieces are larger on a GPU, which waits for each.
    """
    flat = value.detach().flatten()
    size = PIECE if flat.device.type == "cpu" else 256 * PIECE
    places = torch.arange(min(size, len(flat)), device=flat.device)
    plain = ordered = torch.zeros((), dtype=torch.int64, device=flat.device)
    for start, piece in zip(count(step=size), flat.split(size), strict=False):
        bits = piece.to(dtype).view(INTEGERS[dtype.itemsize])
        total = bits.sum(dtype=torch.int64)
        plain = plain + total
        ordered = ordered + start * total + (bits * places[: len(bits)]).sum()
    return int(plain), int(ordered)


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
