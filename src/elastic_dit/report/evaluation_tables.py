"""What `elastic-dit evaluate` measured, as tables."""

from pathlib import Path
from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.tables import NONE, Table, table_markdown, where


def loss_tables(record: RunRecord) -> list[Table]:
    """Flow loss against compute, and by noise level; then models of nearly equal compute, two by two."""
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
        *_pairs(record),
        *_images(record),
    ]


def loss_markdown(record: RunRecord) -> str:
    """The tables and the command that makes them again."""
    return "\n".join([*map(table_markdown, loss_tables(record)), f"`{record.command}`", ""])


def model_name(folder: str) -> str:
    """What a model's folder calls it: `train` writes RUN/adapter."""
    path = Path(folder)
    return (path.parent.name if path.name == "adapter" else path.name) or folder


def _model(row: dict[str, Any]) -> tuple[str, str]:
    return model_name(row["name"]), NONE if row["budget"] is None else f"{row['budget']:g}"


def _pairs(record: RunRecord) -> list[Table]:
    rows, pairs = record.results["rows"], record.results.get("pairs", [])
    if not pairs:
        return []
    cells = [
        (_one(rows[pair["first"]]), _one(rows[pair["second"]]), _signed(pair["difference"], pair["interval"]))
        for pair in pairs
    ]
    note = "First less second, on the same samples: below 0 the first is better. FLOPs differ by 3% of dense at most."
    return [Table("At nearly equal compute", ("first", "second", "difference of loss"), cells, note)]


def _images(record: RunRecord) -> list[Table]:
    rows = record.results.get("images", [])
    if not rows:
        return []
    cells = [
        (
            *_model(row),
            f"{row['flops_share']:.1%}",
            _mean(row["psnr"], row["psnr_interval"], 2),
            _mean(row["ssim"], row["ssim_interval"], 3),
        )
        for row in rows
    ]
    steps = f"{record.config['steps']} denoising steps" if record.config["steps"] else "the model's denoising steps"
    note = f"Captions of the same data, {steps}, one seed each. FLOPs: as above, less what was reused."
    title = f"{record.config['images']} images against the dense model's"
    return [Table(title, ("", "budget", "FLOPs", "PSNR (dB)", "SSIM"), cells, note)]


def _one(row: dict[str, Any]) -> str:
    name, budget = _model(row)
    return f"{name}{'' if budget == NONE else f' at {budget}'} ({row['flops_share']:.1%})"


def _losses(row: dict[str, Any]) -> tuple[str, str]:
    excess = NONE if row["name"] == "dense" else _mean(row["excess"], row["excess_interval"])
    return _mean(row["loss"], row["loss_interval"]), excess


def _signed(value: float, interval: list[float]) -> str:
    return f"{value:+.4f} ({interval[0]:+.4f} to {interval[1]:+.4f})"


def _mean(value: float, interval: list[float], digits: int = 4) -> str:
    low, high = interval
    return f"{value:.{digits}f} ± {(high - low) / 2:.{digits}f}"
