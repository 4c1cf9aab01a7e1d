"""The caches that diffusers ships, switched on through its own `enable_cache`."""

from typing import Any

from diffusers.utils import logging

from elastic_dit.baselines.base import Applied
from elastic_dit.errors import BackboneError


def enable(transformer: Any, config: Any) -> Applied:
    """Switch on one of diffusers' caches, without its warnings that the feature is experimental.

    Args:
        transformer: a fresh one.
        config: one of diffusers' cache configs.

    Raises:
        BackboneError: diffusers has no caches for the transformer, or does not know its blocks.
    """
    kind, cache = type(transformer).__name__, type(config).__name__.removesuffix("Config")
    if not hasattr(transformer, "enable_cache"):
        raise BackboneError(f"diffusers' {cache} needs a transformer with enable_cache; a {kind} has none")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        transformer.enable_cache(config)
    except ValueError as error:
        raise BackboneError(f"diffusers' {cache} does not fit a {kind}: {error}") from error
    finally:
        logging.set_verbosity(verbosity)
    return Applied(restart=transformer._reset_stateful_cache)
