"""Image-caption pairs from each kind of source, in a fixed order, and the errors of broken ones."""

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from elastic_dit.errors import DataError
from elastic_dit.training.data.sources import read_pairs, square

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def paint(color: str, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, COLORS[color])


def write_images(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, color in enumerate(COLORS):
        paint(color).save(folder / f"{index}.png")


def write_shard(file: Path, samples: dict[str, dict[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for key, parts in samples.items():
            for suffix, content in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    paint(color).save(buffer, "PNG")
    return buffer.getvalue()


def colors_and_captions(source: str, path: Path, column: str = "text") -> list[tuple[str, str]]:
    names = {rgb: name for name, rgb in COLORS.items()}
    pairs = list(read_pairs(source, str(path), column))  # type: ignore[arg-type]
    return [(names[image.convert("RGB").getpixel((0, 0))], caption) for image, caption in pairs]  # type: ignore[index]


EXPECTED = [("red", "a red thing"), ("green", "a green thing"), ("blue", "a blue thing")]


def test_folder_with_text_files(tmp_path: Path) -> None:
    write_images(tmp_path)
    for index, color in enumerate(COLORS):
        (tmp_path / f"{index}.txt").write_text(f"  a {color} thing\n")
    assert colors_and_captions("folder", tmp_path) == EXPECTED


def test_folder_with_metadata(tmp_path: Path) -> None:
    write_images(tmp_path / "train")
    rows = [{"file_name": f"train/{index}.png", "text": f"a {color} thing"} for index, color in enumerate(COLORS)]
    rows[1]["caption"] = rows[1].pop("text")  # either name
    (tmp_path / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert colors_and_captions("folder", tmp_path) == EXPECTED


def test_metadata_wins_over_text_files_and_is_filled_up_by_them(tmp_path: Path) -> None:
    write_images(tmp_path)
    for index, color in enumerate(COLORS):
        (tmp_path / f"{index}.txt").write_text("from a file" if color == "red" else f"a {color} thing")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "0.png", "text": "a red thing"}))
    assert colors_and_captions("folder", tmp_path) == EXPECTED


def test_shards_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    write_shard(tmp_path / "b.tar", {"2": {"png": png("blue"), "txt": b" a blue thing "}})
    write_shard(
        tmp_path / "a.tar",
        {
            "0": {"png": png("red"), "txt": b"a red thing\n", "json": b'{"extra": 1}'},
            "1": {"png": png("green"), "txt": b"a green thing"},
        },
    )
    assert colors_and_captions("webdataset", tmp_path) == EXPECTED


@pytest.mark.parametrize("column", ["text", "label"])
def test_hub_dataset_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    folder = tmp_path / "images"
    write_images(folder)
    rows = [{"file_name": f"{index}.png", column: f"a {color} thing"} for index, color in enumerate(COLORS)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert colors_and_captions("hub", folder, column) == EXPECTED
    with pytest.raises(DataError, match="no column 'prose'; it has image, " + column):
        list(read_pairs("hub", str(folder), "prose"))


def test_errors_say_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no data folder .*nowhere"):
        read_pairs("folder", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"no \*\.tar shards"):
        list(read_pairs("webdataset", str(tmp_path)))
    with pytest.raises(DataError, match=r"no images .*expected .*\.png"):
        list(read_pairs("folder", str(tmp_path)))


def test_an_image_without_a_caption_is_named(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "0.txt").write_text("a red thing")
    with pytest.raises(DataError, match=r"1\.png has no caption; expected 1\.txt or a line in metadata\.jsonl"):
        list(read_pairs("folder", str(tmp_path)))


def test_a_shard_sample_without_image_or_caption_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"lonely": {"png": png("red")}})
    with pytest.raises(DataError, match=r"sample lonely .*expected an image and a \.txt caption"):
        list(read_pairs("webdataset", str(tmp_path)))
    write_shard(tmp_path / "a.tar", {"blind": {"txt": b"a caption"}})
    with pytest.raises(DataError, match="sample blind"):
        list(read_pairs("webdataset", str(tmp_path)))


def test_square_crops_the_centre() -> None:
    wide = Image.new("RGB", (30, 10), "blue")
    wide.paste("red", (10, 0, 20, 10))
    small = square(wide, 5)
    assert small.size == (5, 5)
    for corner in ((0, 0), (4, 0), (0, 4), (4, 4)):
        red, _, blue = small.getpixel(corner)  # type: ignore[misc]
        assert red > 200 > 50 > blue  # resampling blurs the edge a little


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_square_puts_transparent_pixels_on_white(mode: str) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear = clear.quantize() if mode == "P" else clear.convert(mode)
    assert square(clear, 4).getpixel((1, 1)) == (255, 255, 255)


def test_square_leaves_a_fitting_image_alone() -> None:
    image = paint("green", (8, 8))
    assert square(image, 8).tobytes() == image.tobytes()
