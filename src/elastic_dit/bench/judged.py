"""The images, costs and scores of all entries of a contest, in one record."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

from elastic_dit.bench.contest import Contest
from elastic_dit.bench.entries import Entry
from elastic_dit.bench.race import DENSE
from elastic_dit.evaluation.flow_loss import EQUAL
from elastic_dit.evaluation.judge import Judge, difference
from elastic_dit.records import Environment, RunRecord


def run_contest(contest: Contest, entries: Sequence[Entry], judge: Judge, command: str = "") -> RunRecord:
    """The images, costs and scores of all entries, in their order; the first is the dense model.

    Args:
        contest: the pipeline and the prompts.
        entries: see `list_entries`.
        judge: scores the same prompts.
        command: what makes the record again.
    """
    assert entries[0].name == DENSE, "the first entry is what the others are compared with"
    dense = contest.images(entries[0])
    scored = [judge(contest.images(entry), dense if index else None) for index, entry in enumerate(entries)]
    costs = [contest.cost(entry) for entry in entries]
    rows = [
        {"entry": entry._asdict(), "cost": cost._asdict()} | one.results
        for entry, cost, one in zip(entries, costs, scored, strict=True)
    ]

    def apart(first: int, second: int) -> dict[str, Any]:
        return {"first": first, "second": second} | difference(scored[first], scored[second])

    near = [
        (first, second)
        for first, second in combinations(range(1, len(entries)), 2)
        if abs(costs[first].flops_share - costs[second].flops_share) <= EQUAL
    ]
    return RunRecord(
        kind="judge",
        command=command,
        environment=Environment.here(contest.pipe.transformer.device),
        config=vars(contest.settings)
        | {"images": len(contest.prompts), "captions": len(judge.captions), "batch": contest.batch}
        | {"repeats": contest.repeats},
        results={
            "rows": rows,
            "beside_dense": [apart(index, 0) for index in range(1, len(entries))],
            "pairs": [apart(*pair) for pair in near],
        },
        samples={
            f"{row.name}/{name}": values
            for row, one in zip(entries, scored, strict=True)
            for name, values in one.samples.items()
        },
    )
