"""Quality against compute for every method of a contest, and the same prompts drawn by each."""

import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from elastic_dit.errors import ConfigError, UnknownNameError
from elastic_dit.records import RunRecord
from elastic_dit.report.bench_plots import GRID, bare
from elastic_dit.report.evaluation_plots import COLORS
from elastic_dit.report.judge_tables import row_name
from elastic_dit.report.plots import INK, enlarged, png_bytes

Rows = list[dict[str, Any]]
"""Of a record."""


def contest_plot(record: RunRecord) -> bytes:
    """SceneEval and kernel distance against FLOPs, PNG bytes; lines join the settings of one method."""
    methods: dict[str, Rows] = {}
    for row in record.results["rows"]:
        entry = row["entry"]
        methods.setdefault(entry["baseline"] or entry["adapter"] or entry["name"], []).append(row)
    return _quality_plot([(_method_name(rows), rows) for rows in methods.values()])


def chosen_plot(records: Sequence[RunRecord], labels: Sequence[tuple[str, str]]) -> bytes:
    """The same of some rows, under names of one's own.

    Args:
        records: of the same prompts and dense steps.
        labels: what a row is called in its record's table, and here; rows that are called the same are joined.

    Raises:
        ConfigError: the records are of other prompts or steps.
        UnknownNameError: no such row.
    """
    alike = [{key: record.config[key] for key in ("steps", "images", "captions")} for record in records]
    if odd := [each for each in alike if each != alike[0]]:
        raise ConfigError(f"records of one plot are of the same prompts and steps; got {alike[0]} and {odd[0]}")
    known = {row_name(row): row for record in reversed(records) for row in record.results["rows"]}
    methods: dict[str, Rows] = {}
    for name, label in labels:
        if name not in known:
            raise UnknownNameError("row", name, known)
        methods.setdefault(label, []).append(known[name])
    return _quality_plot(list(methods.items()))


def _method_name(rows: Rows) -> str:
    name = rows[0]["entry"]["baseline"] or row_name(rows[0])
    return name.partition(" at ")[0].partition(", ")[0] if len(rows) > 1 else name  # an adapter at several budgets


def _quality_plot(methods: Sequence[tuple[str, Rows]]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for index, (label, rows) in enumerate(methods):
        rows = sorted(rows, key=lambda row: row["cost"]["flops_share"])
        shares = [row["cost"]["flops_share"] for row in rows]
        style = {"color": COLORS[index % len(COLORS)], "markersize": 5, "linewidth": 1.4, "elinewidth": 1, "capsize": 2}
        style["marker"] = "osD^v<>P"[index // len(COLORS) % 8]
        scores = [100 * row["overall"] for row in rows]
        low = [score - 100 * row["overall_interval"][0] for score, row in zip(scores, rows, strict=True)]
        high = [100 * row["overall_interval"][1] - score for score, row in zip(scores, rows, strict=True)]
        left.errorbar(shares, scores, yerr=[low, high], label=label, **style)
        error = [1.96 * row["kernel_error"] for row in rows]
        right.errorbar(shares, [row["kernel"] for row in rows], yerr=error, label=label, **style)
    left.set_ylabel("SceneEval, %: higher is better", color=INK, fontsize=9)
    right.set_ylabel("kernel distance x 1000: lower is better", color=INK, fontsize=9)
    for axis in (left, right):
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axis.set_xlabel("FLOPs of the dense model, counted", color=INK, fontsize=9)
        bare(axis)
        axis.grid(**GRID)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=9)
    return png_bytes(figure)


def contest_sheet(record: RunRecord, captions: list[str], images: list[list[Image.Image]]) -> bytes:
    """The same prompts drawn by every row, PNG bytes: a row of pictures for each row of the record."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.25 * len(captions), 0.6 + 1.3 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), len(captions), squeeze=False)
    for row, (drawn, about) in enumerate(zip(images, record.results["rows"], strict=True)):
        for column, image in enumerate(drawn):
            axis = axes[row, column]
            axis.imshow(enlarged(image))
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if row == 0:
                axis.set_title("\n".join(textwrap.wrap(captions[column], 18)), fontsize=7, color=INK)
            if column == 0:
                name = "\n".join(textwrap.wrap(row_name(about), 16))
                share = f"{about['cost']['flops_share']:.0%} FLOPs"
                axis.set_ylabel(f"{name}\n{share}", rotation=0, ha="right", va="center", fontsize=8, color=INK)
    return _indexed(png_bytes(figure))


def _indexed(png: bytes) -> bytes:
    """The same in 256 colours: enough for graphics, at a fifth of the size."""
    buffer = BytesIO()
    Image.open(BytesIO(png)).convert("RGB").quantize(256).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
