"""One pipeline that makes images in every way in turn: dense, with an adapter, with a baseline."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from elastic_dit.baselines import Task, baselines
from elastic_dit.bench.entries import OF_ROUTERS, Entry
from elastic_dit.conversions import is_converted, load_converted
from elastic_dit.conversions.base import ROUTES
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.evaluation.scene_eval import Prompt
from elastic_dit.verbs import load, restore


class EntryPipeline:
    """Runs one pipeline in turn as dense, with an adapter, or with a baseline; it is dense again after each.

    Args:
        pipe: the dense pipeline.
        settings: how to sample where an entry says nothing else.
        calibration_prompts: what baselines that calibrate may draw.
    """

    def __init__(self, pipe: Any, settings: SampleSettings, calibration_prompts: Sequence[Prompt]) -> None:
        self.pipe, self.settings = pipe, settings
        self._calibration_prompts = calibration_prompts
        self.dense = copy.deepcopy(pipe.transformer)
        self._tasks: dict[SampleSettings, Task] = {}  # with what baselines learned for each

    def sample(self, prompts: Sequence[Prompt], settings: SampleSettings) -> list[Image.Image]:
        """One image a prompt, with whatever transformer the pipeline has now."""
        captions, seeds = [prompt.caption for prompt in prompts], [prompt.seed for prompt in prompts]
        return sample_images(self.pipe, captions, seeds, settings)

    @contextmanager
    def using(self, transformer: Any) -> Iterator[None]:
        """The pipeline with another transformer."""
        own = self.pipe.transformer
        self.pipe.transformer = transformer
        try:
            yield
        finally:
            self.pipe.transformer = own

    @contextmanager
    def configured(self, entry: Entry) -> Iterator[tuple[Callable[[], None], SampleSettings]]:
        """The pipeline as the entry has it: what to call before a run, and how to sample."""
        own = {name: value for name in ("steps", "guidance", "shift") if (value := getattr(entry, name)) is not None}
        settings = replace(self.settings, **own)
        if entry.adapter and is_converted(entry.adapter):
            with self.using(copy.deepcopy(self.dense)):
                load_converted(self.pipe.transformer, Path(entry.adapter))
                routes = Path(entry.adapter) / ROUTES
                restart = self._apply_settings(load(self.pipe, routes), entry) if routes.is_dir() else _nothing
                yield restart, settings
        elif entry.adapter:
            elastic = load(self.pipe, entry.adapter)
            try:
                yield self._apply_settings(elastic, entry), settings
            finally:
                restore(self.pipe)
        elif entry.baseline:
            with self.using(copy.deepcopy(self.dense)):
                task = self._task(settings)
                applied = baselines[entry.baseline].apply(self.pipe.transformer, entry.setting, task)
                steps = settings.steps if applied.steps is None else len(applied.steps)
                yield applied.restart, replace(settings, steps=steps)
        else:
            yield _nothing, settings

    def _apply_settings(self, elastic: ElasticModel, entry: Entry) -> Callable[[], None]:
        """The dial as the entry has it; returns what to call before a run."""
        for name in ("budget", "step_share", *OF_ROUTERS):
            if (value := getattr(entry, name)) is not None:
                setattr(elastic, name, value)
        return elastic.reset

    def _task(self, settings: SampleSettings) -> Task:
        """For baselines that calibrate: on the first prompt, whose image is one of many."""
        assert settings.steps

        def sample(transformer: Any, restart: Callable[[], None]) -> None:
            with self.using(transformer):
                restart()
                self.sample(self._calibration_prompts, settings)

        branches = 1 if settings.guidance == 1 else 2
        return self._tasks.setdefault(settings, Task(settings.steps, branches, sample))


def _nothing() -> None:
    """What a model without state needs before a run."""
