"""Load a pipeline by folder or Hub id, ours or any of diffusers'."""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from elastic_dit.errors import CheckpointError
from elastic_dit.models.emoji_flux import EmojiFluxPipeline


def load_pipeline(model: str | Path, dtype: torch.dtype | None = None, device: str | None = None) -> Any:
    """A diffusers pipeline.

    Args:
        model: a pipeline folder or a Hub id.
        dtype: of its weights; None is float32.
        device: where to put it; None leaves it on the CPU.

    Raises:
        CheckpointError: neither a pipeline folder nor to be had from the Hub.
    """
    index = Path(model) / "model_index.json"
    if Path(model).exists() and not index.is_file():
        raise CheckpointError(f"{model} has no model_index.json; expected the folder of a diffusers pipeline")
    ours = index.is_file() and json.loads(index.read_text()).get("_class_name") == EmojiFluxPipeline.__name__
    try:
        pipeline = (EmojiFluxPipeline if ours else DiffusionPipeline).from_pretrained(str(model), dtype=dtype)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot load a pipeline from {model}: {error}") from error
    return pipeline.to(device) if device else pipeline
