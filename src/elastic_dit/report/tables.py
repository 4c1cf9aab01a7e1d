"""A table of text, as the terminal, Markdown and pages show it, and how numbers are written in one."""

from dataclasses import dataclass

from elastic_dit.records import RunRecord

NONE = "–"


@dataclass(frozen=True)
class Table:
    """Rows of text under a header."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""
    words: bool = False
    """Every column is words; else every one but the first is numbers."""


def table_markdown(table: Table) -> str:
    """One table with its title and note."""
    lines = [f"**{table.title}**", "", _line(table.header), _line(["---"] * len(table.header))]
    return "\n".join([*lines, *map(_line, table.rows), "", *([table.note, ""] if table.note else [])])


def where(record: RunRecord) -> str:
    """Where and with what a record was measured."""
    here = record.environment
    threads = f"{here.threads} thread{'s' * (here.threads != 1)}"
    return f"{here.device}, {threads}, torch {here.versions['torch']}, commit {here.commit}"


def seconds(value: dict[str, float]) -> str:
    """A spread of seconds, in a unit that suits it."""
    if value["median"] >= 1:
        return _spread(value, 1, ".2f", " s")
    return _spread(value, 1000, ".1f" if value["median"] < 0.1 else ".0f", " ms")


def times(value: dict[str, float]) -> str:
    """A spread of ratios."""
    return _spread(value, 1, ".2f", "×")


def ratio(value: dict[str, float]) -> str:
    """A spread of shares of a reference, where less is better."""
    return times(value).replace("×", "")


def alone(value: float) -> dict[str, float]:
    """A number as a spread without a range."""
    return dict.fromkeys(("median", "min", "max"), value)


def percent(value: float | None) -> str:
    """A share."""
    return NONE if value is None else f"{value:.1%}"


def number(value: float | None, digits: str) -> str:
    """A number, or a dash where there is none."""
    return NONE if value is None else format(value, digits)


def size_of(count: float) -> str:
    """Bytes, in a unit that suits them."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= scale:
            return f"{count / scale:.{0 if count >= 100 * scale else 1}f} {unit}"
    return f"{count:.0f} B"


def _spread(value: dict[str, float], scale: float, digits: str, unit: str) -> str:
    """`median (lowest–highest)`, or the value alone where there is one."""
    median, low, high = (format(value[name] * scale, digits) for name in ("median", "min", "max"))
    return f"{median}{unit}" if value["min"] == value["max"] else f"{median}{unit} ({low}–{high})"


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
