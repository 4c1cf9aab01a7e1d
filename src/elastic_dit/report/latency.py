"""The tables of a latency record, on the terminal and in Markdown."""

from elastic_dit.records import RunRecord
from elastic_dit.report.tables import Table, number, percent, seconds, times


def speed_table(record: RunRecord) -> Table:
    """Every way the elastic transformer ran: its speed-up beside the one that its FLOPs predict."""
    rows = [
        (
            row["name"],
            percent(row["flops_share"]),
            seconds(dict.fromkeys(("median", "min", "max"), row["step_seconds"]["median"])),
            times(row["speedup"]),
            f"{row['predicted_speedup']:.2f}×",
            number(row["realised"]["median"], ".2f"),
        )
        for row in record.results["rows"]
    ]
    config = record.config
    compiled = ", compiled" if config["compiled"] else ""
    dense = seconds(record.results["rows"][0]["dense_step_seconds"])
    return Table(
        f"{config['size']}, batch {config['batch']}, {config['dtype']}{compiled}: a dense step takes {dense}",
        ("", "FLOPs", "step", "speed-up", "predicted", "realised"),
        rows,
        f"{config['about']}. Random weights, {config['steps']} steps, seeded routes, {config['repeats']} runs of each "
        "in turn. Median (lowest–highest). FLOPs: blocks and routers, as a share of the dense blocks'. Predicted: the "
        "speed-up if time were FLOPs. Realised: the share of it that was measured.",
    )


def routes_table(record: RunRecord) -> Table:
    """What each of them did."""
    rows = [
        (row["name"], percent(row["open_rate"]), percent(row["reuse_rate"]), number(row["mean_width"], ".2f"))
        for row in record.results["rows"]
    ]
    return Table("Routes", ("", "open", "reused", "width"), rows)


def markdown(record: RunRecord) -> str:
    """Both tables, with where they were measured."""
    here, speed, routes = record.environment, speed_table(record), routes_table(record)
    lines = [f"**{speed.title}**", ""]
    for table in (speed, routes):
        lines += [_line(table.header), _line(["---"] * len(table.header)), *map(_line, table.rows), ""]
    where = f"{here.device}, {here.threads} threads, torch {here.versions['torch']}, commit {here.commit}"
    return "\n".join([*lines, speed.note, "", f"{where}: `{record.command}`", ""])


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
