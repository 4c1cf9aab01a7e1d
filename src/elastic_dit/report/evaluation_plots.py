"""What `elastic-dit evaluate` measured, as a figure: quality lost against compute spent."""

from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_plots import GRID, bare
from elastic_dit.report.evaluation_tables import model_name
from elastic_dit.report.plots import INK, png_bytes

COLORS = ("#2b6cb0", "#b7791f", "#2f855a", "#9b2c2c", "#6b46c1", "#4a5568", "#b83280", "#0987a0")


def loss_plot(record: RunRecord) -> bytes:
    """Flow loss over dense against FLOPs, PNG bytes; the budgets of one checkpoint are joined."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.plot(1, 0, "o", color=INK, markersize=6, zorder=3, label="dense")
    models: dict[str, list[dict[str, Any]]] = {}
    for row in record.results["rows"]:
        if row["name"] != "dense":
            models.setdefault(row["name"], []).append(row)
    for index, (name, rows) in enumerate(models.items()):
        rows = sorted(rows, key=lambda row: row["flops_share"])
        values = [row["excess"] for row in rows]
        spread = [
            [max(0.0, row["excess"] - row["excess_interval"][0]) for row in rows],
            [max(0.0, row["excess_interval"][1] - row["excess"]) for row in rows],
        ]
        style = {"color": COLORS[index % len(COLORS)], "markersize": 5, "linewidth": 1.4, "elinewidth": 1, "capsize": 2}
        axis.errorbar(
            [row["flops_share"] for row in rows], values, yerr=spread, fmt="o-", label=model_name(name), **style
        )
    axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel("FLOPs spent, share of the dense blocks'", color=INK, fontsize=9)
    axis.set_ylabel("flow loss over dense, 95% interval", color=INK, fontsize=9)
    bare(axis)
    axis.grid(**GRID)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    return png_bytes(figure)
