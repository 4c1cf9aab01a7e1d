"""The tables of speed: our contenders beside dense, step by step and block by block, and other methods."""

from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_steps import by_step
from elastic_dit.report.bench_words import (
    CACHE,
    COMPILED,
    DENSE,
    SPEED_NOTE,
    by_name,
    measured,
    model_of,
    reference,
    routes_note,
    setting_of,
    what_happened,
)
from elastic_dit.report.tables import NONE, Table, alone, number, percent, seconds


def speed_tables(record: RunRecord) -> list[Table]:
    """Of `elastic-dit bench speed`."""
    rows = record.results["rows"]
    dense = seconds(by_name(rows)[DENSE]["step_seconds"])
    made = [
        Table(
            f"Speed of {model_of(record)}: a dense step takes {dense}",
            ("", "FLOPs", "step", "speed-up", "predicted", "realised", "beside"),
            [(row["name"], *measured(row), reference(row)) for row in rows],
            f"{setting_of(record)} {routes_note(record)} {SPEED_NOTE}",
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


def timeline_step(record: RunRecord) -> str:
    """Which step the timeline shows."""
    timeline = record.results["timeline"]
    return f"step {timeline['step'] + 1} of {record.config['steps']}, guidance pass {timeline['branch'] + 1}"


def peers_tables(record: RunRecord) -> list[Table]:
    """Of `elastic-dit bench peers`."""
    rows = record.results["rows"]
    peers = [row for row in rows if "source" in row]
    left_out = record.results["left_out"]
    made = [
        Table(
            f"Other methods on {model_of(record)}: a dense step takes {seconds(by_name(rows)[DENSE]['step_seconds'])}",
            ("", "setting", "FLOPs", "step", "speed-up", "predicted", "realised", "beside"),
            [(row["name"], _number_of_setting(row), *measured(row), reference(row)) for row in rows],
            f"{setting_of(record)} {routes_note(record)} This compares speed; quality is not in it. Setting: the "
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


def _group(name: str, blocks: list[dict[str, Any]]) -> tuple[str, ...]:
    dense, elastic = (sum(block[f"{model}_seconds"] for block in blocks) for model in ("dense", "elastic"))
    return name, str(len(blocks)), seconds(alone(dense)), seconds(alone(elastic)), f"{elastic / dense:.2f}"


def _number_of_setting(row: dict[str, Any]) -> str:
    value = row.get("setting")
    return NONE if value is None else f"{value:g}"
