"""What commands leave behind: files written whole or not at all, and tables on the terminal."""

import io
import time
from pathlib import Path
from typing import TYPE_CHECKING

from elastic_dit.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

    from elastic_dit.report.tables import Table


def write_bytes(file: Path, data: bytes) -> Path:
    """Write a file and the folders above it, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.partial")
    try:
        temporary.write_bytes(data)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    return file


def image_format(file: Path) -> str:
    """Pillow's name for the format of a file name.

    Raises:
        ConfigError: images cannot be written under such a name.
    """
    from PIL import Image

    found = Image.registered_extensions().get(file.suffix.lower())
    if found not in Image.SAVE:
        raise ConfigError(f"{file} is no name for an image; expected one that ends in .png, .jpg or .webp")
    return found


def encode_image(image: "Image.Image", name: str = "PNG") -> bytes:
    """An image in one of Pillow's formats."""
    buffer = io.BytesIO()
    image.save(buffer, name)
    return buffer.getvalue()


def print_table(table: "Table") -> None:
    """A table on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable

    shown = RichTable(title=table.title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(table.header):
        words = index == 0 or table.words
        shown.add_column(name, justify="left" if words else "right", overflow="fold")
    for row in table.rows:
        shown.add_row(*row)
    Console().print(shown)


class ProgressBar:
    """The progress bar, on stderr; where that is no terminal, a line now and then, for a log."""

    every = 60.0
    """Seconds between lines."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

        columns = (TextColumn("{task.description:18}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
        self._console = Console(stderr=True)
        self._last = time.monotonic()
        shown = self._console.is_terminal
        self._progress = Progress(*columns, console=self._console, transient=True, disable=not shown)
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, label: str, done: int, total: int) -> None:
        """What runs, and how much is done; a total of 0 is not known yet."""
        self._progress.update(self._task, description=label, completed=done, total=total or None)
        if not self._console.is_terminal and time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            self._console.print(f"{label}: {done} of {total}" if total else label, highlight=False)
