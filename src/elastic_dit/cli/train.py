"""`elastic-dit train`: one run of a YAML config."""

from pathlib import Path
from typing import Annotated, Any

import typer

from elastic_dit.cli.setup import needs_extra, quiet_libraries
from elastic_dit.errors import ConfigError


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="Training config, a YAML file.", show_default=False)],
    change: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a value, e.g. --set optimizer.learning_rate=1e-4."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run, in place of the config's.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, in place of the config's.")] = None,
) -> None:
    """Train a model, dense or elastic, from a YAML config; a run that was stopped goes on where it was."""
    with needs_extra("train", "train"):
        import peft  # noqa: F401  what would be missed only when a LoRA is built
        import tensorboard  # noqa: F401
        import yaml

        from elastic_dit.training.config import TrainConfig
        from elastic_dit.training.loop import Trainer

        quiet_libraries()
        changes = [_parse(text, yaml) for text in change or []]
        changes += [("output", str(output))] * (output is not None) + [("steps", steps)] * (steps is not None)
        Trainer(TrainConfig.load(config, changes)).run()


def _parse(text: str, yaml: Any) -> tuple[str, Any]:
    """`a.b=1` to ("a.b", 1); values are read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise ConfigError(f"--set {text} names no value; expected KEY=VALUE, as in optimizer.learning_rate=1e-4")
    try:
        return key, _number(yaml.safe_load(value))
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML") from error


def _number(value: Any) -> Any:
    """YAML reads `1e-4` as text; a person means a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
