"""From a dense transformer to an adapter with one fixed route, ready to be trained."""

from collections.abc import Sequence
from typing import Any

from elastic_dit.config import ElasticConfig
from elastic_dit.core.cost import BlockCost
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.errors import ConfigError
from elastic_dit.pruning.base import Batches, Progress, Pruning, Subject, whole
from elastic_dit.pruning.noise_levels import Level, even
from elastic_dit.training.imitation import imitate
from elastic_dit.verbs import reroute


def prune(
    pipe_or_transformer: Any,
    batches: Batches,
    method: Pruning,
    budget: float,
    *,
    seed: int = 0,
    levels: Sequence[Level] = (),
    lowest: float | None = None,
    times: Sequence[BlockCost] | None = None,
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
        lowest: a route for every budget from 1 down to this share, each within the next larger one, and routers that
            know them all; the dial then stands at `budget`.
        times: seconds of each block, as `block_times` measures them: the budget is then a share of these.
        progress: see `Progress`.

    Raises:
        BackboneError: no backbone declares this transformer.
        ConfigError: a budget outside (0, 1], or one the method cannot meet, or levels or a path that it does not know.
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
    if lowest is not None:
        if method.path is None or count > 1 or times is not None or not 0 < lowest < budget:
            raise ConfigError(
                f"a route for every budget down to {lowest:g}: expected a share of FLOPs below the budget of "
                f"{budget:g}, one level of noise, and greedy; got {count} and {method.name}"
                + (", and a share of time" if times is not None else "")
            )
        path = method.path(Subject(elastic, batches, seed, progress), lowest)
        dial = {"budget_range": (lowest, 1.0), "default_budget": budget, "budget_embedding": True}
        return reroute(elastic, ElasticConfig.of(router_input="timestep", init_path=path, max_reuse=0, **dial))
    route = method.choose(Subject(elastic, batches, seed, progress, levels, times), budget)
    if count == 1:
        return reroute(elastic, ElasticConfig.of(route=route))
    blocks = len(elastic.costs)
    schedule = tuple(route[level * blocks :][:blocks] for level in range(count))
    elastic = reroute(elastic, ElasticConfig.of(router_input="timestep", init_schedule=schedule, max_reuse=0))
    imitate(elastic, batches)
    return elastic
