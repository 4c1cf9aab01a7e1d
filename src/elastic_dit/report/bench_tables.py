"""The tables of benchmark records: the terminal, Markdown and the page show the same."""

from collections.abc import Callable
from typing import Any

from elastic_dit.errors import UnknownNameError
from elastic_dit.records import RunRecord
from elastic_dit.report.bench_steps import by_step
from elastic_dit.report.tables import NONE, Table, number, percent, seconds, times

DENSE, ALL_OPEN, CACHE = "dense", "all open", "skip + width + cache"
"""Names of rows."""
LATE, COMPILED = ", a step late", ", compiled"
"""What the names end with of a row whose routers are heard a step later, and of a compiled one."""
AXES = {"batch": "batch", "tokens": "tokens", "blocks": "blocks", "steps": "denoising steps"}
"""What a scaling record varies, in words."""

SPEED_NOTE = (
    "Beside: the run that FLOPs and speed-up are compared with. FLOPs: counted as executed, by torch's counter, as a "
    "share of that run's. Step: time of one denoising step in the transformer, all guidance passes. Predicted: the "
    "speed-up if time were FLOPs. Realised: the share of it that was measured; above 1, something else than fewer "
    "FLOPs helps. The first number of a ratio is its median over the runs at each step, beside the runs of the other "
    "just before and after; the range is of whole runs."
)


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


def table_markdown(table: Table) -> str:
    """One table with its title and note."""
    lines = [f"**{table.title}**", "", _line(table.header), _line(["---"] * len(table.header))]
    return "\n".join([*lines, *map(_line, table.rows), "", *([table.note, ""] if table.note else [])])


def where(record: RunRecord) -> str:
    """Where and with what a record was measured."""
    here = record.environment
    threads = f"{here.threads} thread{'s' * (here.threads != 1)}"
    return f"{here.device}, {threads}, torch {here.versions['torch']}, commit {here.commit}"


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of a record by their names."""
    return {row["name"]: row for row in rows}


def what_happened(block: dict[str, Any]) -> str:
    """A block of a timeline in words."""
    if not block["keep"]:
        return "skipped"
    return "reused" if block["reuse"] else f"MLP width {block['width']:g}"


def _speed(record: RunRecord) -> list[Table]:
    rows = record.results["rows"]
    dense = seconds(by_name(rows)[DENSE]["step_seconds"])
    made = [
        Table(
            f"Speed of {_model(record)}: a dense step takes {dense}",
            ("", "FLOPs", "step", "speed-up", "predicted", "realised", "beside"),
            [(row["name"], *_measured(row), _reference(row)) for row in rows],
            f"{_setting(record)} {_routes_note(record)} {SPEED_NOTE}",
        ),
        Table(
            "Routes",
            ("", "open", "reused", "width"),
            [
                (row["name"], percent(row["open_rate"]), percent(row["reuse_rate"]), number(row["mean_width"], ".2f"))
                for row in rows
                if "open_rate" in row
            ],
            "Open: share of the blocks that are not skipped. Reused: share of the open blocks that added a stored "
            "residual. Width: mean MLP width of the blocks that ran.",
        ),
    ]
    made += [by_step(record)] if record.config["steps"] > 1 else []
    compiled = [row for row in rows if COMPILED in row["name"] and "warm_up_seconds" in row]
    made += [_compilation(compiled, record.config["steps"])] if compiled else []
    return [*made, _timeline(record)] if "timeline" in record.results else made


def _compilation(rows: list[dict[str, Any]], steps: int) -> Table:
    return Table(
        "Compilation",
        ("", "first run", "a later run", "graphs after the first"),
        [
            (
                row["name"].removesuffix(COMPILED),
                seconds(alone(row["warm_up_seconds"])),
                seconds(alone(row["step_seconds"]["median"] * steps)),
                str(row["graphs"]),
            )
            for row in rows
        ],
        "First run: all steps, with all that is compiled in them, in the order of the table, so what blocks share "
        "counts for the row above. Graphs: compiled in any later run.",
    )


def _timeline(record: RunRecord) -> Table:
    blocks = record.results["timeline"]["blocks"]
    order = sorted(blocks, key=lambda block: (block["keep"], block["keep"] and not block["reuse"], block["width"]))
    kinds = dict.fromkeys(map(what_happened, order))
    groups = [(kind, [block for block in blocks if what_happened(block) == kind]) for kind in kinds]
    return Table(
        f"One step, block by block: {timeline_step(record)}",
        ("", "blocks", "dense", "elastic", "elastic / dense"),
        [_group(kind, group) for kind, group in [*groups, ("all blocks", blocks)]],
        f"The row “{CACHE}”. Dense and elastic: time of these blocks in either model. Routers are in it; what lies "
        "outside the blocks is not.",
    )


def timeline_step(record: RunRecord) -> str:
    """Which step the timeline shows."""
    timeline = record.results["timeline"]
    return f"step {timeline['step'] + 1} of {record.config['steps']}, guidance pass {timeline['branch'] + 1}"


def _group(name: str, blocks: list[dict[str, Any]]) -> tuple[str, ...]:
    dense, elastic = (sum(block[f"{model}_seconds"] for block in blocks) for model in ("dense", "elastic"))
    return name, str(len(blocks)), seconds(alone(dense)), seconds(alone(elastic)), f"{elastic / dense:.2f}"


def _peers(record: RunRecord) -> list[Table]:
    rows = record.results["rows"]
    peers = [row for row in rows if "source" in row]
    left_out = record.results["left_out"]
    made = [
        Table(
            f"Other methods on {_model(record)}: a dense step takes {seconds(by_name(rows)[DENSE]['step_seconds'])}",
            ("", "setting", "FLOPs", "step", "speed-up", "predicted", "realised", "beside"),
            [(row["name"], _number_of_setting(row), *_measured(row), _reference(row)) for row in rows],
            f"{_setting(record)} {_routes_note(record)} This compares speed; quality is not in it. Setting: the "
            f"method's own number, named below. {SPEED_NOTE}",
        ),
        Table(
            "What the methods are",
            ("", "what it does", "setting", "source"),
            [(row["name"], row["about"], row["setting_name"] or NONE, row["source"]) for row in peers],
            words=True,
        ),
    ]
    if left_out:
        made.append(Table("Left out", ("", "why"), [(each["name"], each["why"]) for each in left_out], words=True))
    return made


def _scaling(record: RunRecord) -> list[Table]:
    made: list[Table] = []
    for axis, what in AXES.items():
        points = [point for point in record.results["points"] if point["axis"] == axis]
        if points:
            title = f"By {what}" if made else f"Scaling of {_model(record, batch=False)}, by {what}"
            header = (what, "dense step", "FLOPs", "time", "predicted", "speed-up", "realised", "all open")
            made.append(Table(title, header, [_point(point) for point in points]))
    note = (
        f"{_setting(record)} {_routes_note(record)} One setting varies in each table. FLOPs: of “{CACHE}”, counted as "
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
            _reference(row),
        )
        for row in record.results["rows"]
    ]
    return [
        Table(
            f"Training of {_model(record)}",
            ("", "step", "/ dense", "peak memory", "/ dense", "saved", "/ dense", "beside"),
            rows,
            f"{_setting(record)} A step is one forward and one backward pass of all weights, routers included. Elastic "
            "training runs every block and masks what is skipped, so it is no faster. Beside: the run that “/ dense” "
            "compares with. Step: median (lowest–highest); its ratio is to the mean of the dense step before and the "
            "one after it. Peak memory: weights, gradients and activations. Saved: what is held between the forward "
            "and the backward pass, the weights apart.",
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
            f"A router of {_model(record)}",
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
    "speed": _speed,
    "peers": _peers,
    "scaling": _scaling,
    "training": _training,
    "parts": _parts,
}
"""The benchmarks, in the order of a page."""


def alone(value: float) -> dict[str, float]:
    """A number as a spread without a range."""
    return dict.fromkeys(("median", "min", "max"), value)


def ratio(value: dict[str, float]) -> str:
    """A spread of shares of a reference, where less is better."""
    return times(value).replace("×", "")


def size_of(count: float) -> str:
    """Bytes, in a unit that suits them."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.{0 if count >= 100 * scale else 1}f} {unit}"
    return f"{count:.0f} B"


def _measured(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        percent(row["flops_share"]),
        seconds(row["step_seconds"]),
        times(row["speedup"]),
        f"{row['predicted_speedup']:.2f}×",
        number(row["realised"]["median"], ".2f"),
    )


def _reference(row: dict[str, Any]) -> str:
    return NONE if row["reference"] == row["name"] else row["reference"]


def _number_of_setting(row: dict[str, Any]) -> str:
    value = row.get("setting")
    return NONE if value is None else f"{value:g}"


def _model(record: RunRecord, *, batch: bool = True) -> str:
    config = record.config
    parts = [config["size"], *([f"batch {config['batch']}"] if batch else []), config["dtype"]]
    return ", ".join(parts)


def _setting(record: RunRecord) -> str:
    config = record.config
    weights = f"{record.results['parameters'] / 1e6:.1f} M random weights"
    steps = f"{config['steps']} step{'s' * (config['steps'] != 1)}"
    times_run = f"{config['repeats']} timed run{'s' * (config['repeats'] != 1)}"
    return f"{config['about']}. {weights}, preset {config['preset']}, {steps}, {times_run} of each, in turn."


def _routes_note(record: RunRecord) -> str:
    rates = record.config["rates"]
    return (
        f"Routes are drawn with seed {record.config['seed']}: {rates['open_rate']:.0%} of the blocks are open, and "
        f"{rates['reuse_rate']:.0%} of the open ones reuse a stored residual as far as the cache's limit lets them."
    )


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
