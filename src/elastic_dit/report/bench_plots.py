"""Figures of benchmark records as PNG bytes: speed-up against FLOPs, one step block by block, and scaling."""

import itertools
from typing import Any

import numpy as np

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_bars import ALL_OPEN_BAR, on_gpu
from elastic_dit.report.bench_tables import AXES
from elastic_dit.report.bench_words import ALL_OPEN, CACHE, DENSE, by_name, what_happened
from elastic_dit.report.labels import label_points
from elastic_dit.report.plots import FAINT, INK, REUSED_COLOR, SKIPPED_COLOR, png_bytes, width_colors
from elastic_dit.report.speed_tables import timeline_step
from elastic_dit.report.tables import alone, seconds

OURS, OTHERS = "#2b6cb0", "#b7791f"
WIDTHS = (0.25, 0.5, 0.75, 1.0)
"""Widths that have a colour whether a timeline has them or not."""
GRID = {"color": "#e4e7eb", "linewidth": 0.8}


def share_plot(record: RunRecord) -> bytes:
    """Speed-up against FLOPs of every row of a speed or peers record, with the line where time is FLOPs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 5.4), layout="constrained")
    axis = figure.subplots()
    rows = [row for row in record.results["rows"] if row["name"] != row["reference"]]
    shares = [row["flops_share"] for row in rows] + [1.0]
    low, high = min(shares), max(shares)
    margin = max(0.12 * (high - low), 0.05)
    axis.set_xlim(max(low - margin, low / 2), high + margin)
    line = np.linspace(*axis.get_xlim(), 100)
    (ideal,) = axis.plot(line, 1 / line, color=FAINT, linewidth=1.2, linestyle="--", label="time is FLOPs: 1 / share")
    axis.plot(1, 1, "o", color=INK, markersize=6, zorder=3)
    handles: list[Any] = [ideal]
    for row, own, handle in _styled(rows):
        value = row["speedup"]
        spread = [[max(0.0, value["median"] - value["min"])], [max(0.0, value["max"] - value["median"])]]
        bars = axis.errorbar(row["flops_share"], value["median"], yerr=spread, fmt="o", markersize=6, **own)
        if handle:
            bars.set_label(handle)
            handles.append(bars)
    heights = [1.0, *(value for row in rows for value in row["speedup"].values())]
    axis.set_ylim(0.95 * min(heights) - 0.05, 1.06 * max(heights))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.1f}×")
    axis.set_xlabel("FLOPs as executed, share of the run compared with", color=INK, fontsize=9)
    axis.set_ylabel("speed-up per step", color=INK, fontsize=9)
    bare(axis)
    axis.grid(**GRID)
    columns = 3 if len(handles) == 3 else 2
    figure.legend(handles=handles, loc="outside upper left", ncols=columns, frameon=False, fontsize=9, labelcolor=INK)
    points = [(row["flops_share"], row["speedup"], row["name"]) for row in rows]
    label_points(figure, axis, [(1.0, {"median": 1.0, "min": 1.0, "max": 1.0}, DENSE), *points], line)
    return png_bytes(figure)


def timeline_plot(record: RunRecord) -> bytes:
    """One step of a speed record: every block's time in the dense and in the elastic model, by what happened."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Polygon

    blocks = record.results["timeline"]["blocks"]
    colors = timeline_colors([block["width"] for block in blocks])
    figure = Figure(figsize=(10, 3.1), layout="constrained")
    axis = figure.subplots()
    dense, elastic = (np.array([block[f"{model}_seconds"] for block in blocks]) * 1000 for model in (DENSE, "elastic"))
    full = what_happened({"keep": True, "reuse": False, "width": 1.0})
    kinds = [what_happened(block) for block in blocks]
    for level, taken, face in ((1, dense, colors[full]), (0, elastic, [colors[kind] for kind in kinds])):
        edges = np.where(taken > 0.004 * dense.sum(), 0.4, 0.0)  # an edge would hide a thin one
        axis.barh(level, taken, 0.5, left=np.cumsum(taken) - taken, color=face, edgecolor="white", linewidth=edges)
        total = seconds(alone(taken.sum() / 1000))
        axis.text(taken.sum() + 0.008 * dense.sum(), level, total, va="center", color=INK, fontsize=10)
    above, below = np.cumsum([0, *dense]), np.cumsum([0, *elastic])
    for index, kind in enumerate(kinds):  # a skipped block is too thin to see below, but not what leads there
        edges = (above[index], 0.74), (above[index + 1], 0.74), (below[index + 1], 0.26), (below[index], 0.26)
        axis.add_patch(Polygon(edges, facecolor=colors[kind], alpha=0.55, edgecolor="white", linewidth=0.4))
    start = 0
    for path, group in itertools.groupby(block["list"] for block in blocks):
        end = start + len(list(group))
        gap = 0.002 * dense.sum()
        axis.plot((above[start] + gap, above[end] - gap), (1.31, 1.31), color=FAINT, linewidth=1, solid_capstyle="butt")
        name = f"{end - start} {path}"
        axis.text((above[start] + above[end]) / 2, 1.36, name, ha="center", color=FAINT, fontsize=9)
        start = end
    axis.set_yticks((1, 0), (DENSE, "elastic"))
    axis.set_xlim(0, 1.1 * max(dense.sum(), elastic.sum()))
    axis.set_ylim(-0.35, 1.5)
    axis.set_xlabel(f"ms, {timeline_step(record)}", color=INK, fontsize=9)
    bare(axis)
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", labelsize=10, labelcolor=INK)
    seen = {what_happened(block) for block in blocks} | {full}
    handles = [Patch(facecolor=color, label=kind) for kind, color in colors.items() if kind in seen]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, frameon=False, fontsize=9, labelcolor=INK)
    return png_bytes(figure)


def scaling_plot(record: RunRecord) -> bytes:
    """Time as a share of dense beside FLOPs, as batch, tokens, blocks and steps grow; and with every block open."""
    from matplotlib.figure import Figure

    points = record.results["points"]
    axes_there = [axis for axis in AXES if any(point["axis"] == axis for point in points)]
    columns = min(2, len(axes_there))
    lines = -(-len(axes_there) // columns)
    figure = Figure(figsize=(4.0 * columns, 0.6 + 3.0 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    bar = ALL_OPEN_BAR.limit(on_gpu(record))
    for panel in panels.flat[len(axes_there) :]:
        panel.set_visible(False)
    handles: list[Any] = []
    for name, panel in zip(axes_there, panels.flat, strict=False):
        own = sorted((point for point in points if point["axis"] == name), key=lambda point: point["value"])
        places = range(len(own))
        rows = [by_name(point["rows"]) for point in own]
        handles = [
            panel.axhline(bar, color=FAINT, linewidth=1, linestyle=":", label=f"bar for every block open: {bar:g}"),
            _line(panel, places, [row[ALL_OPEN]["ratio"] for row in rows], "every block open: time", INK),
            _line(panel, places, [row[CACHE]["ratio"] for row in rows], f"{CACHE}: time", OURS),
            panel.plot(places, [row[CACHE]["flops_share"] for row in rows], "--", color=OURS, label=f"{CACHE}: FLOPs")[
                0
            ],
        ]
        panel.set_xticks(places, [str(point["value"]) for point in own])
        panel.set_xlim(-0.3, len(own) - 0.7)
        panel.set_title(AXES[name], fontsize=10, color=INK)
        panel.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        bare(panel)
        panel.grid(axis="y", **GRID)
    lowest = min(
        value for point in points for row in point["rows"] for value in (row["ratio"]["min"], row["flops_share"])
    )
    panels[0, 0].set_ylim(bottom=max(0, np.floor(10 * lowest - 0.5) / 10))
    for panel in panels[:, 0]:
        panel.set_ylabel("share of dense", color=INK, fontsize=9)
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return png_bytes(figure)


def timeline_colors(widths: list[float]) -> dict[str, str]:
    """A colour for everything that can happen to a block."""
    known = sorted({*WIDTHS, *widths})
    named = zip((f"MLP width {width:g}" for width in known), width_colors(known), strict=True)
    return {"skipped": SKIPPED_COLOR, "reused": REUSED_COLOR, **dict(named)}


def _styled(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any], str]]:
    """Rows with their marker's style, and its legend where it comes first."""
    seen: set[str] = set()
    styled = []
    for row in rows:
        color = OURS if "open_rate" in row or row["name"].startswith("elastic") else OTHERS
        hollow = row["reference"] != DENSE
        label = ("elastic" if color == OURS else "other methods") + f", beside {row['reference']}" * hollow
        face = "white" if hollow else color
        style = {"color": color, "markerfacecolor": face, "elinewidth": 1, "capsize": 2, "zorder": 3}
        styled.append((row, style, "" if label in seen else label))
        seen.add(label)
    return styled


def _line(panel: Any, places: range, spreads: list[dict[str, float]], label: str, color: str) -> Any:
    """Medians joined, with their ranges."""
    median, low, high = (np.array([spread[key] for spread in spreads]) for key in ("median", "min", "max"))
    errors = np.maximum(0, (median - low, high - median))
    return panel.errorbar(
        places, median, yerr=errors, fmt="o-", color=color, markersize=4, linewidth=1.4, elinewidth=1, label=label
    )


def bare(axis: Any) -> None:
    """Take from axes what carries no data."""
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(FAINT)
    axis.tick_params(length=0, labelsize=8.5, colors=FAINT)
    axis.set_axisbelow(True)
