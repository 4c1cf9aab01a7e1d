"""What `elastic-dit evaluate` measured, as a table."""

from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_tables import where
from elastic_dit.report.tables import Table


def loss_table(record: RunRecord) -> Table:
    """Flow loss against compute, a row for each model."""
    rows = record.results["rows"]
    bins = len(rows[0]["by_sigma"])
    edges = [f"σ < {(index + 1) / bins:g}" for index in range(bins)]
    return Table(
        f"Flow loss on {record.config['samples']} held-out pairs",
        ("", "budget", "FLOPs", "loss", "over dense", *edges),
        [_cells(row) for row in rows],
        "FLOPs: share of the dense blocks' FLOPs that was spent, routers included; nothing is reused, as each forward "
        "stands alone. Loss: squared error of the velocity, on the same samples, noise and noise levels for all, with "
        "its 95% interval (bootstrap over samples). Over dense: mean of the difference on each sample. σ: noise "
        f"levels from the bound before it. {where(record)}",
    )


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    dense = row["name"] == "dense"
    return (
        row["name"],
        "–" if row["budget"] is None else f"{row['budget']:g}",
        f"{row['flops_share']:.1%}",
        _mean(row["loss"], row["loss_interval"]),
        "–" if dense else _mean(row["excess"], row["excess_interval"]),
        *(f"{value:.4f}" for value in row["by_sigma"]),
    )


def _mean(value: float, interval: list[float]) -> str:
    low, high = interval
    return f"{value:.4f} ({low:.4f} to {high:.4f})"
