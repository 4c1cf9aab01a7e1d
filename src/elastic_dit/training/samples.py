"""Sample grids: images in rows, one PNG."""

import math
from pathlib import Path

from PIL import Image


def grid(images: list[Image.Image], columns: int | None = None, gap: int = 4) -> Image.Image:
    """Lay equal-sized images out on white, about as wide as high unless `columns` says otherwise."""
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        sheet.paste(image, (column * (width + gap), row * (height + gap)))
    return sheet


def save_grid(images: list[Image.Image], file: Path) -> None:
    """Write the grid of `images` to a PNG."""
    file.parent.mkdir(parents=True, exist_ok=True)
    grid(images).save(file)
