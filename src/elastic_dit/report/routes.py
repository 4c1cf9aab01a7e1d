"""Routes as a record keeps them, back to arrays. S steps, L blocks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from elastic_dit.records import RunRecord

SKIPPED, REUSED = 0, 1
"""Codes of a decision; from 2 on, the block ran at the (code - 2)th width."""


@dataclass(frozen=True)
class Route:
    """What one prompt's image did at every block and step, in one guidance branch."""

    prompt: str
    share: float
    """Its FLOPs, both branches, as a share of dense."""
    branch: str
    decisions: npt.NDArray[np.int64]
    """(S, L) codes."""
    keep_prob: npt.NDArray[np.float64]
    """(S, L)."""


def extreme_routes(record: RunRecord) -> list[Route]:
    """The routes that spent least and most (one route if there is one prompt), in the first guidance branch."""
    shares = [row["flops_share"] for row in record.results["prompts"]]
    order = sorted(range(len(shares)), key=shares.__getitem__)
    return [read_route(record, index) for index in dict.fromkeys((order[0], order[-1]))]


def read_route(record: RunRecord, index: int) -> Route:
    """The route of one prompt."""
    row: dict[str, Any] = record.results["prompts"][index]
    branch, texts = next(iter(record.results["routes"][index].items()))
    codes = [[_code(letter) for letter in line] for line in texts["decisions"]]
    probs = [[int(value) / 1000 for value in line.split()] for line in texts["keep_prob"]]
    return Route(row["prompt"], row["flops_share"], branch, np.array(codes), np.array(probs))


def _code(letter: str) -> int:
    known = {".": SKIPPED, "~": REUSED}
    return known[letter] if letter in known else int(letter) + 1
