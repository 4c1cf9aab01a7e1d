"""Ways to make images, one after the other on one pipeline: the images, the FLOPs, and the time beside dense."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from elastic_dit.baselines import baselines
from elastic_dit.bench.entries import Entry, Wish
from elastic_dit.bench.entry_pipeline import EntryPipeline
from elastic_dit.bench.flops import forward_flops
from elastic_dit.bench.race import Progress, silent
from elastic_dit.checkpoint import WEIGHTS_NAME, digest, read
from elastic_dit.config import CONFIG_NAME
from elastic_dit.conversions import is_converted
from elastic_dit.conversions.base import CONVERSION_NAME, ROUTES
from elastic_dit.conversions.base import WEIGHTS_NAME as CONVERTED_NAME
from elastic_dit.errors import ConfigError
from elastic_dit.evaluation.sampling import SampleSettings
from elastic_dit.evaluation.scene_eval import Prompt
from elastic_dit.timing import ForwardTimer, spread

ENTRY = "entry.json"
COUNTED, COUNTED_APART = 12, 120
"""Images whose FLOPs are counted, at least; and where each takes as many steps as its prompt needs."""


class Cost(NamedTuple):
    """What an entry spends on its transformer."""

    flops_share: float
    """Of the dense run's FLOPs, counted as executed on a few images of all tasks."""
    ratio: dict[str, float]
    """Time beside the dense runs before and after it, one image at a time: median, min, max."""
    together: dict[str, float] | None = None
    """The same of several images at once, if they were asked for."""


@dataclass
class Contest:
    """What all entries have in common.

    Args:
        pipe: the dense pipeline; it is dense again after every entry.
        prompts: with their seeds.
        settings: how to sample; the number of steps is given.
        folder: for images and costs; what is there already is not made again.
        batch: images in a forward.
        repeats: timed runs of one image.
        in_turn: images of each such run, one after the other, of all tasks: they may differ in what they spend.
        at_once: images of further timed runs, if there are to be any: small models keep a processor busy only then.
        progress: see `race.Progress`.
    """

    pipe: Any
    prompts: Sequence[Prompt]
    settings: SampleSettings
    folder: Path
    batch: int = 32
    repeats: int = 7
    at_once: int | None = None
    in_turn: int = 1
    progress: Progress = silent

    def __post_init__(self) -> None:
        assert self.settings.steps, "a contest needs a number of steps"
        self.pipe.set_progress_bar_config(disable=True)
        self._pipeline = EntryPipeline(self.pipe, self.settings, self.prompts[:1])
        self._dense_flops = 0

    def folder_of(self, entry: Entry) -> Path:
        """Where what is known of an entry is kept."""
        return self.folder / _slug(entry)

    def images(self, entry: Entry) -> list[Image.Image]:
        """The entry's images, one a prompt."""
        files = [self.folder_of(entry) / f"{index:05d}.png" for index in range(len(self.prompts))]
        self._claim(entry, files[0].parent)
        missing = [start for start in range(0, len(files), self.batch) if not _exist(files[start : start + self.batch])]
        if missing:
            with self._pipeline.configured(entry) as (restart, settings):
                for start in missing:
                    self.progress(entry.name, start, len(files))
                    restart()
                    some = self.prompts[start : start + self.batch]
                    made = self._pipeline.sample(some, settings)
                    for file, image in zip(files[start:], made, strict=False):
                        temporary = file.with_suffix(".partial")
                        image.save(temporary, "PNG")
                        temporary.replace(file)
        return [_read(file) for file in files]

    def cost(self, entry: Entry) -> Cost:
        """The entry's FLOPs and time."""
        sizes = (1, self.at_once) if self.at_once else (1,)
        turns = f"-{self.in_turn}" if self.in_turn > 1 else ""
        file = self.folder_of(entry) / f"cost-{self.repeats}x{sizes[-1]}{turns}.json"  # timed otherwise, timed again
        self._claim(entry, file.parent)
        if file.is_file():
            return Cost(**json.loads(file.read_text()))
        with self._pipeline.configured(entry) as (restart, settings):
            share = self._flops(restart, settings, self._counted(entry)) / self._flops_of_dense()
            cost = Cost(share, *(self._ratio(restart, settings, entry.name, size) for size in sizes))
        temporary = file.with_suffix(".partial")
        temporary.write_text(json.dumps(cost._asdict()))
        temporary.replace(file)
        return cost

    def tuned(self, wish: Wish) -> Entry:
        """A baseline at the setting whose FLOPs come nearest to a share of dense; nobody looks at its images."""
        share = wish.share
        assert share is not None
        file = self.folder / f"{_slug(wish.at(None))}_at_{share:g}.json"
        if file.is_file():
            return Entry(**json.loads(file.read_text()))
        tried: dict[float, float] = {}

        def spent(setting: float) -> float:
            if setting not in tried:
                self.progress(f"tuning {wish.name}", len(tried), 0)
                entry = wish.at(setting)
                with self._pipeline.configured(entry) as (restart, settings):
                    tried[setting] = self._flops(restart, settings, self._counted(entry)) / self._flops_of_dense()
            return tried[setting]

        entry = wish.at(baselines[wish.name].nearest(spent, share))
        self.folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(entry._asdict()))
        return entry

    def entry(self, wish: Wish) -> Entry:
        """What a wish for a baseline comes to."""
        return wish.at(wish.setting) if wish.share is None else self.tuned(wish)

    def _claim(self, entry: Entry, folder: Path) -> None:
        """Make the entry's folder, or see that what it holds was made from the same things."""
        prompts = [(prompt.caption, prompt.seed) for prompt in self.prompts]
        about = {
            "entry": entry._asdict(),
            "settings": vars(self.settings),
            "prompts": hashlib.sha256(json.dumps(prompts).encode()).hexdigest(),
            "model": self._model,
            "adapter": _digest(Path(entry.adapter)) if entry.adapter else None,
            "batch": self.batch if entry.baseline else None,  # for which a cache decides as a whole
        }
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / ENTRY
        if not file.is_file():
            file.write_text(json.dumps(about))
            return
        held = json.loads(file.read_text())
        held["entry"] = Entry._field_defaults | held["entry"]  # what can be asked for now may be more than it was then
        held["settings"] = vars(SampleSettings()) | held["settings"]
        held.setdefault("batch", about["batch"])  # which earlier versions did not note
        if held != json.loads(json.dumps(about)):
            raise ConfigError(
                f"{folder} holds images of other prompts, settings or models, or a baseline's of another batch; "
                "delete it, or choose another --output"
            )

    def _counted(self, entry: Entry) -> int:
        """Images whose FLOPs are counted; of a baseline in whole batches, since caches decide for one as a whole."""
        if entry.baseline:
            return math.ceil(COUNTED / self.batch) * self.batch
        return COUNTED_APART if _selects_steps(entry) else COUNTED

    def _flops(self, restart: Callable[[], None], settings: SampleSettings, count: int = COUNTED) -> float:
        """Of one image, on average, in the batches that its images are made in."""
        some = self.prompts[:: max(1, len(self.prompts) // count)][:count]  # of all tasks
        batches = [some[start : start + self.batch] for start in range(0, len(some), self.batch)]
        restart()
        self._pipeline.sample(batches[0], replace(settings, steps=1))  # an elastic model measures its blocks at first
        with forward_flops(self.pipe.transformer) as counted:
            for batch in batches:
                restart()
                self._pipeline.sample(batch, settings)
        return sum(counted) / len(some)

    def _flops_of_dense(self) -> float:
        if not self._dense_flops:
            with self._pipeline.using(self._pipeline.dense):
                self._dense_flops = self._flops(lambda: None, self.settings)
        return self._dense_flops

    def _ratio(self, restart: Callable[[], None], settings: SampleSettings, name: str, size: int) -> dict[str, float]:
        """Each run, of so many images, between two dense ones of the same prompts; the first is a warm-up."""
        ratios: list[float] = []
        turns = self.in_turn if size == 1 else 1
        count = (self.repeats + 1) * turns
        starts = [index * len(self.prompts) // count for index in range(count)]
        for index in range(self.repeats + 1):
            self.progress(f"timing {name}", index, self.repeats + 1)
            own = dense = 0.0
            for start in starts[index :: self.repeats + 1]:
                some = self.prompts[start : start + size]
                before = self._dense_seconds(some)
                restart()
                with ForwardTimer(self.pipe.transformer) as timer:
                    self._pipeline.sample(some, settings)
                own, dense = own + sum(timer.seconds), dense + (before + self._dense_seconds(some)) / 2
            ratios.append(own / dense)
        return spread(ratios[1:])

    def _dense_seconds(self, prompts: Sequence[Prompt]) -> float:
        with self._pipeline.using(self._pipeline.dense), ForwardTimer(self._pipeline.dense) as timer:
            self._pipeline.sample(prompts, self.settings)
        return sum(timer.seconds)

    @cached_property
    def _model(self) -> str:
        """Hash of the dense weights."""
        return digest(self._pipeline.dense)


def _digest(adapter: Path) -> str:
    """Of an adapter's config and weights."""
    names = (CONFIG_NAME, WEIGHTS_NAME, CONVERSION_NAME, CONVERTED_NAME)
    files = [folder / name for folder in (adapter, adapter / ROUTES) for name in names]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def _selects_steps(entry: Entry) -> bool:
    """Whether its images differ in what they spend by more than a few of them show."""
    adapter = entry.adapter
    return bool(adapter and not is_converted(adapter) and len(read(adapter).config.step_intervals or ()) > 1)


def _slug(entry: Entry) -> str:
    """A folder's name."""
    return "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in entry.name).strip("_.")


def _exist(files: Sequence[Path]) -> bool:
    return all(file.is_file() for file in files)


def _read(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
