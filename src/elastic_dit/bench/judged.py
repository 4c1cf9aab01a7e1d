"""The images, costs and scores of all entries of a contest, in one record."""

import hashlib
import json
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from PIL import Image

from elastic_dit.bench.contest import Contest, Cost
from elastic_dit.bench.entries import Entry, Row
from elastic_dit.bench.race import DENSE
from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.flow_loss import EQUAL
from elastic_dit.evaluation.judge import KERNEL, Judge, Scored, difference, together
from elastic_dit.evaluation.sampling import shifted
from elastic_dit.records import Environment, RunRecord

SCORES, SCORED = "scores.json", 2
"""Beside an entry's images; the number goes up when there is something new to be said of them."""


def run_contest(contest: Contest, rows: Sequence[Row], judge: Judge, command: str = "") -> RunRecord:
    """The images, costs and scores of all rows, in their order; the first is the dense model.

    Args:
        contest: the pipeline and the prompts.
        rows: see `list_rows`.
        judge: scores the same prompts.
        command: what makes the record again.

    Raises:
        ConfigError: a shift that the pipeline's scheduler cannot have.
    """
    assert rows[0].name == DENSE, "the first row is what the others are compared with"
    for shift in {contest.settings.shift, *(run.shift for row in rows for run in row.runs)}:
        if shift is not None:
            shifted(contest.pipe.scheduler, shift)  # one that cannot be is told now, not after all dense images
    dense = contest.images(rows[0].runs[0])
    scored = [
        [_scored(contest, run, judge, dense if index else None) for run in row.runs] for index, row in enumerate(rows)
    ]
    costs = [[contest.cost(run) for run in row.runs] for row in rows]
    results = [_row(*each) for each in zip(rows, costs, scored, strict=True)]

    def apart(first: int, second: int) -> dict[str, Any]:
        return {"first": first, "second": second} | difference(scored[first], scored[second])

    shares = [row["cost"]["flops_share"] for row in results]
    near = [pair for pair in combinations(range(1, len(rows)), 2) if abs(shares[pair[0]] - shares[pair[1]]) <= EQUAL]
    return RunRecord(
        kind="judge",
        command=command,
        environment=Environment.here(contest.pipe.transformer.device),
        config=vars(contest.settings)
        | {"images": len(contest.prompts), "captions": len(judge.captions), "batch": contest.batch}
        | {"repeats": contest.repeats, "at_once": contest.at_once, "in_turn": contest.in_turn},
        results={
            "rows": results,
            "truth": judge.truth(),
            "beside_dense": [apart(index, 0) for index in range(1, len(rows))],
            "pairs": [apart(*pair) for pair in near],
        },
        samples={
            f"{run.name}/{name}": values
            for row, some in zip(rows, scored, strict=True)
            for run, one in zip(row.runs, some, strict=True)
            for name, values in one.samples.items()
        },
    )


def compare(record: RunRecord, first: int) -> list[dict[str, Any]]:
    """One row of a record less each of the others, from its samples: see `evaluation.judge.difference`.

    Args:
        record: of `run_contest`.
        first: which row.

    Raises:
        ConfigError: an older record, which does not hold all samples.
    """
    rows = record.results["rows"]
    if any("runs" not in row or f"{row['runs'][0]['name']}/{KERNEL}" not in record.samples for row in rows):
        raise ConfigError("this record is of an older version and lacks samples; make it again with the command in it")

    def samples(run: str) -> Scored:
        start = f"{run}/"
        named = record.samples.items()
        return Scored({}, {name.removeprefix(start): list(each) for name, each in named if name.startswith(start)})

    runs = [[samples(run["name"]) for run in row["runs"]] for row in rows]
    others = [second for second in range(len(rows)) if second != first]
    return [{"first": first, "second": second} | difference(runs[first], runs[second]) for second in others]


def _scored(contest: Contest, run: Entry, judge: Judge, dense: Sequence[Image.Image] | None) -> Scored:
    """An entry's scores; what this judge has said of these images is read again."""
    images = contest.images(run)
    hashed = hashlib.sha256(f"{judge.digest} {SCORED}".encode())
    for image in (*images, *(dense or ())):
        hashed.update(image.tobytes())
    file = contest.folder_of(run) / SCORES
    if file.is_file() and (known := json.loads(file.read_text()))["of"] == hashed.hexdigest():
        return Scored(known["results"], known["samples"])
    scored = judge(images, dense)
    temporary = file.with_suffix(".partial")
    temporary.write_text(json.dumps({"of": hashed.hexdigest()} | scored._asdict()))
    temporary.replace(file)
    return scored


def _row(row: Row, costs: Sequence[Cost], scored: Sequence[Scored]) -> dict[str, Any]:
    """Means over the runs, and what each of them came to."""
    share = float(np.mean([cost.flops_share for cost in costs]))
    cost: dict[str, Any] = {"flops_share": share, "ratio": _over([cost.ratio for cost in costs])}
    if at_once := [cost.together for cost in costs if cost.together]:
        cost["together"] = _over(at_once)
    about = row.runs[0]._asdict() | {"name": row.name}
    runs = [
        {"name": run.name, "cost": each._asdict()} | one.results
        for run, each, one in zip(row.runs, costs, scored, strict=True)
    ]
    return {"entry": about, "cost": cost} | together(scored) | {"runs": runs}


def _over(ratios: Sequence[dict[str, float]]) -> dict[str, float]:
    """The median of several runs' medians, and the lowest and highest of all."""
    return {
        "median": float(np.median([ratio["median"] for ratio in ratios])),
        "min": min(ratio["min"] for ratio in ratios),
        "max": max(ratio["max"] for ratio in ratios),
    }
