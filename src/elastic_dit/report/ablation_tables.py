"""What `elastic-dit ablate` measured, as tables and a figure."""

import json
from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_plots import GRID, bare
from elastic_dit.report.plots import INK, png_bytes
from elastic_dit.report.tables import NONE, Table, table_markdown, where

BLUE, GREY = "#2b6cb0", "#a0aec0"


def ablation_tables(record: RunRecord) -> list[Table]:
    """Flow loss by recipe, and what each recipe is."""
    rows, config = record.results["recipes"], record.config
    about = config["recipes"]["recipes"]
    loss = Table(
        config["about"],
        ("recipe", "seeds", "FLOPs", "over dense", "by seed", f"beside {rows[0]['name']}"),
        [
            (
                row["name"],
                str(len(row["seeds"])),
                f"{row['flops_share']:.1%}",
                _signed(row["excess"], row["excess_interval"]),
                " ".join(f"{value:.4f}" for value in row["excess_by_run"]),
                NONE
                if row is rows[0] or row["difference"] is None
                else _signed(row["difference"], row["difference_interval"]),
            )
            for row in rows
        ],
        f"Flow loss over the dense model's, on {config['samples']} held-out pairs with the same noise and noise levels "
        f"for all; dense: {record.results['dense']['loss']:.4f}. In brackets: the 95% interval, by bootstrap of seeds "
        "and of samples; of so few seeds it is a rough one. Beside: paired by seed and sample, below 0 is better. "
        f"FLOPs: share of the dense blocks', routers included. Trained for {config['steps']} steps at "
        f"{config['resolution']} pixels. {where(record)}",
    )
    recipes = [(row["name"], about[row["name"]]["about"], _changes(about[row["name"]]["set"])) for row in rows]
    return [loss, Table("The recipes", ("recipe", "what", "changes"), recipes, words=True)]


def ablation_markdown(record: RunRecord) -> str:
    """The tables and the command that makes them again."""
    return "\n".join([*map(table_markdown, ablation_tables(record)), f"`{record.command}`", ""])


def ablation_plot(record: RunRecord) -> bytes:
    """Loss over dense by recipe, a dot for each seed, PNG bytes."""
    from matplotlib.figure import Figure

    rows = record.results["recipes"]
    figure = Figure(figsize=(6.8, 1.2 + 0.34 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for place, row in enumerate(rows):
        low, high = row["excess_interval"]
        axis.plot([low, high], [place, place], color=GREY, linewidth=5, solid_capstyle="round", zorder=1)
        axis.plot(row["excess_by_run"], [place] * len(row["seeds"]), "o", color=BLUE, markersize=4, zorder=2)
        axis.plot(row["excess"], place, "|", color=INK, markersize=14, markeredgewidth=1.6, zorder=3)
    labels = [f"{row['name']}  {row['flops_share']:.0%}" for row in rows]
    axis.set_yticks(range(len(rows)), labels, fontsize=9, color=INK)
    axis.invert_yaxis()
    axis.set_xlabel("flow loss over dense: seeds, mean and 95% interval", color=INK, fontsize=9)
    bare(axis)
    axis.grid(axis="x", **GRID)
    return png_bytes(figure)


def _signed(value: float, interval: tuple[float, float]) -> str:
    return f"{value:+.4f} ({interval[0]:+.4f} to {interval[1]:+.4f})"


def _changes(changes: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {json.dumps(value)}" for key, value in changes.items()) or NONE
