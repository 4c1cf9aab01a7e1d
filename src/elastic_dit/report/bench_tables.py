"""The tables of benchmark records: the terminal, Markdown and the page show the same."""

from collections.abc import Callable
from typing import Any

from elastic_dit.errors import UnknownNameError
from elastic_dit.records import RunRecord
from elastic_dit.report.bench_words import (
    ALL_OPEN,
    CACHE,
    DENSE,
    by_name,
    model_of,
    reference,
    routes_note,
    setting_of,
)
from elastic_dit.report.speed_tables import peers_tables, speed_tables
from elastic_dit.report.tables import (
    Table,
    alone,
    number,
    percent,
    ratio,
    seconds,
    size_of,
    table_markdown,
    times,
    where,
)

AXES = {"batch": "batch", "tokens": "tokens", "blocks": "blocks", "steps": "denoising steps"}
"""What a scaling record varies, in words."""


def tables(record: RunRecord) -> list[Table]:
    """All tables of a record; the first one's title says what was measured.

    Raises:
        UnknownNameError: the record is no benchmark's.
    """
    if record.kind not in KINDS:
        raise UnknownNameError("kind of benchmark record", record.kind, KINDS)
    return KINDS[record.kind](record)


def markdown(record: RunRecord) -> str:
    """All tables, each with its note, and where they were measured."""
    return "\n".join([*map(table_markdown, tables(record)), f"{where(record)}: `{record.command}`", ""])


def _scaling(record: RunRecord) -> list[Table]:
    made: list[Table] = []
    for axis, what in AXES.items():
        points = [point for point in record.results["points"] if point["axis"] == axis]
        if points:
            title = f"By {what}" if made else f"Scaling of {model_of(record, batch=False)}, by {what}"
            header = (what, "dense step", "FLOPs", "time", "predicted", "speed-up", "realised", "all open")
            made.append(Table(title, header, [_point(point) for point in points]))
    note = (
        f"{setting_of(record)} {routes_note(record)} One setting varies in each table. FLOPs: of “{CACHE}”, counted as "
        "executed, by torch's counter, as a share of the dense run's. Time: of its step, as a share of the dense one. "
        "Predicted: its speed-up if time were FLOPs. Realised: the share of it that was measured. All open: time with "
        "every block open, as a share of dense. The first number of a ratio is its median over the runs at each step, "
        "beside the runs of the other just before and after; the range is of whole runs."
    )
    return [*made[:-1], Table(made[-1].title, made[-1].header, made[-1].rows, note)] if made else []


def _point(point: dict[str, Any]) -> tuple[str, ...]:
    rows = by_name(point["rows"])
    row = rows[CACHE]
    return (
        str(point["value"]),
        seconds(alone(rows[DENSE]["step_seconds"]["median"])),
        percent(row["flops_share"]),
        ratio(row["ratio"]),
        f"{row['predicted_speedup']:.2f}×",
        times(alone(row["speedup"]["median"])),
        number(row["realised"]["median"], ".2f"),
        ratio(rows[ALL_OPEN]["ratio"]),
    )


def _training(record: RunRecord) -> list[Table]:
    rows = [
        (
            row["name"],
            seconds(row["step_seconds"]),
            ratio(row["ratio"]),
            size_of(row["peak_bytes"]),
            f"{row['memory_ratio']:.2f}",
            size_of(row["saved_bytes"]),
            f"{row['saved_ratio']:.2f}",
            reference(row),
        )
        for row in record.results["rows"]
    ]
    return [
        Table(
            f"Training of {model_of(record)}",
            ("", "step", "/ dense", "peak memory", "/ dense", "saved", "/ dense", "beside"),
            rows,
            f"{setting_of(record)} A step is one forward and one backward pass of all weights, routers included. "
            "Elastic training runs every block and masks what is skipped, so it is no faster. Beside: the run that "
            "“/ dense” compares with. Step: median (lowest–highest); its ratio is to the mean of the dense step before "
            "and the one after it. Peak memory: weights, gradients and activations. Saved: what is held between "
            "the forward and the backward pass, the weights apart.",
        )
    ]


def _parts(record: RunRecord) -> list[Table]:
    results = record.results
    slices = [
        (f"{each['width']:g}", seconds(each["view_seconds"]), seconds(each["copy_seconds"]), ratio(each["ratio"]))
        for each in results["slices"]
    ]
    share = results["router_share"]
    shares = (percent(share["median"]), percent(share["min"]), percent(share["max"]))
    return [
        Table(
            f"A router of {model_of(record)}",
            ("block", "router", "share of its time", "share of its FLOPs", "block: no product"),
            [
                (
                    seconds(results["block_seconds"]),
                    seconds(results["router_seconds"]),
                    f"{shares[0]} ({shares[1]}–{shares[2]})",
                    f"{results['router_flops_share']:.2%}",
                    percent(results.get("other_share")),
                )
            ],
            f"{record.config['about']}; its last block alone, random weights, {record.config['repeats']} timed calls "
            "of each, in turn; medians with the lowest and highest. No product: share of the block's time in neither a "
            "matrix product nor attention, by torch's profiler; FLOPs do not count it, and only a part of it shrinks "
            "with the MLP.",
        ),
        Table(
            "A slice of weights: the second projection of that block's MLP",
            ("width", "a view", "a copy", "view / copy"),
            slices,
            "A view: the first columns of the whole matrix, rows as far apart as before. A copy: the same columns one "
            "after the other in memory, copied before the timing.",
        ),
    ]


KINDS: dict[str, Callable[[RunRecord], list[Table]]] = {
    "speed": speed_tables,
    "peers": peers_tables,
    "scaling": _scaling,
    "training": _training,
    "parts": _parts,
}
"""The benchmarks, in the order of a page."""
