"""Load a pipeline by folder or Hub id, ours or any of diffusers'."""

import json
import textwrap
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from elastic_dit.errors import CheckpointError
from elastic_dit.models.emoji_flux import EmojiFluxPipeline

INDEX = "model_index.json"


def load_pipeline(model: str | Path, dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """A diffusers pipeline.

    Args:
        model: a pipeline folder or a Hub id.
        dtype: of its weights; None is float32.
        device: where to put it; None leaves it on the CPU.

    Raises:
        CheckpointError: neither a pipeline folder nor to be had from the Hub.
    """
    ours = pipeline_index(model).get("_class_name") == EmojiFluxPipeline.__name__
    try:
        pipeline = (EmojiFluxPipeline if ours else DiffusionPipeline).from_pretrained(str(model), dtype=dtype)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load a pipeline from {model}: {_short(error)}") from error
    return pipeline.to(device) if device else pipeline


def pipeline_index(model: str | Path) -> dict[str, Any]:
    """What a pipeline's `model_index.json` says: its class, and the class of each part.

    Raises:
        CheckpointError: neither a pipeline folder nor to be had from the Hub.
    """
    file = Path(model) / INDEX
    if not Path(model).exists():
        return _index_on_hub(str(model))
    if not file.is_file():
        raise CheckpointError(f"{model} has no {INDEX}; expected the folder of a diffusers pipeline")
    try:
        index = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file} is no valid JSON: {error}") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{file} holds a {type(index).__name__}; expected the index of a diffusers pipeline")
    return index


def _index_on_hub(name: str) -> dict[str, Any]:
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointError(f"no pipeline folder {name}; expected a folder or a Hub id like owner/name")
    try:
        index: Any = DiffusionPipeline.load_config(name)
    except Exception as error:  # the Hub's errors have no common base
        message = f"{name} is no folder here and could not be had from the Hub: {_short(error)}"
        raise CheckpointError(message) from error
    return dict(index)


def _short(error: Exception) -> str:
    """The beginning of an error that may run over many lines."""
    return textwrap.shorten(str(error), 200, placeholder=" …")
