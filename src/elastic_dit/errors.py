"""The errors a user can meet. Each says what came, what was expected and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class ElasticDiTError(Exception):
    """Base class of every error this library raises on purpose."""


class ConfigError(ElasticDiTError, ValueError):
    """A configuration has an unknown key or a value outside its range."""


class UnknownNameError(ElasticDiTError, KeyError):
    """A name (backbone, preset, family...) is not registered."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        known = sorted(known)
        close = get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        self.message = f"unknown {kind} {name!r}; known: {', '.join(known)}.{hint}"
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class BackboneError(ElasticDiTError, TypeError):
    """A model is not of a class the backbone declares, or no longer looks as declared."""


class PlanError(ElasticDiTError, ValueError):
    """A plan does not fit the model, the batch or the number of steps."""


class CheckpointError(ElasticDiTError, ValueError):
    """An adapter folder or a training checkpoint is missing, damaged or of another base model."""


class DataError(ElasticDiTError, ValueError):
    """Training data is missing or not in the form asked for."""


class TrainingError(ElasticDiTError, RuntimeError):
    """Training cannot go on (a NaN, a wrong state); the message names the last good checkpoint."""
