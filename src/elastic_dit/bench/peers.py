"""The elastic model and every baseline in one race, those with a dial at the setting nearest in FLOPs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from elastic_dit.baselines import Applied, Baseline, Task, baselines
from elastic_dit.bench.flops import Counting
from elastic_dit.bench.lane import How, Lane, record_of, settings
from elastic_dit.bench.race import DENSE, Contender, Progress, silent
from elastic_dit.bench.schedule import Rates, sample_plan
from elastic_dit.bench.trajectory import Trajectory
from elastic_dit.errors import BackboneError
from elastic_dit.records import RunRecord


def peers(
    lane: Lane,
    names: Sequence[str],
    *,
    batch: int,
    steps: int,
    repeats: int,
    compiled: bool,
    seed: int = 0,
    command: str = "",
    config: dict[str, Any] | None = None,
    progress: Progress = silent,
) -> RunRecord:
    """Dense, elastic and baselines, same shapes, same attention, in one race.

    A baseline with a dial gets the setting whose counted FLOPs come nearest to the elastic model's. One that
    does not fit the transformer is left out, with the reason in the record.

    Args:
        lane: the transformer.
        names: of the baselines.
        batch: samples.
        steps: denoising steps of a run.
        repeats: timed runs.
        compiled: also the elastic model with compiled blocks.
        seed: of the routes.
        command: what makes the record again.
        config: settings to put into the record beside these.
        progress: see `race.Progress`.

    Raises:
        UnknownNameError: no such baseline.
        ConfigError: a baseline's package is not installed.
    """
    chosen = [baselines[name] for name in names]
    plan = sample_plan(steps, lane.size.blocks, batch, Rates(), seed)
    contenders = [
        lane.dense_contender(),
        lane.elastic_contender("elastic", plan),
        lane.elastic_contender("elastic, frozen", plan, How(routed=False)),
    ]
    if compiled:
        contenders.append(replace(lane.elastic_contender("elastic", plan, How(compiled=True)), reference=DENSE))
    tuner = Tuner(lane, Trajectory(lane.size, lane.dense, batch, steps))
    wanted = tuner.flops(contenders[1])
    about: dict[str, dict[str, Any]] = {}
    left_out: list[dict[str, str]] = []
    for index, baseline in enumerate(chosen):
        progress(f"tuning {baseline.name}", index, len(chosen))
        try:
            contender, setting = tuner.tune(baseline, wanted)
        except BackboneError as error:
            left_out.append({"name": baseline.name, "why": str(error)})
            continue
        contenders.append(contender)
        about[baseline.name] = {
            "about": baseline.about,
            "source": baseline.source,
            "setting_name": baseline.setting,
            "setting": setting if baseline.setting else None,
        }
    rows, samples = lane.race(contenders, steps, batch, repeats, progress)
    results = {"rows": [row | about.get(row["name"], {}) for row in rows], "left_out": left_out}
    return record_of("peers", lane, results, samples, command, (config or {}) | settings(steps, batch, repeats, seed))


class Tuner:
    """Finds a baseline's setting for a number of FLOPs."""

    def __init__(self, lane: Lane, trajectory: Trajectory) -> None:
        self.lane, self.trajectory = lane, trajectory
        self.task = Task(trajectory.steps, trajectory.branches, self.sample)

    def sample(self, transformer: Any, restart: Callable[[], None]) -> None:
        """One run from noise to the end."""
        self._run(Contender("", transformer, restart))

    def flops(self, contender: Contender) -> int:
        """Of one run."""
        self._run(contender, steps=1)  # the elastic model measures its blocks at its first step
        with Counting() as counter:
            self._run(contender)
        return counter.get_total_flops()

    def tune(self, baseline: Baseline, wanted: int) -> tuple[Contender, float]:
        """A contender at the setting that comes nearest."""
        tried: dict[float, tuple[int, Contender]] = {}

        def spent(setting: float) -> int:
            if setting not in tried:
                contender = self._apply(baseline, setting)
                tried[setting] = (self.flops(contender), contender)
            return tried[setting][0]

        best = baseline.nearest(spent, wanted)
        spent(best)
        return tried[best][1], best

    def _apply(self, baseline: Baseline, setting: float) -> Contender:
        twin = self.lane.twin()
        applied: Applied = baseline.apply(twin, setting, self.task)
        return Contender(baseline.name, twin, applied.restart, applied.steps)

    def _run(self, contender: Contender, steps: int | None = None) -> None:
        contender.restart()
        latents = self.trajectory.noise
        for index in range(steps or self.trajectory.steps):
            if contender.steps is None or index in contender.steps:
                latents, _ = self.trajectory.step(contender.transformer, latents, index)
