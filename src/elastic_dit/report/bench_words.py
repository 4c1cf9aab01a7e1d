"""What the tables, bars and plots of benchmark records call things."""

from typing import Any

from elastic_dit.records import RunRecord
from elastic_dit.report.tables import NONE, number, percent, seconds, times

DENSE, ALL_OPEN, CACHE = "dense", "all open", "skip + width + cache"
"""Names of rows."""
LATE, COMPILED = ", a step late", ", compiled"
"""What the names end with of a row whose routers are heard a step later, and of a compiled one."""

SPEED_NOTE = (
    "Beside: the row that this one is compared with. FLOPs: counted as executed, by torch's counter, as a share of "
    "that row's. Step: time of one denoising step in the transformer, all guidance passes. Predicted: the speed-up if "
    "time were FLOPs. Realised: the measured speed-up as a share of the predicted; above 1, something else than fewer "
    "FLOPs helps. The first number of a ratio is its median over the runs at each step, beside the runs of the other "
    "just before and after; the range is of whole runs."
)


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The rows of a record by their names."""
    return {row["name"]: row for row in rows}


def what_happened(block: dict[str, Any]) -> str:
    """A block of a timeline in words."""
    if not block["keep"]:
        return "skipped"
    return "reused" if block["reuse"] else f"MLP width {block['width']:g}"


def measured(row: dict[str, Any]) -> tuple[str, ...]:
    """What a row spent and how long it took: the cells from FLOPs to realised."""
    return (
        percent(row["flops_share"]),
        seconds(row["step_seconds"]),
        times(row["speedup"]),
        f"{row['predicted_speedup']:.2f}×",
        number(row["realised"]["median"], ".2f"),
    )


def reference(row: dict[str, Any]) -> str:
    """What a row is compared with, if that is another one."""
    return NONE if row["reference"] == row["name"] else row["reference"]


def model_of(record: RunRecord, *, batch: bool = True) -> str:
    """Size, batch and dtype of the model."""
    config = record.config
    parts = [config["size"], *([f"batch {config['batch']}"] if batch else []), config["dtype"]]
    return ", ".join(parts)


def setting_of(record: RunRecord) -> str:
    """What was run, and how often."""
    config = record.config
    weights = f"{record.results['parameters'] / 1e6:.1f} M random weights"
    steps = f"{config['steps']} step{'s' * (config['steps'] != 1)}"
    times_run = f"{config['repeats']} timed run{'s' * (config['repeats'] != 1)}"
    return f"{config['about']}. {weights}, preset {config['preset']}, {steps}, {times_run} of each, in turn."


def routes_note(record: RunRecord) -> str:
    """How the routes were drawn."""
    rates = record.config["rates"]
    return (
        f"Routes are drawn with seed {record.config['seed']}: {rates['open_rate']:.0%} of the blocks are open, and "
        f"{rates['reuse_rate']:.0%} of the open ones reuse a stored residual as far as the cache's limit lets them."
    )
