"""What blocks take in seconds, in place of FLOPs: a route can be chosen for the clock of the machine it will run on.

A narrow MLP saves FLOPs and, in a small model, hardly any time; a block that is left out saves all of its time.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from statistics import median
from typing import Any

import torch

from elastic_dit.core.cost import BlockCost
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.plan import Plan
from elastic_dit.pruning.base import Progress
from elastic_dit.timing import ForwardTimer

PROBE = 0.5
"""The second width that blocks are timed at."""
REPEATS = 30
"""Timed forwards at each width, in turn."""


@torch.no_grad()
def block_times(
    elastic: ElasticModel, inputs: Mapping[str, Any], progress: Progress = lambda label, done, total: None
) -> list[BlockCost]:
    """Seconds of each block (L,), affine in the MLP's width. Blocks of the same shapes are taken to take the same time.

    Args:
        elastic: its routers, if it has any, do not run.
        inputs: of one forward of the transformer; times are those of its batch and resolution.
        progress: see `Progress`.
    """
    seconds: dict[tuple[str, float], list[float]] = {}
    try:
        for number in range(REPEATS + 1):  # the first is to warm up
            progress("timing blocks", number, REPEATS + 1)
            for width in (1.0, PROBE):
                elastic.force(Plan.static([width] * len(elastic.sites)))
                with ExitStack() as entered:
                    timers = [entered.enter_context(ForwardTimer(site.block)) for site in elastic.sites]
                    elastic.transformer(**inputs, return_dict=False)
                for site, timer in zip(elastic.sites, timers, strict=True):
                    seconds.setdefault((site.signature, width), []).extend(timer.seconds if number else ())
    finally:
        elastic.force(None)
    times: list[BlockCost] = []
    for site in elastic.sites:
        full, part = (median(seconds[site.signature, width]) for width in (1.0, PROBE))
        mlp = min(max(0.0, (full - part) / (1 - PROBE)), full)
        times.append(BlockCost(full - mlp, mlp))
    return times
