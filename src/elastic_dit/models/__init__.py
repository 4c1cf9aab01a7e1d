"""The small real model that ships with the library."""

from elastic_dit.models.emoji_flux import EmojiFluxPipeline
from elastic_dit.models.weights import shipped_adapter, shipped_judge, shipped_model

__all__ = ["EmojiFluxPipeline", "shipped_adapter", "shipped_judge", "shipped_model"]
