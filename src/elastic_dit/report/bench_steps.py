"""The first step of a run beside the later ones, which have an earlier step's decisions and residuals."""

import numpy as np

from elastic_dit.records import RunRecord
from elastic_dit.report.tables import Table


def by_step(record: RunRecord) -> Table:
    """Time over that of the reference, of each row of a race that ran more than one step."""
    rows = [row for row in record.results["rows"] if row["reference"] != row["name"]]
    return Table(
        "First and later steps",
        ("", "the first step", "the later ones", "beside"),
        [
            (row["name"], *(f"{share:.3f}" for share in first_and_later(record, row["name"])), row["reference"])
            for row in rows
        ],
        "Time over the time beside it, its median over the runs at each step. A row that is a step late waits for its "
        "routers at the first step alone. What is reused was stored at an earlier step, so later ones have less to do.",
    )


def first_and_later(record: RunRecord, name: str) -> tuple[float, float]:
    """A row's time over its reference's, at the first step and at all others."""
    own, beside = (
        np.asarray(record.samples[f"{name}_{what}"]).reshape(-1, record.config["steps"])  # (runs, steps)
        for what in ("seconds", "beside_seconds")
    )
    ratios, weights = np.median(own / beside, axis=0), np.median(beside, axis=0)
    return float(ratios[0]), float(np.average(ratios[1:], weights=weights[1:]))
