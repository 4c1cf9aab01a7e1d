"""Dense and elastic, side by side: the same prompts and seeds, measured in turn (A, B, A, B...)."""

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from elastic_dit.bench.routes import compute_of, route_of
from elastic_dit.elastic_model import ElasticModel
from elastic_dit.engine.trace import Trace
from elastic_dit.evaluation.fidelity import fidelity, mean_fidelity
from elastic_dit.evaluation.sampling import SampleSettings, sample_images
from elastic_dit.records import Environment, RunRecord
from elastic_dit.timing import ForwardTimer, spread, synchronize
from elastic_dit.verbs import load

DEFAULT_STEPS = 28
WARM_UP_STEPS = 4
MODELS = ("dense", "elastic")

Progress = Callable[[str, int, int], None]
"""Called with what runs, and images x forwards done and to do."""


@dataclass(frozen=True)
class Comparison:
    """The record, and the images of both models, one a prompt."""

    record: RunRecord
    dense: list[Image.Image]
    elastic: list[Image.Image]


class Run(NamedTuple):
    """One run of one model."""

    images: list[Image.Image]
    step_seconds: float
    """In the transformer, all guidance passes, mean over the steps."""
    run_seconds: float
    """From prompt to image."""
    forwards: int


class Bench:
    """Two pipelines that share everything but the transformer; the dense one has no hooks on it.

    Args:
        pipe: the dense pipeline; its transformer becomes elastic.
        adapter: an adapter folder or Hub id.

    Raises:
        CheckpointError: the adapter does not fit.
    """

    def __init__(self, pipe: Any, adapter: str) -> None:
        twin = copy.deepcopy(pipe.transformer)
        self.elastic: ElasticModel = load(pipe, adapter)
        dense = type(pipe)(**{**pipe.components, "transformer": twin})
        self.pipes = {"dense": dense, "elastic": pipe}
        for each in self.pipes.values():
            each.set_progress_bar_config(disable=True)

    def compare(
        self,
        prompts: Sequence[str],
        settings: SampleSettings,
        *,
        seed: int = 0,
        repeats: int = 2,
        command: str = "",
        config: dict[str, Any] | None = None,
        progress: Progress = lambda label, done, total: None,
    ) -> Comparison:
        """Measure both models: all prompts in one batch, then one prompt at a time.

        Prompt i has seed `seed + i` wherever it runs. Alone run `repeats` prompts, from the first to the last
        evenly spread. The images, the fidelity and the routes are those of the batch's first run. At the end the
        batch runs under one route table, averaged over these routes, for all prompts.

        Args:
            prompts: B texts, at least one.
            settings: how to sample.
            seed: of the first prompt.
            repeats: measurements of each model at each batch size.
            command: what makes the record again.
            config: settings to put into the record beside these.
            progress: see `Progress`.
        """
        task = Task(prompts, seed, settings, settings.steps or DEFAULT_STEPS, Meter(progress))
        everyone = tuple(range(len(prompts)))
        rounds = [everyone] * repeats
        if len(prompts) > 1:
            rounds += [(int(index),) for index in np.linspace(0, len(prompts) - 1, repeats).round()]
        forwards = self.warm_up(task, [everyone, (0,)])
        task.meter.total = 2 * forwards * task.steps * (sum(map(len, rounds)) + repeats * len(prompts))

        samples: dict[str, list[float]] = defaultdict(list)
        pictures: dict[str, list[Image.Image]] = {}
        trace = Trace()
        for group in rounds:
            for name in MODELS:
                run = self.run(name, group, task)
                samples[f"{name}_batch{len(group)}_step_seconds"].append(run.step_seconds)
                samples[f"{name}_batch{len(group)}_run_seconds"].append(run.run_seconds)
                if name not in pictures:
                    pictures[name] = run.images
                    trace = self.elastic.trace
        frozen = self._frozen(task, everyone, trace, pictures["dense"], repeats)
        record = RunRecord(
            kind="demo",
            command=command,
            environment=Environment.here(self.elastic.transformer.device),
            config=(config or {})
            | {"prompts": list(prompts), "seed": seed, "repeats": repeats, "warm_up_steps": WARM_UP_STEPS}
            | vars(settings)
            | {"steps": task.steps}
            | {"elastic": self.elastic.config.model_dump(mode="json")},
            results={
                "model": _describe(self.elastic),
                "latency": [_latency(samples, size) for size in sorted({len(group) for group in rounds})],
                "compute": compute_of(trace),
                "frozen": frozen,
                **self._by_prompt(prompts, trace, pictures, seed),
            },
            samples=dict(samples),
        )
        return Comparison(record, pictures["dense"], pictures["elastic"])

    def warm_up(self, task: "Task", groups: Sequence[tuple[int, ...]]) -> int:
        """Each model on a few steps at each batch size; returns the forwards in a step."""
        short = task._replace(steps=min(WARM_UP_STEPS, task.steps))
        runs = [self.run(name, group, short, warm_up=True) for group in groups for name in MODELS]
        return runs[0].forwards // short.steps

    def run(self, name: str, group: tuple[int, ...], task: "Task", *, warm_up: bool = False) -> Run:
        """One run of one model on some of the prompts."""
        pipe, meter = self.pipes[name], task.meter
        prompts, seeds = [task.prompts[index] for index in group], [task.seed + index for index in group]
        device = pipe.transformer.device
        meter.show("warm-up" if warm_up else f"{name}, batch {len(group)}")
        with ForwardTimer(pipe.transformer, lambda: meter.advance(0 if warm_up else len(group))) as timer:
            synchronize(device)
            start = time.perf_counter()
            images = sample_images(pipe, prompts, seeds, replace(task.settings, steps=task.steps))
            synchronize(device)
            total = time.perf_counter() - start
        return Run(images, sum(timer.seconds) / task.steps, total, len(timer.seconds))

    def _frozen(
        self, task: "Task", group: tuple[int, ...], trace: Trace, dense: Sequence[Image.Image], repeats: int
    ) -> dict[str, Any]:
        """The batch under the mean of its own routes, in turn with dense: compute, fidelity, speed-up of a step."""
        self.elastic.freeze([trace])
        try:
            runs = [(self.run("dense", group, task), self.run("elastic", group, task)) for _ in range(repeats)]
        finally:
            self.elastic.force(None)
        close = [fidelity(*pair) for pair in zip(runs[0][1].images, dense, strict=True)]
        return {
            "compute": compute_of(self.elastic.trace),
            "fidelity": mean_fidelity(close)._asdict(),
            "step_speedup": spread([other.step_seconds / own.step_seconds for other, own in runs]),
        }

    def _by_prompt(
        self, prompts: Sequence[str], trace: Trace, pictures: dict[str, list[Image.Image]], seed: int
    ) -> dict[str, Any]:
        close = [fidelity(*pair) for pair in zip(pictures["elastic"], pictures["dense"], strict=True)]
        ratios = self.elastic.config.width_ratios
        return {
            "fidelity": mean_fidelity(close)._asdict(),
            "prompts": [
                {"prompt": prompt, "seed": seed + index} | compute_of(trace, index) | close[index]._asdict()
                for index, prompt in enumerate(prompts)
            ],
            "routes": [route_of(trace, index, ratios) for index in range(len(prompts))],
        }


class Task(NamedTuple):
    """What every run of a comparison has in common."""

    prompts: Sequence[str]
    seed: int
    settings: SampleSettings
    steps: int
    meter: "Meter"


class Meter:
    """Counts images x forwards for the progress bar."""

    def __init__(self, progress: Progress) -> None:
        self.total, self._done, self._label, self._progress = 0, 0, "", progress

    def show(self, label: str) -> None:
        """What runs from now on."""
        self._label = label
        self.advance(0)

    def advance(self, amount: int) -> None:
        """So much is done."""
        self._done += amount
        self._progress(self._label, self._done, self.total)


def _latency(samples: dict[str, list[float]], batch: int) -> dict[str, Any]:
    """One batch size: seconds of both models, and the speed-up of each pair of neighbouring runs."""
    row: dict[str, Any] = {"batch": batch}
    for what in ("step_seconds", "run_seconds"):
        dense, elastic = (samples[f"{name}_batch{batch}_{what}"] for name in MODELS)
        row |= {f"dense_{what}": spread(dense), f"elastic_{what}": spread(elastic)}
        ratios = [a / b for a, b in zip(dense, elastic, strict=True)]
        row[f"{what.removesuffix('_seconds')}_speedup"] = spread(ratios)
    return row


def _describe(elastic: ElasticModel) -> dict[str, Any]:
    sites = elastic.backbone.sites(elastic.transformer)
    blocks: dict[str, int] = {}
    for declared, _ in sites:
        blocks[declared.path] = blocks.get(declared.path, 0) + 1
    return {
        "transformer": type(elastic.transformer).__name__,
        "parameters": sum(p.numel() for p in elastic.transformer.parameters()),
        "router_parameters": sum(p.numel() for p in elastic.stack.parameters()),
        "blocks": blocks,
    }
