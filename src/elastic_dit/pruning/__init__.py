"""Ways to choose one route for all samples and steps, one file each: what an adaptive model must beat."""

from elastic_dit.pruning.base import Pruning, Subject, prunings

__all__ = ["Pruning", "Subject", "prunings"]
