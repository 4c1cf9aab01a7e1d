"""The progress bar of a training run."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOWN = {"loss": "loss", "keep/open_rate": "open", "width/mean": "width", "flops/share": "flops"}


class StepProgress:
    """Steps done, the time left and the few values worth watching."""

    def __init__(self, console: Console, steps: int, done: int) -> None:
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[values]}"),
            console=console,
        )
        self._task = self._progress.add_task("", total=steps, completed=done, values="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def advance(self, values: dict[str, float]) -> None:
        """One step done."""
        shown = "  ".join(f"{label} {values[name]:.3f}" for name, label in SHOWN.items() if name in values)
        self._progress.update(self._task, advance=1, values=shown)
