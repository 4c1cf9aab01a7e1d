"""What `elastic-dit study` measured, as figures: the paper's Figures 2, 6 and 7 on another model. PNG bytes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_plots import GRID, bare
from elastic_dit.report.evaluation_plots import COLORS
from elastic_dit.report.plots import FAINT, INK, mesh, png_bytes
from elastic_dit.report.study_tables import curve_name

Map = npt.NDArray[np.float64]
EMPTY = "#c9ced6"
"""Where there is nothing to show: no sample ran there."""
SIDES = {"delta": ((-1, 1), (-1, 1)), "max_reuse": ((1, 1), (-1, -1)), "skip": ((1, -1), (-1, -1))}
"""Right and up of a curve's first and last point, where its name stands: off the curves."""


def study_plot(record: RunRecord) -> bytes:
    """The figure of a record that `elastic-dit study` wrote."""
    plots: dict[str, Callable[[RunRecord], bytes]] = {
        "study-blocks": blocks_plot,
        "study-routes": routes_plot,
        "study-cache": cache_plot,
        "study-allocation": allocation_plot,
    }
    return plots[record.kind](record)


def blocks_plot(record: RunRecord) -> bytes:
    """Figure 2: how much each block matters at each noise level, in easy and hard scenes, and what differs."""
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 10.4), layout="constrained")
    axes = figure.subplots(2, 3, sharex=True, sharey=True)
    names = {"left_out": "block left out", "quarter": "MLP at width 1/4"}
    for row, (name, about) in enumerate(names.items()):
        easy, hard = (np.array(record.results[name][group]) for group in ("easy", "hard"))  # (K, L)
        both = np.concatenate([easy, hard])
        low, high = both[both > 0].min(initial=1.0), both.max(initial=1e-6)
        style = {"cmap": "YlGnBu", "norm": LogNorm(low, max(high, 1.01 * low))}
        ratio = np.log2(np.maximum(hard, low) / np.maximum(easy, low))
        labels = (f"{about}: change of the velocity", "hard over easy")
        _row(figure, axes[row], (easy, hard, ratio), record, style, labels)
        axes[row, 2].figure.axes[-1].xaxis.set_major_formatter(lambda power, _: f"{2**power:.2g}×")
    levels = [f"{level:g}" for level in record.config["levels"]]
    for axis in axes[-1]:
        axis.set_xticks(range(1, len(levels) + 1), levels)
        axis.set_xlabel("noise level σ", color=INK, fontsize=9)
    used = record.config["used"]
    _titles(axes[0], f"easy scenes ({used['easy']})", f"hard scenes ({used['hard']})", "hard over easy")
    return png_bytes(figure)


def routes_plot(record: RunRecord) -> bytes:
    """Figure 7: open rate and mean width of the easiest and hardest quarter; then compute against difficulty."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 14.2), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.6, 1))
    above, below = parts
    axes = above.subplots(2, 3, sharex=True, sharey=True)
    run = record.results["runs"][0]
    rows = {
        "open": ("share of images that open the block", {"cmap": "Blues", "vmin": 0.0, "vmax": 1.0}),
        "width": ("mean MLP width where it ran; grey: nowhere", {"cmap": "Purples", "vmin": 0.0, "vmax": 1.0}),
    }
    for row, (name, (label, style)) in enumerate(rows.items()):
        easy, hard = (np.array(run[group][name], dtype=float) for group in ("easy", "hard"))  # (S, L)
        _row(above, axes[row], (easy, hard, hard - easy), record, style, (label, "hard less easy"))
    for axis in axes[-1]:
        axis.set_xlabel("denoising step", color=INK, fontsize=9)
    shares = [f"{run[group]['flops_share']:.1%} of the FLOPs" for group in ("easy", "hard")]
    _titles(axes[0], f"easiest quarter: {shares[0]}", f"hardest quarter: {shares[1]}", "difference")
    _difficulty(below, record)
    return png_bytes(figure)


def cache_plot(record: RunRecord) -> bytes:
    """Figure 6: closeness to the dense images against compute, over delta, over K, and skipped instead."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = record.results["rows"]
    symbols = {"delta": "δ", "max_reuse": "K", "skip": "δ"}
    for index, curve in enumerate(dict.fromkeys(row["curve"] for row in rows)):
        own = [row for row in rows if row["curve"] == curve]
        style = {"color": COLORS[index], "marker": "osD"[index], "markersize": 5, "linewidth": 1.4, "capsize": 2}
        for axis, key in ((left, "psnr"), (right, "ssim")):
            values = [row[key] for row in own]
            spread = [[row[key] - row[f"{key}_interval"][0] for row in own]]
            spread += [[row[f"{key}_interval"][1] - row[key] for row in own]]
            shares = [row["flops_share"] for row in own]
            axis.errorbar(
                shares, values, yerr=np.maximum(spread, 0), label=curve_name(curve, rows, record.config), **style
            )
            for row in {id(row): row for row in (own[0], own[-1])}.values():
                if curve != "skip" or row["value"]:  # nothing is skipped: the first curve names that point
                    text = f"{symbols[curve]} = {row['value']:g}"
                    _name_point(axis, row, key, text, COLORS[index], SIDES[curve][row is own[-1]])
    left.set_ylabel("PSNR to the dense images, dB", color=INK, fontsize=9)
    right.set_ylabel("SSIM to the dense images", color=INK, fontsize=9)
    for axis in (left, right):
        axis.margins(x=0.17, y=0.14)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_xlabel("FLOPs spent, share of the dense blocks'", color=INK, fontsize=9)
        bare(axis)
        axis.grid(**GRID)
    handles = left.get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False, fontsize=9, labelcolor=INK)
    return png_bytes(figure)


def allocation_plot(record: RunRecord) -> bytes:
    """Loss over dense against mean FLOPs, for each way to share them out."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    rows = record.results["rows"]
    shares = [row["flops_share"] for row in rows]
    for index, name in enumerate(rows[0]["ways"]):
        losses = [row["ways"][name]["excess"] for row in rows]
        style = {"color": COLORS[index % len(COLORS)], "marker": "osD^vP"[index], "markersize": 5, "linewidth": 1.4}
        label = "equal shares" if name == "equal" else f"by {name}"
        axis.plot(shares, losses, label=label, **style)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_xlabel("mean FLOPs, share of the dense blocks'", color=INK, fontsize=9)
    axis.set_ylabel("flow loss over the dense model's", color=INK, fontsize=9)
    bare(axis)
    axis.grid(**GRID)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    return png_bytes(figure)


def _row(
    figure: Any,
    axes: Any,
    maps: tuple[Map, Map, Map],
    record: RunRecord,
    style: dict[str, Any],
    labels: tuple[str, str],
) -> None:
    """Easy, hard and what differs, (S, L) each, with one colour bar for the first two and one for the third."""
    from matplotlib import colormaps

    kinds = list(record.config["blocks"].values())
    *pair, apart = maps
    own = style | {"cmap": colormaps[style["cmap"]].with_extremes(bad=EMPTY)}
    for axis, values in zip(axes, pair, strict=False):
        shown = mesh(axis, np.ma.masked_invalid(values), kinds, **own)
    limit = max(float(np.nanmax(np.abs(apart), initial=0.0)), 0.05)
    both = {"cmap": colormaps["RdBu_r"].with_extremes(bad=EMPTY), "vmin": -limit, "vmax": limit}
    differs = mesh(axes[2], np.ma.masked_invalid(apart), kinds, **both)
    for drawn, where, label in ((shown, axes[:2], labels[0]), (differs, axes[2:], labels[1])):
        bar = figure.colorbar(drawn, ax=list(where), orientation="horizontal", aspect=20 * len(where), pad=0.02)
        bar.set_label(label, color=INK, fontsize=9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=FAINT)
    axes[0].set_ylabel("block", color=INK, fontsize=9)


def _titles(axes: Any, *titles: str) -> None:
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10, color=INK)


def _difficulty(figure: Any, record: RunRecord) -> None:
    """Compute of each image against what its prompt asks for, and of each forward against the dense flow loss."""
    from matplotlib import colormaps
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    left, right = figure.subplots(1, 2)
    samples, results = record.samples, record.results
    asked = np.array(samples["difficulty"])
    beside = np.random.default_rng(0).uniform(-0.25, 0.25, len(asked))  # whole numbers would hide one another
    run = results["runs"][0]
    left.plot(asked + beside, samples["no_reuse_flops_share"], "o", markersize=4, alpha=0.6, color=COLORS[0], mew=0)
    left.set_xlabel("what the prompt asks for: objects and attributes", color=INK, fontsize=9)
    left.set_ylabel("FLOPs of the image, share of dense", color=INK, fontsize=9)
    left.set_title(f"whole image: {_rho(run['correlation'])}", fontsize=10, color=INK)
    levels = record.config["levels"]
    for color, level in zip(colormaps["viridis"](np.linspace(0, 0.9, len(levels))), levels, strict=True):
        loss, share = (samples[f"sigma_{level:g}_{name}"] for name in ("dense_loss", "flops_share"))
        right.plot(loss, share, "o", markersize=4, alpha=0.7, color=color, mew=0, label=f"σ = {level:g}")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set_xscale("log")
    right.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.xaxis.set_minor_formatter(NullFormatter())
    right.tick_params(which="minor", length=0)
    right.set_xlabel("flow loss of the dense model on the same forward", color=INK, fontsize=9)
    right.set_ylabel("FLOPs of the forward, share of dense", color=INK, fontsize=9)
    right.set_title(f"within noise levels: {_rho(results['forwards']['loss'])}", fontsize=10, color=INK)
    right.legend(frameon=False, fontsize=8, labelcolor=INK, handletextpad=0.1)
    for axis in (left, right):
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        bare(axis)
        axis.grid(**GRID)


def _rho(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"rank correlation {found['value']:+.2f} ({low:+.2f} to {high:+.2f})"


def _name_point(axis: Any, row: dict[str, Any], key: str, text: str, color: str, side: tuple[int, int]) -> None:
    """Name a point to its left or right, above or below."""
    horizontal, vertical = side
    axis.annotate(
        text,
        (row["flops_share"], row[key]),
        (6 * horizontal, 6 * vertical),
        textcoords="offset points",
        ha="left" if horizontal > 0 else "right",
        va="bottom" if vertical > 0 else "top",
        fontsize=8,
        color=color,
    )
