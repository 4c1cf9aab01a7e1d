"""One HTML page from benchmark records; it needs no network and no other file."""

from collections.abc import Sequence
from typing import NamedTuple

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_bars import bars, on_gpu
from elastic_dit.report.bench_plots import scaling_plot, share_plot, timeline_plot
from elastic_dit.report.bench_tables import tables
from elastic_dit.report.bench_words import ALL_OPEN, CACHE, COMPILED, by_name
from elastic_dit.report.page import data_uri, template
from elastic_dit.report.tables import Table, where


class Figure(NamedTuple):
    """A plot of a record."""

    name: str
    """Of its file, without the ending."""
    png: bytes
    caption: str
    narrow: bool = False
    """It is legible at half the page's width."""

    @property
    def uri(self) -> str:
        """For a page."""
        return data_uri(self.png)


def bench_page(records: Sequence[RunRecord]) -> str:
    """The page as HTML text.

    Args:
        records: of benchmarks, in the order of the page.

    Raises:
        UnknownNameError: a record is no benchmark's.
    """
    sections = [{"tables": tables(record), "figures": figures(record)} for record in records]
    return template("bench.html.j2").render(
        devices=list(dict.fromkeys(record.environment.device for record in records)),
        headline=headline(records),
        bars=bars(records),
        sections=sections,
        environment=environments(records),
    )


def headline(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """The few numbers that matter, each with its label: of the first record of its kind on a CPU and on a GPU."""
    numbers: list[tuple[str, str]] = []
    firsts: dict[tuple[str, bool], RunRecord] = {}
    for record in records:
        firsts.setdefault((record.kind, on_gpu(record)), record)
    for record in firsts.values():
        what = f"{record.config['size']}, batch {record.config['batch']}"
        if record.kind == "speed":
            rows = by_name(record.results["rows"])
            if (row := rows.get(CACHE)) is not None:
                speedup = f"speed per step at {row['flops_share']:.0%} of the FLOPs, {what}"
                numbers += [
                    (f"{row['speedup']['median']:.2f}×", speedup),
                    (f"{row['realised']['median']:.0%}", f"of the speed-up that FLOPs predict, {what}"),
                ]
            if (row := rows.get(ALL_OPEN)) is not None:
                numbers.append((f"{row['ratio']['median']:.2f}", f"of the dense time with every block open, {what}"))
            if CACHE + COMPILED in rows:
                compiled = rows[CACHE + COMPILED]["speedup"]["median"]
                numbers.append((f"{compiled:.2f}×", f"speed per step, compiled, beside compiled dense, {what}"))
        elif record.kind == "training":
            row = by_name(record.results["rows"])["elastic"]
            numbers += [
                (f"{row['ratio']['median']:.2f}", f"of the dense time for a training step, {what}"),
                (f"{row['memory_ratio']:.2f}", f"of the dense peak memory in training, {what}"),
            ]
    return numbers


def figures(record: RunRecord) -> list[Figure]:
    """The figures of one record."""
    made: list[Figure] = []
    if record.kind in ("speed", "peers"):
        caption = (
            "Speed-up against FLOPs. On the line, time is FLOPs; above it, more is saved than that. Bars: the range."
        )
        made.append(Figure(f"{record.kind}-flops", share_plot(record), caption, narrow=True))
    if "timeline" in record.results:
        caption = (
            f"One step of “{CACHE}” beside dense. Each block leads down to its own time, coloured by what happened."
        )
        made.append(Figure("timeline", timeline_plot(record), caption))
    if record.kind == "scaling" and record.results["points"]:
        caption = (
            "Time beside FLOPs, both as a share of dense. The gap between the solid and the dashed line is overhead."
        )
        made.append(Figure("scaling", scaling_plot(record), caption))
    return made


def environments(records: Sequence[RunRecord]) -> Table:
    """Where, when and how each record was measured."""
    rows = []
    for record in records:
        versions = ", ".join(f"{name} {version}" for name, version in record.environment.versions.items())
        what = f"{record.kind}, {record.config['size']}, batch {record.config['batch']}"
        rows.append((what, f"{where(record)}, {record.environment.time}", versions, record.command))
    return Table("Environment", ("", "where", "versions", "command"), rows, words=True)
