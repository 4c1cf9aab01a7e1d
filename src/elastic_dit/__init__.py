"""A compute dial for diffusion transformers (Elastic Diffusion Transformer, arXiv 2602.13993)."""

from elastic_dit.config import PRESETS, ElasticConfig, preset
from elastic_dit.elasticize import ElasticModel, elasticize, load, restore
from elastic_dit.engine.plan import Plan
from elastic_dit.engine.trace import Trace
from elastic_dit.errors import ElasticDiTError

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
