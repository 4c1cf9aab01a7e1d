"""Seconds of blocks in place of their FLOPs, and routes that are chosen by them."""

import time
from typing import Any

import pytest

from elastic_dit.core.cost import BlockCost
from elastic_dit.pruning import prunings
from elastic_dit.pruning.base import share, unpruned
from elastic_dit.pruning.prune import prune
from elastic_dit.pruning.times import block_times
from noisy import batches_of
from tiny import Tiny, output_of

SLEEP = 0.02


def test_a_slow_kind_of_block_is_found(tiny_flux: Tiny) -> None:
    elastic = unpruned(tiny_flux.transformer)
    slow, fast = elastic.sites[0], elastic.sites[-1]
    forward = slow.forward

    def slower(*args: Any, **kwargs: Any) -> Any:
        time.sleep(SLEEP)
        return forward(*args, **kwargs)

    for site in elastic.sites:
        if site.signature == slow.signature:
            site.forward = slower
    times = block_times(elastic, tiny_flux.inputs(1))
    assert len(times) == len(elastic.sites)
    assert times[0].dense > SLEEP > times[-1].dense  # the others take no 20 ms
    assert times[0].fixed > times[0].mlp  # sleeping does not get shorter with the MLP
    assert all(cost.fixed >= 0 and cost.mlp >= 0 for cost in times)
    assert [cost for cost, site in zip(times, elastic.sites, strict=True) if site.signature == fast.signature] == [
        times[-1]
    ] * sum(site.signature == fast.signature for site in elastic.sites)
    output_of(tiny_flux.transformer, tiny_flux.inputs(1))
    assert elastic.trace.open_rate == 1 and elastic.trace.mean_width == 1  # its own route again


@pytest.mark.parametrize("budget", [0.5, 0.8])
def test_the_budget_is_of_time(tiny_flux: Tiny, budget: float) -> None:
    blocks = tiny_flux.blocks
    times = [BlockCost(9.0, 1.0) for _ in range(blocks)]  # narrow MLPs save nothing
    elastic = prune(tiny_flux.transformer, batches_of(tiny_flux), prunings["greedy"], budget, times=times)
    route = elastic.config.route
    assert route is not None
    assert share(route, times) == pytest.approx(budget, abs=1 / blocks)
    by_flops = prune(tiny_flux.transformer, batches_of(tiny_flux), prunings["greedy"], budget).config.route
    assert by_flops is not None
    assert sum(map(bool, route)) <= sum(map(bool, by_flops))
