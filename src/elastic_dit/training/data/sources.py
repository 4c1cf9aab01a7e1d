"""Read image-caption pairs from tar shards, a folder of images, or a Hugging Face dataset."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageOps

from elastic_dit.errors import DataError
from elastic_dit.training.data.scenes import Scene

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
Pair = tuple[Image.Image, str]


def read_pairs(
    source: Literal["webdataset", "folder", "hub"], path: str, caption_column: str = "text"
) -> Iterator[Pair]:
    """Yield (image, caption) in a fixed order.

    Args:
        source: the kind of data.
        path: folder of `*.tar` shards or of images, or the name of a Hub dataset.
        caption_column: the Hub dataset's caption column.

    Raises:
        DataError: nothing there, or a picture without a caption.
    """
    if source == "hub":
        return _read_hub(path, caption_column)
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"no data folder {folder}; expected tar shards or images there")
    return _read_shards(folder) if source == "webdataset" else _read_folder(folder)


def read_scenes(path: str) -> Iterator[tuple[Image.Image, str, Scene]]:
    """Yield (image, caption, scene) of shards that `data prepare` wrote, in their order.

    Raises:
        DataError: no shards there, or shards without scenes.
    """
    for sample in _samples(Path(path)):
        if "json" not in sample or "txt" not in sample or "webp" not in sample:
            raise DataError(
                f"sample {sample['__key__']} of {path} has {sorted(sample)}; expected the webp, txt and json "
                "that `elastic-dit data prepare` writes"
            )
        yield sample["webp"].convert("RGB"), str(sample["txt"]).strip(), Scene.from_json(sample["json"])


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale and centre-crop to size x size RGB; transparent pixels become white."""
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def _read_shards(folder: Path) -> Iterator[Pair]:
    for sample in _samples(folder):
        image = next((value for value in sample.values() if isinstance(value, Image.Image)), None)
        caption = sample.get("txt", sample.get("caption"))
        if image is None or caption is None:
            raise DataError(
                f"sample {sample['__key__']} of {folder} has {sorted(sample)}; expected an image and a .txt caption"
            )
        yield image, str(caption).strip()


def _samples(folder: Path) -> Iterator[dict[str, Any]]:
    """The decoded samples of all shards, in their order."""
    import webdataset

    if not folder.is_dir():
        raise DataError(f"no data folder {folder}; expected tar shards there")
    shards = sorted(str(shard) for shard in folder.glob("*.tar"))
    if not shards:
        raise DataError(f"no *.tar shards in {folder}; `elastic-dit data prepare` writes them")
    # no node splitter: one process encodes all shards, and the ranks share the encoded samples
    pipeline: Any = webdataset.WebDataset(  # pyright: ignore[reportAttributeAccessIssue]
        shards, shardshuffle=False, empty_check=False, nodesplitter=None
    ).decode("pil")
    yield from pipeline


def _read_folder(folder: Path) -> Iterator[Pair]:
    """Captions lie in `metadata.jsonl` (file_name, text), as for Hugging Face, or in NAME.txt."""
    metadata = folder / "metadata.jsonl"
    captions: dict[str, str] = {}
    if metadata.is_file():
        rows = [json.loads(line) for line in metadata.read_text().splitlines() if line.strip()]
        captions = {row["file_name"]: row.get("text", row.get("caption", "")) for row in rows}
    images = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"no images in {folder}; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    for file in images:
        caption = captions.get(str(file.relative_to(folder)))
        text = file.with_suffix(".txt")
        if caption is None and text.is_file():
            caption = text.read_text()
        if caption is None:
            raise DataError(f"{file.name} has no caption; expected {text.name} or a line in metadata.jsonl")
        with Image.open(file) as image:
            yield image.copy(), caption.strip()


def _read_hub(name: str, caption_column: str) -> Iterator[Pair]:
    import datasets

    dataset: Any = datasets.load_dataset(name, split="train")
    columns: list[str] = dataset.column_names or []
    for column in ("image", caption_column):
        if column not in columns:
            raise DataError(f"dataset {name} has no column {column!r}; it has {', '.join(columns)}")
    for row in dataset:
        yield row["image"], str(row[caption_column])
