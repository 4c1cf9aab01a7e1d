"""Checkpoints of a training run: written whole or not at all, safetensors and JSON only.

Of the model they hold what learns, and buffers. What is frozen comes from where it came from before.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from elastic_dit.errors import CheckpointError

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_LEARNED = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
_LOAD = StateDictOptions(full_state_dict=True, strict=False)  # what is frozen or had no gradient is not there


def save_state(
    folder: Path,
    step: int,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: list[Tensor],
    extra: dict[str, Any],
) -> Path:
    """Write `folder/step-N`; every rank calls it, `folder` is shared, rank 0 writes.

    Everything goes to a temporary folder which is renamed at the end: a kill at any moment leaves
    the earlier checkpoints as they were.
    """
    weights: Any = get_model_state_dict(model, options=_LEARNED)
    optimizer_state: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    target, temporary = folder / f"step-{step:07d}", folder / f".step-{step:07d}"
    if torch.distributed.is_initialized() and torch.distributed.get_rank() != 0:
        return target
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    moments = {
        f"{name}|{key}": torch.as_tensor(value)
        for name, state in optimizer_state["state"].items()
        for key, value in state.items()
    }
    tensors = {
        "model": weights,
        "optimizer": moments,
        "ema": {str(index): value for index, value in enumerate(ema)},
    }
    for name, group in tensors.items():
        save_file(
            {k: v.detach().cpu().contiguous().clone() for k, v in group.items()}, temporary / f"{name}.safetensors"
        )
    meta = {"step": step, "param_groups": optimizer_state["param_groups"], "extra": extra}
    (temporary / "state.json").write_text(json.dumps(meta))
    shutil.rmtree(target, ignore_errors=True)
    temporary.rename(target)
    return target


def read_meta(checkpoint: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors: `step`, `extra`, `param_groups`.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return json.loads((checkpoint / "state.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} is no complete checkpoint: {error}") from error


def load_state(
    checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, list[Tensor], dict[str, Any]]:
    """Restore model and optimiser in place; returns (step, averaged weights, extra).

    Raises:
        CheckpointError: a file is missing or does not fit this model.
    """
    meta = read_meta(checkpoint)
    try:
        moments = load_file(checkpoint / "optimizer.safetensors")
        weights = load_file(checkpoint / "model.safetensors")
        ema = load_file(checkpoint / "ema.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{checkpoint} is no complete checkpoint: {error}") from error
    state: dict[str, dict[str, Tensor]] = {}
    for name, value in moments.items():
        parameter, key = name.split("|")
        state.setdefault(parameter, {})[key] = value
    expected = get_model_state_dict(model, options=StateDictOptions(ignore_frozen_params=True)).keys()
    if wrong := sorted((expected - weights.keys()) | (weights.keys() - get_model_state_dict(model).keys())):
        raise CheckpointError(f"{checkpoint} does not fit this model: missing or left over: {', '.join(wrong[:3])}")
    model_state: Any = weights
    try:
        set_model_state_dict(model, model_state, options=_LOAD)
        optimizer_state: Any = {"state": state, "param_groups": meta["param_groups"]}
        set_optimizer_state_dict(model, optimizer, optimizer_state, options=_LOAD)
    except (RuntimeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{checkpoint} does not fit this model: {error}") from error
    for name, parameter in model.named_parameters():  # torch counted a step for what the checkpoint has no moments of
        if name.removeprefix("module.") not in state:
            optimizer.state.pop(parameter, None)
    return meta["step"], [ema[str(index)] for index in range(len(ema))], meta["extra"]


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run, if any."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def prune(folder: Path, keep: int) -> None:
    """Delete all but the newest `keep` checkpoints."""
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
