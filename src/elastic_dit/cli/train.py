"""`elastic-dit train`: one run of a YAML config."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from elastic_dit.cli.setup import needs_extra
from elastic_dit.errors import ConfigError

if TYPE_CHECKING:
    from elastic_dit.training.config import TrainConfig


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

        from elastic_dit.training.loop import Trainer

        changes = [_parse(text, yaml) for text in change or []]
        changes += [("output", str(output))] * (output is not None) + [("steps", steps)] * (steps is not None)
        Trainer(read_config(config, changes)).run()


def read_config(file: Path, changes: Iterable[tuple[str, Any]]) -> "TrainConfig":
    """A training config with some of its values changed.

    Args:
        file: the YAML file.
        changes: keys, such as `optimizer.learning_rate`, and their values.

    Raises:
        ConfigError: see `TrainConfig.load`.
    """
    import yaml

    from elastic_dit.training.config import TrainConfig

    return TrainConfig.load(file, _overrides(_values(file, yaml), changes))


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


def _values(config: Path, yaml: Any) -> dict[str, Any]:
    """What the file says; what is wrong with it is for `TrainConfig.load` to say."""
    try:
        values = yaml.safe_load(config.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _overrides(values: dict[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The top-level entries that change; an entry that changes in part keeps the rest of what the file says."""
    changed: dict[str, Any] = {}
    for key, value in changes:
        path = key.split(".")
        changed.setdefault(path[0], values.get(path[0]))
        here: Any = changed
        for name in path[:-1]:
            inner = here.get(name)
            here[name] = dict(inner) if isinstance(inner, dict) else {}
            here = here[name]
        here[path[-1]] = value
    return changed
