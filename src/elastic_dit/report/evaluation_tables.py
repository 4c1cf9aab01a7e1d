"""What `elastic-dit evaluate` measured, as tables."""

from pathlib import Path
from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_tables import table_markdown, where
from elastic_dit.report.tables import NONE, Table


def loss_tables(record: RunRecord) -> list[Table]:
    """Flow loss against compute, and by noise level; a row for each model."""
    rows = record.results["rows"]
    bins = len(rows[0]["by_sigma"])
    levels = [f"{index / bins:g} to {(index + 1) / bins:g}" for index in range(bins)]
    return [
        Table(
            f"Flow loss on {record.config['samples']} held-out pairs",
            ("", "budget", "FLOPs", "loss", "over dense"),
            [(*_model(row), f"{row['flops_share']:.1%}", *_losses(row)) for row in rows],
            "FLOPs: share of the dense blocks' FLOPs that was spent, routers included; nothing is reused, as each "
            "forward stands alone. Loss: squared error of the velocity, on the same samples, noise and noise levels "
            "for all. Over dense: mean of the difference on each sample. ±: half of the 95% interval, by bootstrap "
            "over samples.",
        ),
        Table(
            "The same by noise level",
            ("", "budget", *levels),
            [(*_model(row), *(f"{value:.4f}" for value in row["by_sigma"])) for row in rows],
            f"Noise levels σ are spread evenly over 0 to 1. {where(record)}",
        ),
    ]


def loss_markdown(record: RunRecord) -> str:
    """Both tables and the command that makes them again."""
    return "\n".join([*map(table_markdown, loss_tables(record)), f"`{record.command}`", ""])


def _model(row: dict[str, Any]) -> tuple[str, str]:
    path = Path(row["name"])
    name = path.parent.name if path.name == "adapter" else path.name  # `train` writes RUN/adapter
    return name or row["name"], NONE if row["budget"] is None else f"{row['budget']:g}"


def _losses(row: dict[str, Any]) -> tuple[str, str]:
    excess = NONE if row["name"] == "dense" else _mean(row["excess"], row["excess_interval"])
    return _mean(row["loss"], row["loss_interval"]), excess


def _mean(value: float, interval: list[float]) -> str:
    low, high = interval
    return f"{value:.4f} ± {(high - low) / 2:.4f}"
