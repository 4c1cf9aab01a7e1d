"""From a dense transformer to an adapter with one fixed route, ready to be trained."""

from collections.abc import Sequence
from typing import Any

from elastic_dit.config import ElasticConfig
from elastic_dit.elasticize import ElasticModel, reroute
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import Batches, Progress, Pruning, Subject, whole
from elastic_dit.pruning.noise_levels import Level, even
from elastic_dit.training.imitation import imitate


def prune(
    pipe_or_transformer: Any,
    batches: Batches,
    method: Pruning,
    budget: float,
    *,
    seed: int = 0,
    levels: Sequence[Level] = (),
    progress: Progress = lambda label, done, total: None,
) -> ElasticModel:
    """Choose a route for a dense transformer. Its MLP channels are put in order of importance, as for training.

    Args:
        pipe_or_transformer: a diffusers pipeline, or the transformer alone.
        batches: the transformer's inputs, and what they were made from; sorted by noise level where there are levels.
        method: one of `prunings`.
        budget: share of the dense blocks' FLOPs to spend, in (0, 1].
        seed: of what the method draws.
        levels: none give a fixed route and no routers. Several, a route for each of these equal ranges of noise levels,
            chosen together, and routers that read the timestep embedding alone and say what the routes say.
        progress: see `Progress`.

    Raises:
        BackboneError: no backbone declares this transformer.
        ConfigError: a budget outside (0, 1], or one the method cannot meet, or levels that it does not know.
    """
    if not 0 < budget <= 1:
        raise ConfigError(f"the budget is {budget:g}; expected a share of the dense FLOPs above 0 and up to 1")
    levels = levels or even(1)
    count = len(levels)
    if count > 1 and (not method.levelled or len(batches) % count):
        raise ConfigError(
            f"{count} levels of noise: {method.name} knows one route for all of them; try greedy"
            if not method.levelled
            else f"{count} levels of noise need as many batches each, got {len(batches)} batches"
        )
    elastic = whole(pipe_or_transformer, batches)
    route = method.choose(Subject(elastic, batches, seed, progress, levels), budget)
    if count == 1:
        return reroute(elastic, ElasticConfig.of(route=route))
    blocks = len(elastic.costs)
    schedule = tuple(route[level * blocks :][:blocks] for level in range(count))
    elastic = reroute(elastic, ElasticConfig.of(router_input="timestep", init_schedule=schedule, max_reuse=0))
    imitate(elastic, batches)
    return elastic
