"""Figures as PNG bytes: the router heat map (the paper's Figure 7) and images side by side."""

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from elastic_dit.records import RunRecord
from elastic_dit.report.routes import Route, extreme_routes

INK, FAINT = "#1f2933", "#7b8794"
SKIPPED_COLOR, REUSED_COLOR = "#e8ebee", "#f2b04a"
ENLARGED = 192
"""Images smaller than this are shown enlarged to about this size."""


def heat_map(record: RunRecord) -> bytes:
    """Blocks x steps of the prompts that spent least and most: decisions above, keep probabilities below."""
    from matplotlib.figure import Figure

    routes = extreme_routes(record)
    figure = Figure(figsize=(1.0 + 5.0 * len(routes), 9.2), layout="constrained")
    axes = figure.subplots(2, len(routes), squeeze=False, sharex=True, sharey=True)
    names = ("least compute", "most compute") if len(routes) > 1 else ("",)
    for column, (route, name) in enumerate(zip(routes, names, strict=True)):
        _decisions(axes[0, column], route, record)
        shown = _probabilities(axes[1, column], route, record.config["elastic"]["tau"])
        title = f"{name}: {route.share:.0%} of dense" if name else f"{route.share:.0%} of dense"
        axes[0, column].set_title(f"{_wrap(f'“{route.prompt}”', 44)}\n{title}", fontsize=10, color=INK)
        axes[1, column].set_xlabel("denoising step")
        if column == 0:
            for axis in axes[:, 0]:
                axis.set_ylabel("block", color=INK)
        bar = figure.colorbar(shown, ax=axes[1, column], orientation="horizontal", aspect=40, pad=0.02)
        bar.set_label("keep probability p; white is the threshold τ", color=INK, fontsize=9)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, colors=FAINT)
    _legend(figure, record)
    return png_bytes(figure)


def side_by_side(record: RunRecord, dense: list[Image.Image], elastic: list[Image.Image]) -> bytes:
    """Dense images above the elastic ones, a column a prompt."""
    from matplotlib.figure import Figure

    prompts = record.results["prompts"]
    columns = min(6, len(prompts))
    bands = -(-len(prompts) // columns)
    figure = Figure(figsize=(0.5 + 2.1 * columns, 5.1 * bands), layout="constrained")
    axes = figure.subplots(2 * bands, columns, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for index, row in enumerate(prompts):
        band, column = divmod(index, columns)
        for offset, (name, image) in enumerate((("dense", dense[index]), ("elastic", elastic[index]))):
            axis = axes[2 * band + offset, column]
            axis.imshow(enlarged(image))
            text = _wrap(row["prompt"], 24) if offset == 0 else f"{row['flops_share']:.0%} of the FLOPs"
            axis.set_title(text, fontsize=9, color=INK if offset == 0 else FAINT)
            if column == 0:
                axis.text(-0.06, 0.5, name, transform=axis.transAxes, rotation=90, va="center", ha="right", color=INK)
    return png_bytes(figure)


def enlarged(image: Image.Image) -> Image.Image:
    """A small image a whole number of times larger, smoothly; a large one as it is."""
    factor = round(ENLARGED / image.width)
    return (
        image if factor < 2 else image.resize((image.width * factor, image.height * factor), Image.Resampling.LANCZOS)
    )


def width_colors(ratios: list[float]) -> list[str]:
    """A blue for each width, darker for wider."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colormaps["Blues"](level)) for level in np.linspace(0.35, 0.95, len(ratios))]


def _decisions(axis: Any, route: Route, record: RunRecord) -> None:
    from matplotlib.colors import ListedColormap

    colors = [SKIPPED_COLOR, REUSED_COLOR, *width_colors(record.config["elastic"]["width_ratios"])]
    kinds = list(record.results["model"]["blocks"].values())
    mesh(axis, route.decisions, kinds, cmap=ListedColormap(colors), vmin=-0.5, vmax=len(colors) - 0.5)


def _probabilities(axis: Any, route: Route, tau: float) -> Any:
    from matplotlib.colors import TwoSlopeNorm

    norm = TwoSlopeNorm(min(max(tau, 0.01), 0.99), 0, 1)
    return mesh(axis, route.keep_prob, cmap="RdBu_r", norm=norm)


def mesh(axis: Any, values: Any, kinds: Sequence[int] = (), **style: Any) -> Any:
    """(S, L) values with a cell each, steps to the right and blocks downwards.

    Args:
        axis: what to draw on.
        values: (S, L).
        kinds: how many blocks there are of each kind, for a line where one ends and the next begins.
        style: of `pcolormesh`.
    """
    from matplotlib.ticker import MaxNLocator

    steps, blocks = values.shape
    edges = np.arange(steps + 1) + 0.5, np.arange(blocks + 1) + 0.5
    drawn = axis.pcolormesh(*edges, values.T, edgecolors="white", linewidth=0.4, **style)
    axis.set_ylim(blocks + 0.5, 0.5)
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    axis.tick_params(length=0, labelsize=8, colors=FAINT)
    for spine in axis.spines.values():
        spine.set_visible(False)
    for end in np.cumsum(kinds)[:-1]:
        axis.axhline(end + 0.5, color=INK, linewidth=0.8)
    return drawn


def _legend(figure: Any, record: RunRecord) -> None:
    from matplotlib.patches import Patch

    ratios = record.config["elastic"]["width_ratios"]
    entries = [("skipped", SKIPPED_COLOR), ("reused", REUSED_COLOR)]
    entries += [(f"MLP width {ratio:g}", color) for ratio, color in zip(ratios, width_colors(ratios), strict=True)]
    figure.legend(
        handles=[Patch(facecolor=color, label=label) for label, color in entries],
        loc="outside upper center",
        ncols=len(entries) if len(extreme_routes(record)) > 1 else 3,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
    )


def _wrap(text: str, width: int) -> str:
    return textwrap.fill(textwrap.shorten(text, 2 * width, placeholder="…"), width)


def png_bytes(figure: Any) -> bytes:
    """A figure as PNG bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()
