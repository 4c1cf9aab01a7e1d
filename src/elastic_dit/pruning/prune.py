"""From a dense transformer to an adapter with one fixed route, ready to be trained."""

from collections.abc import Sequence
from typing import Any

from elastic_dit.backbones import backbone_of
from elastic_dit.config import ElasticConfig
from elastic_dit.elasticize import ElasticModel, elasticize, reroute, transformer_of
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import Progress, Pruning, Subject
from elastic_dit.training.flow import NoisyBatch
from elastic_dit.training.importance import order_channels


def prune(
    pipe_or_transformer: Any,
    batches: Sequence[tuple[dict[str, Any], NoisyBatch]],
    method: Pruning,
    budget: float,
    *,
    seed: int = 0,
    progress: Progress = lambda label, done, total: None,
) -> ElasticModel:
    """Choose a route for a dense transformer. Its MLP channels are put in order of importance, as for training.

    Args:
        pipe_or_transformer: a diffusers pipeline, or the transformer alone.
        batches: the transformer's inputs, and what they were made from.
        method: one of `prunings`.
        budget: share of the dense blocks' FLOPs to spend, in (0, 1].
        seed: of what the method draws.
        progress: see `Progress`.

    Raises:
        BackboneError: no backbone declares this transformer.
        ConfigError: a budget outside (0, 1], or one the method cannot meet.
    """
    if not 0 < budget <= 1:
        raise ConfigError(f"the budget is {budget:g}; expected a share of the dense FLOPs above 0 and up to 1")
    transformer = transformer_of(pipe_or_transformer)
    blocks = len(backbone_of(transformer).sites(transformer))
    elastic = elasticize(transformer, ElasticConfig.of(route=(1.0,) * blocks))
    order_channels(elastic, [inputs for inputs, _ in batches])
    route = method.choose(Subject(elastic, batches, seed, progress), budget)
    return reroute(elastic, ElasticConfig.of(route=route))
