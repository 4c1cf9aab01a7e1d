"""Read image-caption pairs from tar shards, a folder of images, or a Hugging Face dataset."""

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from PIL import Image, ImageOps

from elastic_dit.errors import DataError
from elastic_dit.training.data.scenes import Scene

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
Pair = tuple[Image.Image, str]


def read_pairs(
    source: Literal["webdataset", "folder", "hub"], path: str, caption_column: str = "text", start: int = 0
) -> Iterator[Pair]:
    """Yield (image, caption) in a fixed order.

    Args:
        source: the kind of data.
        path: folder of `*.tar` shards or of images, or the name of a Hub dataset.
        caption_column: the Hub dataset's caption column.
        start: pass over so many pairs, whose images are not decoded.

    Raises:
        DataError: nothing there, a picture without a caption, or a file that cannot be read.
    """
    if source == "hub":
        return _read_hub(path, caption_column, start)
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"no data folder {folder}; expected tar shards or images there")
    return _read_shards(folder, start) if source == "webdataset" else _read_folder(folder, start)


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
        scene = Scene.from_json(_parsed(sample["json"], _member(sample, "json")))
        yield _image(sample, "webp").convert("RGB"), _caption(sample, "txt"), scene


def square(image: Image.Image, size: int) -> Image.Image:
    """Scale and centre-crop to size x size RGB; transparent pixels become white."""
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def _read_shards(folder: Path, start: int) -> Iterator[Pair]:
    for sample in islice(_samples(folder), start, None):
        image = next((name for name in sample if _is_image(name)), None)
        caption = next((name for name in ("txt", "caption") if name in sample), None)
        if image is None or caption is None:
            raise DataError(
                f"sample {sample['__key__']} of {folder} has {sorted(sample)}; expected an image and a .txt caption"
            )
        yield _image(sample, image), _caption(sample, caption)


def _samples(folder: Path) -> Iterator[dict[str, Any]]:
    """The samples of all shards, in their order: the bytes of each member, by its suffix."""
    import webdataset

    if not folder.is_dir():
        raise DataError(f"no data folder {folder}; expected tar shards there")
    shards = sorted(str(shard) for shard in folder.glob("*.tar"))
    if not shards:
        raise DataError(f"no *.tar shards in {folder}; `elastic-dit data prepare` writes them")
    for shard in shards:
        # no node splitter: one process encodes all shards, and the ranks share the encoded samples
        samples: Any = webdataset.WebDataset(  # pyright: ignore[reportAttributeAccessIssue]
            [shard], shardshuffle=False, empty_check=False, nodesplitter=None
        )
        try:
            yield from samples
        except tarfile.TarError as error:
            raise DataError(f"{shard} is no whole tar file ({error.args[0]}); copy or make it again") from error


def _is_image(suffix: str) -> bool:
    return Image.registered_extensions().get(f".{suffix.rpartition('.')[2]}") in Image.OPEN


def _member(sample: dict[str, Any], suffix: str) -> str:
    return f"{sample['__key__']}.{suffix} of {sample['__url__']}"


def _image(sample: dict[str, Any], suffix: str) -> Image.Image:
    return _opened(io.BytesIO(sample[suffix]), _member(sample, suffix))


def _caption(sample: dict[str, Any], suffix: str) -> str:
    return _text(sample[suffix], _member(sample, suffix)).strip()


def _opened(file: Path | io.BytesIO, name: str) -> Image.Image:
    """A decoded image with its transparency, turned as viewers show it."""
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:  # each of Pillow's decoders fails in a way of its own
        raise DataError(f"cannot read the image {name}: {error}; replace it, or remove it with its caption") from error


def _text(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is no UTF-8 text ({error}); save it as UTF-8") from error


def _parsed(content: bytes | str, name: str) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON ({error}); correct or remove it") from error


def _read_folder(folder: Path, start: int) -> Iterator[Pair]:
    """Captions lie in `metadata.jsonl` (file_name, text), as for Hugging Face, or in NAME.txt."""
    metadata = folder / "metadata.jsonl"
    captions = _read_metadata(metadata) if metadata.is_file() else {}
    images = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"no images in {folder}; expected {', '.join(sorted(IMAGE_SUFFIXES))}")
    for file in images[start:]:
        caption = captions.get(str(file.relative_to(folder)))
        text = file.with_suffix(".txt")
        if caption is None and text.is_file():
            caption = _text(text.read_bytes(), str(text))
        if caption is None:
            raise DataError(f"{file.name} has no caption; expected {text.name} or a line in metadata.jsonl")
        yield _opened(file, str(file)), str(caption).strip()


def _read_metadata(file: Path) -> dict[str, Any]:
    """Captions by file name."""
    captions: dict[str, Any] = {}
    for number, line in enumerate(_text(file.read_bytes(), str(file)).split("\n"), start=1):
        if not line.strip():
            continue
        row = _parsed(line, f"line {number} of {file}")
        if not isinstance(row, dict) or "file_name" not in row:
            raise DataError(f'line {number} of {file} has no file_name; expected {{"file_name": ..., "text": ...}}')
        captions[row["file_name"]] = row.get("text", row.get("caption", ""))
    return captions


def _read_hub(name: str, caption_column: str, start: int) -> Iterator[Pair]:
    import datasets

    dataset: Any = datasets.load_dataset(name, split="train")
    columns: list[str] = dataset.column_names or []
    for column in ("image", caption_column):
        if column not in columns:
            raise DataError(f"dataset {name} has no column {column!r}; it has {', '.join(columns)}")
    for number in range(start, len(dataset)):
        try:
            row = dataset[number]  # decodes the image
        except OSError as error:
            raise DataError(f"cannot read the image in row {number} of {name}: {error}; remove the row") from error
        yield row["image"], str(row[caption_column])
