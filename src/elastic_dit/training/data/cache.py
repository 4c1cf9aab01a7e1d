"""Latents and text states, encoded once and kept on disk; and which of them a step trains on."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from elastic_dit.errors import DataError
from elastic_dit.training.config import DataConfig
from elastic_dit.training.data.sources import IMAGE_SUFFIXES, Pair, read_pairs, square
from elastic_dit.training.families.base import Family

SHARD = 2048
BATCH = 64
TEXT_SUFFIXES = {".txt", ".jsonl", ".json", ".csv"}
Sample = dict[str, Tensor]


class EncodedDataset:
    """Encoded pairs on disk: `latents` and one `text.NAME` per text state.

    The folder's name is a hash of everything that shapes its content. Shards are written to a temporary
    name and renamed, so an interrupted encoding goes on where it stopped.
    """

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.folder: Path = folder
        self.length: int = index["length"]
        self._shards: dict[int, Sample] = {}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        return {name: value[0] for name, value in self.batch([index]).items()}

    def batch(self, indices: Sequence[int], device: torch.device | str = "cpu") -> Sample:
        """The samples at these places, stacked, float32; they travel to the device as stored, at half the size."""
        rows = [(self._opened(index // SHARD), index % SHARD) for index in indices]
        return {name: torch.stack([shard[name][row] for shard, row in rows]).to(device).float() for name in rows[0][0]}

    def _opened(self, index: int) -> Sample:
        if index not in self._shards:
            self._shards[index] = load_file(_shard(self.folder, index))  # mapped, not read
        return self._shards[index]

    def empty_text(self, device: torch.device | str = "cpu") -> Sample:
        """Text states of the empty caption, for caption dropout."""
        return {name: value.to(device).float() for name, value in load_file(self.folder / "empty.safetensors").items()}


def encode(family: Family, data: DataConfig, path: str, *, quiet: bool = False) -> EncodedDataset:
    """The encoded form of the pairs at `path`, made now unless it is there.

    Args:
        family: encodes images and captions with the parts of its own pipeline.
        data: source, resolution and cache folder.
        path: which data (the training or the validation path of `data`).
        quiet: show no progress bar.

    Raises:
        DataError: there are no pairs.
    """
    identity = json.dumps(
        [
            type(family).__name__,
            family.encoders(),
            data.source,
            _stamp(path),
            data.resolution,
            data.caption_column,
            data.limit,
        ]
    )
    folder = data.cache / hashlib.sha256(identity.encode()).hexdigest()[:16]
    if (folder / "index.json").is_file():
        return EncodedDataset(folder)
    folder.mkdir(parents=True, exist_ok=True)

    finished = _count_shards(folder)
    pairs = track(_squares(data, path, finished * SHARD), f"encoding {path}", disable=quiet, show_speed=False)
    for shard in count(finished):
        encoded = [_encode_batch(family, batch) for batch in _chunks(islice(pairs, SHARD), BATCH)]
        if not encoded:
            break
        _write({name: torch.cat([batch[name] for batch in encoded]) for name in encoded[0]}, _shard(folder, shard))
    length = _count_pairs(folder)
    if not length:
        raise DataError(f"no image-caption pairs at {path}")
    empty = {f"text.{name}": value[0] for name, value in family.encode_prompts([""]).items()}
    _write(_half(empty), folder / "empty.safetensors")
    index = folder / ".index.json"
    index.write_text(json.dumps({"length": length, "of": identity}))
    index.rename(folder / "index.json")
    return EncodedDataset(folder)


class StepBatches:
    """The sample indices of each forward: a pure function of seed, rank and position, so that resuming is exact.

    Every epoch is one seeded permutation, split among ranks; epochs follow one another without a seam.
    """

    def __init__(
        self, length: int, batch_size: int, *, seed: int, start: int = 0, rank: int = 0, world_size: int = 1
    ) -> None:
        self.length, self.batch_size, self.seed, self.start = length, batch_size, seed, start
        self.rank, self.world_size = rank, world_size
        self._epoch, self._order = -1, torch.empty(0)

    def __iter__(self) -> Iterator[list[int]]:
        forward = self.start
        while True:
            first = (forward * self.world_size + self.rank) * self.batch_size
            yield [self._at(position) for position in range(first, first + self.batch_size)]
            forward += 1

    def _at(self, position: int) -> int:
        epoch, offset = divmod(position, self.length)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, torch.randperm(self.length, generator=generator)
        return int(self._order[offset])


def _squares(data: DataConfig, path: str, start: int) -> Iterator[Pair]:
    """The pairs from `start` on, each made small as it is read: originals of a whole shard would fill the memory."""
    pairs = read_pairs(data.source, path, data.caption_column, start)
    limit = None if data.limit is None else max(data.limit - start, 0)
    return ((square(image, data.resolution), caption) for image, caption in islice(pairs, limit))


def _encode_batch(family: Family, pairs: list[Pair]) -> Sample:
    text = family.encode_prompts([caption for _, caption in pairs])
    latents = {"latents": family.encode_images([image for image, _ in pairs])}
    return _half(latents | {f"text.{name}": value for name, value in text.items()})


def _half(sample: Sample) -> Sample:
    halved = {name: value.detach().to("cpu", torch.float16).contiguous() for name, value in sample.items()}
    for name, value in halved.items():
        if not value.isfinite().all():
            raise DataError(f"{name} is not finite in float16; the encoder that makes it overflows or is broken")
    return halved


def _write(sample: Sample, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(sample, temporary)
    temporary.rename(target)


def _shard(folder: Path, index: int) -> Path:
    return folder / f"{index:05d}.safetensors"


def _count_shards(folder: Path) -> int:
    return len(list(folder.glob("[0-9]*.safetensors")))


def _count_pairs(folder: Path) -> int:
    """All shards but the last are full."""
    last = _count_shards(folder) - 1
    if last < 0:
        return 0
    with safe_open(_shard(folder, last), "pt") as shard:
        return last * SHARD + shard.get_slice("latents").get_shape()[0]


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, size)):
        yield chunk


def _stamp(path: str) -> list[Any]:
    """A data path with the files below it and what tells their contents, so that changed data is encoded anew."""
    folder = Path(path)
    if not folder.is_dir():
        return [path]
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return [str(folder.resolve()), [(str(file.relative_to(folder)), _mark(file)) for file in files]]


def _mark(file: Path) -> str | int | tuple[int, int]:
    """What changes when a file does, at little cost; in a copy it stays, of a shard where the copy keeps its time."""
    suffix = file.suffix.lower()
    if suffix in TEXT_SUFFIXES:
        return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    stat = file.stat()
    # another picture is compressed to another size; a shard with another caption may keep its own
    return stat.st_size if suffix in IMAGE_SUFFIXES - {".bmp"} else (stat.st_size, stat.st_mtime_ns)
