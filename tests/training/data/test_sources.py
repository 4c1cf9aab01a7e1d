"""Image-caption pairs from each kind of source, in a fixed order, and the errors of broken ones."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

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


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(color: str) -> bytes:
    return encoded(paint(color), "PNG")


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


def of_both(tmp_path: Path, suffix: str, content: bytes, caption: str = "a cat") -> list[tuple[Image.Image, str]]:
    """The same pair from a folder and from a shard."""
    (tmp_path / f"0.{suffix}").write_bytes(content)
    (tmp_path / "0.txt").write_bytes(caption.encode())
    write_shard(tmp_path / "a.tar", {"0": {suffix: content, "caption": caption.encode()}})
    return [*read_pairs("folder", str(tmp_path)), *read_pairs("webdataset", str(tmp_path))]


def test_a_caption_member_is_text(tmp_path: Path) -> None:
    assert [caption for _, caption in of_both(tmp_path, "png", png("red"), "ein K\xe4tzchen\n")] == [
        "ein K\xe4tzchen"
    ] * 2


def test_transparency_is_white_from_every_source(tmp_path: Path) -> None:
    clear = encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")
    assert [square(image, 4).getpixel((1, 1)) for image, _ in of_both(tmp_path, "png", clear)] == [(255,) * 3] * 2


def test_photos_stand_as_viewers_show_them(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # the camera was held upright: turn by 90 degrees
    lying = Image.new("RGB", (40, 20), "blue")
    lying.paste("red", (0, 0, 20, 20))
    for image, _ in of_both(tmp_path, "jpg", encoded(lying, "JPEG", exif=exif)):
        assert image.size == (20, 40)
        red, _, blue = image.getpixel((10, 4))  # type: ignore[misc]
        assert red > 200 > 50 > blue


def test_pairs_that_are_passed_over_are_not_decoded(tmp_path: Path) -> None:
    write_images(tmp_path)
    for index, color in enumerate(COLORS):
        (tmp_path / f"{index}.txt").write_text(f"a {color} thing")
    (tmp_path / "0.png").write_bytes(b"no image")
    members = [{"png": png(color), "txt": f"a {color} thing".encode()} for color in COLORS]
    members[0]["png"] = b"no image"
    write_shard(tmp_path / "a.tar", {str(index): member for index, member in enumerate(members)})
    for source in ("folder", "webdataset"):
        captions = [caption for _, caption in read_pairs(source, str(tmp_path), start=1)]  # type: ignore[arg-type]
        assert captions == ["a green thing", "a blue thing"]
        assert not list(read_pairs(source, str(tmp_path), start=5))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"", b"no image", encoded(Image.effect_noise((64, 64), 50), "JPEG")[:-400]])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, content: bytes) -> None:
    write_shard(tmp_path / "a.tar", {"7": {"jpg": content, "txt": b"a cat"}})
    with pytest.raises(DataError, match=r"cannot read the image 7\.jpg of .*a\.tar: .*; replace it, or remove it"):
        list(read_pairs("webdataset", str(tmp_path)))
    (tmp_path / "8.jpg").write_bytes(content)
    (tmp_path / "8.txt").write_text("a cat")
    with pytest.raises(DataError, match=r"cannot read the image .*8\.jpg: .*; replace it, or remove it"):
        list(read_pairs("folder", str(tmp_path)))


def test_an_image_of_a_hub_dataset_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"image": {"bytes": content, "path": None}, "text": "a cat"} for content in (png("red"), b"no image")]
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_list(rows, features=features))
    pairs = read_pairs("hub", "some/cats")
    assert next(pairs)[1] == "a cat"
    with pytest.raises(DataError, match="cannot read the image in row 1 of some/cats"):
        next(pairs)


def test_a_tar_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.tar", {"7": {"png": png("red") * 99, "txt": b"a cat"}})
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:1500])
    with pytest.raises(DataError, match=r"a\.tar is no whole tar file \(unexpected end of data"):
        list(read_pairs("webdataset", str(tmp_path)))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"file_name": "1.png", "te', r"line 2 of .*metadata\.jsonl is not valid JSON .*; correct or remove it"),
        (b'{"text": "a cat"}', r'line 2 of .*metadata\.jsonl has no file_name; expected {"file_name": \.\.\., "text"'),
        (b"[]", r"line 2 of .*metadata\.jsonl has no file_name"),
        (b'{"text": "\xe4"}', r"metadata\.jsonl is no UTF-8 text .*; save it as UTF-8"),
    ],
)
def test_a_broken_line_of_metadata_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    write_images(tmp_path)
    (tmp_path / "metadata.jsonl").write_bytes(b'{"file_name": "0.png", "text": "a cat"}\n' + line)
    with pytest.raises(DataError, match=said):
        list(read_pairs("folder", str(tmp_path)))


def test_a_line_of_metadata_ends_where_json_lines_do(tmp_path: Path) -> None:
    write_images(tmp_path)
    rows = [{"file_name": f"{index}.png", "text": "a\u2028cat"} for index in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert [caption for _, caption in read_pairs("folder", str(tmp_path))] == ["a\u2028cat"] * 3


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
