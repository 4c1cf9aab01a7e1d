"""The table of a latency record, on the terminal and in Markdown."""

from elastic_dit.records import RunRecord
from elastic_dit.report.tables import Table, number, percent, seconds, times


def variants_table(record: RunRecord) -> Table:
    """Every way the elastic transformer ran, beside what its FLOPs predict."""
    rows = [
        (
            row["name"],
            percent(row["open_rate"]),
            percent(row["reuse_rate"]),
            number(row["mean_width"], ".2f"),
            percent(row["flops_share"]),
            seconds(row["step_seconds"]),
            times(row["speedup"]),
            f"{row['predicted_speedup']:.2f}×",
            f"{row['realised']['median']:.2f} ({row['realised']['min']:.2f}–{row['realised']['max']:.2f})",
        )
        for row in record.results["rows"]
    ]
    config = record.config
    dense = seconds(record.results["rows"][0]["dense_step_seconds"])
    compiled = ", blocks compiled" if config["compiled"] else ""
    return Table(
        f"{config['size']}, batch {config['batch']}, {config['dtype']}{compiled}: a dense step takes {dense}",
        ("", "open", "reused", "width", "FLOPs", "step", "speed-up", "FLOPs predict", "realised"),
        rows,
        f"{config['about']}; random weights, {config['steps']} steps, seeded routes. Median (lowest–highest) of "
        f"{config['repeats']} runs; dense and elastic runs take turns. Realised: speed-up over the one that the FLOPs "
        "predict, which count blocks and routers over dense blocks.",
    )


def markdown(table: Table, record: RunRecord) -> str:
    """The table with its note and where it was measured."""
    here = record.environment
    lines = [f"**{table.title}**", ""]
    lines += [_line(table.header), _line(["---"] * len(table.header))]
    lines += [_line(row) for row in table.rows]
    where = f"{here.device}, {here.threads} threads, torch {here.versions['torch']}, commit {here.commit}"
    return "\n".join([*lines, "", table.note, "", f"{where}: `{record.command}`", ""])


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
