"""The encoded cache (whole, resumed, renewed) and the order in which training reads it."""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from elastic_dit.errors import DataError
from elastic_dit.training.config import DataConfig
from elastic_dit.training.data import cache
from elastic_dit.training.data.cache import EncodedDataset, StepBatches, encode
from elastic_dit.training.families.base import Family, Text

PAIRS = 7


class LetterFamily(Family):
    """Latents are small pictures; a caption's state is its length and its first letter."""

    pipeline_classes = ()

    def __init__(self, fail_after: int | None = None) -> None:
        super().__init__(SimpleNamespace(components={}))
        self.encoded: list[str] = []
        self.fail_after = fail_after

    def encode_images(self, images: list[Image.Image]) -> Tensor:
        means = [sum(image.resize((1, 1)).getpixel((0, 0))) / 3 for image in images]  # type: ignore[arg-type]
        return torch.tensor(means).view(-1, 1, 1, 1).expand(-1, 1, 2, 2) / 255

    def encode_prompts(self, prompts: list[str]) -> Text:
        self.encoded += prompts
        if self.fail_after is not None and len(self.encoded) > self.fail_after:
            raise KeyboardInterrupt
        return {"states": torch.tensor([[len(p), ord((p or " ")[0])] for p in prompts], dtype=torch.float32)}

    def pack(self, latents: Tensor) -> Tensor:
        return latents.flatten(2).transpose(1, 2)

    def inputs(self, tokens: Tensor, sigma: Tensor, text: Text, latent_shape: torch.Size) -> dict[str, Any]:
        return {"hidden_states": tokens, "timestep": sigma, "encoder_hidden_states": text["states"]}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    """Seven pairs; shards of three, so that the last is not full."""
    monkeypatch.setattr(cache, "SHARD", 3)
    monkeypatch.setattr(cache, "BATCH", 2)
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(PAIRS):
        Image.new("RGB", (8, 8), (index * 30,) * 3).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text("abcdefg"[index] * (index + 1))
    return DataConfig(source="folder", path=str(folder), resolution=8, cache=tmp_path / "cache")


def rows(dataset: EncodedDataset) -> list[tuple[float, list[float]]]:
    items = [dataset[index] for index in range(len(dataset))]
    return [(item["latents"].mean().item(), item["text.states"].tolist()) for item in items]


def test_pairs_come_back_in_order(data: DataConfig) -> None:
    dataset = encode(LetterFamily(), data, data.path, quiet=True)
    assert len(dataset) == PAIRS
    for index, (latent, state) in enumerate(rows(dataset)):
        assert latent == pytest.approx(index * 30 / 255, abs=1e-3)
        assert state == [index + 1, ord("a") + index]
    assert dataset[0]["latents"].dtype == torch.float32
    assert dataset[0]["latents"].shape == (1, 2, 2)
    assert dataset.empty_text()["text.states"].tolist() == [0, ord(" ")]


def test_a_batch_takes_any_pairs_in_the_order_asked_for(data: DataConfig) -> None:
    batch = encode(LetterFamily(), data, data.path, quiet=True).batch([6, 0, 4, 4])
    assert batch["text.states"].tolist() == [[n, ord("a") + n - 1] for n in (7, 1, 5, 5)]
    assert batch["latents"].shape == (4, 1, 2, 2)
    assert {value.dtype for value in batch.values()} == {torch.float32}


def test_shards_hold_half_precision(data: DataConfig) -> None:
    dataset = encode(LetterFamily(), data, data.path, quiet=True)
    shards = [load_file(file) for file in sorted(dataset.folder.glob("0*.safetensors"))]
    assert [len(shard["latents"]) for shard in shards] == [3, 3, 1]
    assert {value.dtype for shard in shards for value in shard.values()} == {torch.float16}


def test_the_second_time_nothing_is_encoded(data: DataConfig) -> None:
    first = encode(LetterFamily(), data, data.path, quiet=True)
    again = LetterFamily()
    second = encode(again, data, data.path, quiet=True)
    assert again.encoded == []
    assert rows(second) == rows(first)


def test_an_interrupted_encoding_goes_on_at_its_last_whole_shard(data: DataConfig) -> None:
    whole = rows(encode(LetterFamily(), data.model_copy(update={"cache": data.cache / "other"}), data.path, quiet=True))
    with pytest.raises(KeyboardInterrupt):
        encode(LetterFamily(fail_after=4), data, data.path, quiet=True)  # in the second shard
    folders = [folder for folder in data.cache.iterdir() if folder.name != "other"]
    assert len(folders) == 1
    assert [file.name for file in folders[0].iterdir()] == ["00000.safetensors"]  # no half-written file, no index

    family = LetterFamily()
    resumed = encode(family, data, data.path, quiet=True)
    assert rows(resumed) == whole
    assert not any(caption.startswith(("a", "b", "c")) for caption in family.encoded)


def test_an_encoding_goes_on_without_the_images_it_has_done(data: DataConfig) -> None:
    with pytest.raises(KeyboardInterrupt):
        encode(LetterFamily(fail_after=4), data, data.path, quiet=True)
    first = Path(data.path) / "0.png"
    first.write_bytes(bytes(first.stat().st_size))  # would be an error if it were decoded
    assert len(encode(LetterFamily(), data, data.path, quiet=True)) == PAIRS


@pytest.mark.parametrize("limit", [None, 5, 6])
def test_an_encoding_that_lacks_its_index_alone_is_finished(data: DataConfig, limit: int | None) -> None:
    data = data.model_copy(update={"limit": limit})
    whole = encode(LetterFamily(), data, data.path, quiet=True)
    (whole.folder / "index.json").unlink()
    family = LetterFamily()
    again = encode(family, data, data.path, quiet=True)
    assert family.encoded == [""]
    assert rows(again) == rows(whole)


def test_images_are_made_small_and_encoded_as_they_are_read(data: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Image.Image] = []

    def photos(*_: Any) -> Iterator[tuple[Image.Image, str]]:
        for _number in range(5):
            read.append(Image.new("RGB", (40, 30)))
            yield read[-1], "a photo"

    class Watching(LetterFamily):
        def encode_images(self, images: list[Image.Image]) -> Tensor:
            seen.append((len(read), {image.size for image in images}))
            return super().encode_images(images)

    seen: list[tuple[int, set[tuple[int, int]]]] = []
    monkeypatch.setattr(cache, "read_pairs", photos)
    encode(Watching(), data, data.path, quiet=True)
    assert seen == [(n, {(8, 8)}) for n in (2, 3, 5)]  # shards of 3, batches of 2


@pytest.mark.parametrize("change", [{"resolution": 4}, {"limit": 5}])
def test_another_config_is_another_cache(data: DataConfig, change: dict[str, Any]) -> None:
    first = encode(LetterFamily(), data, data.path, quiet=True)
    other = encode(LetterFamily(), data.model_copy(update=change), data.path, quiet=True)
    assert other.folder != first.folder
    assert len(other) == change.get("limit", PAIRS)


def test_changed_data_is_encoded_anew(data: DataConfig) -> None:
    first = encode(LetterFamily(), data, data.path, quiet=True)
    (Path(data.path) / "0.txt").write_text("longer than before")
    second = encode(LetterFamily(), data, data.path, quiet=True)
    assert second.folder != first.folder
    assert second[0]["text.states"].tolist() == [18, ord("l")]


def folder_of(data: DataConfig) -> Path:
    return encode(LetterFamily(), data, data.path, quiet=True).folder


def test_a_caption_of_the_same_length_is_another(data: DataConfig) -> None:
    first = folder_of(data)
    (Path(data.path) / "0.txt").write_text("z")
    second = folder_of(data)
    (Path(data.path) / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}')
    third = folder_of(data)
    (Path(data.path) / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "y"}')
    fourth = folder_of(data)
    assert len({first, second, third, fourth}) == 4
    assert EncodedDataset(fourth)[0]["text.states"].tolist() == [1, ord("y")]


def test_a_folder_that_was_copied_is_not_encoded_again(data: DataConfig) -> None:
    first = folder_of(data)
    for file in Path(data.path).iterdir():
        os.utime(file, (0, 0))
    assert folder_of(data) == first


def test_a_shard_that_was_written_again_is_encoded_anew(data: DataConfig) -> None:
    """A tar file is filled up to a whole number of blocks, so that its size says little."""
    shard = Path(data.path) / "0.tar"
    data = data.model_copy(update={"source": "webdataset"})

    def write(caption: str, time: int) -> Path:
        (Path(data.path) / "0.txt").write_text(caption)
        with tarfile.open(shard, "w") as tar:
            for name in ("0.png", "0.txt"):
                tar.add(Path(data.path) / name, name)
        (Path(data.path) / "0.txt").write_text("")
        os.utime(shard, (time, time))
        return folder_of(data)

    first = write("a cat", 1)
    size = shard.stat().st_size
    second = write("two cats", 2)
    assert shard.stat().st_size == size
    assert second != first
    assert EncodedDataset(second)[0]["text.states"].tolist() == [8, ord("t")]


def test_no_pairs_is_an_error(data: DataConfig) -> None:
    empty = Path(data.path) / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no images"):
        encode(LetterFamily(), data, str(empty), quiet=True)


def test_the_index_says_what_it_is_of(data: DataConfig) -> None:
    dataset = encode(LetterFamily(), data, data.path, quiet=True)
    index = json.loads((dataset.folder / "index.json").read_text())
    assert index["length"] == PAIRS
    assert "LetterFamily" in index["of"]


# StepBatches


def first_batches(count: int, **arguments: Any) -> list[list[int]]:
    return list(islice(StepBatches(**{"length": 10, "batch_size": 3, "seed": 0} | arguments), count))


def test_batches_are_a_pure_function_of_their_arguments() -> None:
    assert first_batches(20) == first_batches(20)
    sampler = StepBatches(10, 3, seed=0)
    assert list(islice(sampler, 5)) == list(islice(sampler, 5))  # iterating changes nothing
    assert first_batches(20, seed=1) != first_batches(20)


@pytest.mark.parametrize("start", [1, 3, 4, 11])
def test_resuming_goes_on_exactly(start: int) -> None:
    assert first_batches(10, start=start) == first_batches(start + 10)[start:]


@pytest.mark.parametrize(("length", "world_size"), [(10, 1), (10, 2), (12, 4), (7, 3)])
def test_each_epoch_holds_every_sample_once_over_all_ranks(length: int, world_size: int) -> None:
    forwards = 3 * length
    ranks = [first_batches(forwards, length=length, rank=rank, world_size=world_size) for rank in range(world_size)]
    # in the order of positions: forward by forward, rank by rank
    order = [index for batches in zip(*ranks, strict=True) for batch in batches for index in batch]
    for epoch in range(len(order) // length):
        assert sorted(order[epoch * length : (epoch + 1) * length]) == list(range(length))


def test_ranks_are_disjoint_within_an_epoch() -> None:
    a, b = (first_batches(2, length=12, rank=rank, world_size=2) for rank in range(2))
    counts = Counter(index for batch in a + b for index in batch)
    assert counts == Counter(range(12))


def test_epochs_differ() -> None:
    batches = first_batches(4, length=6)
    assert batches[0] + batches[1] != batches[2] + batches[3]


def test_a_batch_larger_than_the_data_wraps() -> None:
    (batch,) = first_batches(1, length=2, batch_size=5)
    assert Counter(batch).total() == 5
    assert set(batch) == {0, 1}
