"""A compute dial for diffusion transformers (Elastic Diffusion Transformer, arXiv 2602.13993)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elastic_dit.config import PRESETS, ElasticConfig, preset
    from elastic_dit.elastic_model import ElasticModel
    from elastic_dit.engine.plan import Plan
    from elastic_dit.engine.trace import Trace
    from elastic_dit.errors import ElasticDiTError
    from elastic_dit.verbs import elasticize, load, restore

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "ElasticConfig",
    "ElasticDiTError",
    "ElasticModel",
    "Plan",
    "Trace",
    "elasticize",
    "load",
    "preset",
    "restore",
]

_HOMES = {
    "elastic_dit.config": ("PRESETS", "ElasticConfig", "preset"),
    "elastic_dit.elastic_model": ("ElasticModel",),
    "elastic_dit.engine.plan": ("Plan",),
    "elastic_dit.engine.trace": ("Trace",),
    "elastic_dit.errors": ("ElasticDiTError",),
    "elastic_dit.verbs": ("elasticize", "load", "restore"),
}


def __getattr__(name: str) -> Any:
    """Import a name where it is first asked for: torch and diffusers take seconds, which `--help` need not wait for."""
    for home, names in _HOMES.items():
        if name in names:
            try:
                value = getattr(import_module(home), name)
            except AttributeError as error:  # of a broken torch, say: `from elastic_dit import` would not show it
                raise ImportError(f"{home} could not be imported: {error}") from error
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
