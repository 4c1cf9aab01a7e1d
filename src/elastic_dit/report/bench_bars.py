"""The project's bars beside what was measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_words import ALL_OPEN, CACHE, COMPILED, LATE, by_name
from elastic_dit.report.tables import NONE, Table

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Bar:
    """A number to reach or to stay under."""

    what: str
    cpu: float
    gpu: float
    measure: Callable[[RunRecord], float | None]
    """What a record says of it; None: nothing."""
    at_least: bool = False
    """Whether more is better."""

    def limit(self, gpu: bool) -> float:
        """The bar on a kind of device."""
        return self.gpu if gpu else self.cpu

    def worst(self, records: Sequence[RunRecord], gpu: bool) -> float | None:
        """The worst that was measured on a kind of device."""
        found = [value for record in records if on_gpu(record) == gpu if (value := self.measure(record)) is not None]
        choose = min if self.at_least else max
        return choose(found, default=None)

    def met(self, value: float, gpu: bool) -> bool:
        """Whether a measured value, not rounded, is on the right side."""
        return value >= self.limit(gpu) if self.at_least else value <= self.limit(gpu)


def bars(records: Sequence[RunRecord]) -> Table:
    """Each bar, what was measured, and whether it is met; on a CPU and on a GPU."""
    return Table(
        "Bars",
        ("", "CPU bar", "measured", "met", "GPU bar", "measured", "met"),
        [(bar.what, *_cells(bar, records, False), *_cells(bar, records, True)) for bar in BARS],
        "Realised: the share of the speed-up predicted by counted FLOPs that was measured. A ratio is its median over "
        "the runs at each step, beside the runs of the other just before and after; the tables below have the ranges. "
        "Where several records measure the same, the worst counts.",
    )


def on_gpu(record: RunRecord) -> bool:
    """Whether a record was measured on a GPU."""
    return record.config.get("device_type") == "cuda"


def _cells(bar: Bar, records: Sequence[RunRecord], gpu: bool) -> tuple[str, str, str]:
    value = bar.worst(records, gpu)
    limit = f"{'≥' if bar.at_least else '≤'} {bar.limit(gpu):g}"
    if value is None:
        return limit, NONE, NOT_MEASURED
    return limit, f"{value:.3f}", "yes" if bar.met(value, gpu) else "no"


def _median(name: str, what: str, kind: str = "speed", batch: int | None = 1) -> Callable[[RunRecord], float | None]:
    """Reads one number, or the median of a spread, of a row of a kind of record; batch None: of any batch."""

    def measure(record: RunRecord) -> float | None:
        if record.kind != kind or batch not in (None, record.config["batch"]):
            return None
        row = by_name(record.results["rows"]).get(name)
        if row is None:
            return None
        return row[what]["median"] if isinstance(row[what], dict) else row[what]

    return measure


_realised, _speedup = _median(CACHE, "realised"), _median(CACHE, "speedup")
_compiled_speedup = _median(CACHE + COMPILED, "speedup")


def _flux(name: str) -> Callable[[RunRecord], float | None]:
    """Time over dense, of a row on a FLUX transformer."""

    def measure(record: RunRecord) -> float | None:
        return _median(name, "ratio")(record) if record.config["size"].startswith("flux") else None

    return measure


def _mixed(record: RunRecord) -> float | None:
    """Time over the time that FLOPs predict."""
    realised = _median(CACHE, "realised", batch=8)(record)
    if record.kind == "scaling":
        points = (point for point in record.results["points"] if (point["axis"], point["value"]) == ("batch", 8))
        realised = next((by_name(point["rows"])[CACHE]["realised"]["median"] for point in points), None)
    return None if realised is None else 1 / realised


def _compiled(record: RunRecord) -> float | None:
    compiled, eager = _compiled_speedup(record), _speedup(record)
    return None if compiled is None or eager is None else compiled / eager


def _graphs(record: RunRecord) -> float | None:
    """Graphs that compiled contenders compiled after the warm-up."""
    if record.kind not in ("speed", "peers"):
        return None
    counts = [row["graphs"] for row in record.results["rows"] if COMPILED in row["name"] and "graphs" in row]
    return float(sum(counts)) if counts else None


def _training(name: str, what: str) -> Callable[[RunRecord], float | None]:
    return _median(name, what, "training", None)


ALL_OPEN_BAR = Bar("every block open: time / dense, batch 1", 1.03, 1.01, _median(ALL_OPEN, "ratio"))
BARS = (
    Bar(f"realised speed-up of “{CACHE}”, batch 1", 0.93, 0.97, _realised, at_least=True),
    Bar(f"realised speed-up of “{CACHE}{LATE}”, batch 1", 0.93, 0.97, _median(CACHE + LATE, "realised"), at_least=True),
    ALL_OPEN_BAR,
    Bar(f"every block open{LATE}: time / dense, batch 1", 1.03, 1.01, _median(ALL_OPEN + LATE, "ratio")),
    Bar(f"FLUX, “{CACHE}”: time / dense, batch 1", 0.55, 0.52, _flux(CACHE)),
    Bar(f"FLUX, “{CACHE}{LATE}”: time / dense, batch 1", 0.55, 0.52, _flux(CACHE + LATE)),
    Bar("mixed routes in a batch of 8: time / time predicted by FLOPs", 1.08, 1.05, _mixed),
    Bar("compiled: speed-up over compiled dense, as a share of the eager one", 0.95, 0.95, _compiled, at_least=True),
    Bar("graphs compiled after the warm-up", 0, 0, _graphs),
    Bar("training: time of a step / dense", 1.10, 1.10, _training("elastic", "ratio")),
    Bar("training: peak memory / dense", 1.10, 1.10, _training("elastic", "memory_ratio")),
    Bar("training with checkpointing: time / dense", 1.10, 1.10, _training("elastic, checkpointing", "ratio")),
    Bar("training with checkpointing: memory / dense", 1.10, 1.10, _training("elastic, checkpointing", "memory_ratio")),
)
