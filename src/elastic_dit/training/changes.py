"""What may change in a config between the beginning of a run and its resumption, and what may not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from elastic_dit.config import explain
from elastic_dit.errors import ConfigError
from elastic_dit.training.config import TrainConfig

MAY_CHANGE = {
    "output",  # the folder was moved
    "data.cache",
    "data.validation",
    "optimizer.learning_rate",  # the way out of a NaN
    "optimizer.router_learning_rate",
    "optimizer.warmup_steps",
    "steps",
    "gradient_checkpointing",
    "compile",
    "threads",
    "save_dtype",
    "log_every",
    "validate_every",
    "validation_batches",
    "sample_every",
    "sample_prompts",
    "checkpoint_every",
    "keep_checkpoints",
}
"""Keys that say how fast, how long and how watched; all others say what is trained."""
SHOWN = 60
"""Characters of a value in a message."""


def refuse_changes(config: TrainConfig, checkpoint: Path, step: int, stored: dict[str, Any] | None) -> None:
    """Check that a run may go on from a checkpoint.

    Args:
        config: of now.
        checkpoint: its folder, for the messages.
        step: that it was written after.
        stored: the config that it was trained with; None where a version before wrote none, which is not checked.

    Raises:
        ConfigError: it would train something else than it began with, or has fewer steps than it has made.
    """
    ways_out = f"Delete {config.output} to start over, or choose another `output`."
    if config.steps < step:
        raise ConfigError(
            f"{checkpoint} has more steps than the {config.steps} of the config. Raise `steps`. {ways_out}"
        )
    if stored is None:
        return
    try:
        before = TrainConfig.model_validate(stored)  # keys that are new since then have their defaults
    except ValidationError as error:
        reason = explain(error, TrainConfig)
        raise ConfigError(f"{checkpoint} is by another version of elastic-dit: {reason}. {ways_out}") from error
    if changed := list(_changes(before.model_dump(mode="json"), config.model_dump(mode="json"))):
        raise ConfigError(f"{checkpoint} was trained with another config: {'; '.join(changed)}. {ways_out}")


def _changes(old: dict[str, Any], new: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        name, before, now = path + key, old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _changes(before, now, f"{name}.")
        elif before != now and name not in MAY_CHANGE:
            yield f"{name} was {_shown(before)}, is now {_shown(now)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
