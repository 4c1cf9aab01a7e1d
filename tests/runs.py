"""Whole runs of a tiny transformer, dense or with a baseline on it."""

import copy
from typing import Any

from torch import Tensor, nn

from elastic_dit.backbones import backbones
from elastic_dit.baselines import Applied, Task, baselines
from elastic_dit.bench.flops import Counting
from elastic_dit.bench.sizes import Size
from elastic_dit.bench.trajectory import Trajectory
from tiny import Tiny

DENSE = Applied(restart=lambda: None)


class Runs:
    """Runs of one tiny transformer."""

    def __init__(self, backbone: str, steps: int = 8, branches: int = 1) -> None:
        self.tiny = Tiny(backbones[backbone])
        size = Size(
            "tiny",
            steps,
            branches,
            blocks=self.tiny.blocks,
            tokens=16,
            text=5,
            build=lambda blocks: self.fresh(),
            inputs=lambda transformer, batch, tokens, text: self._inputs(transformer, batch),
        )
        self.trajectory = Trajectory(size, self.tiny.dense, 2, steps)
        self.task = Task(steps, branches, lambda transformer, restart: self._sample(transformer, restart))

    def fresh(self) -> Any:
        """A copy of the dense transformer."""
        return copy.deepcopy(self.tiny.dense)

    def applied(self, name: str, setting: float) -> tuple[Any, Applied]:
        """A fresh transformer with a baseline on it."""
        transformer = self.fresh()
        return transformer, baselines[name].apply(transformer, setting, self.task)

    def run(self, transformer: Any, applied: Applied = DENSE) -> Tensor:
        """The latents at the end of a run."""
        applied.restart()
        latents = self.trajectory.noise
        for index in applied.steps or range(self.trajectory.steps):
            latents, _ = self.trajectory.step(transformer, latents, index)
        return latents

    def flops(self, transformer: Any, applied: Applied = DENSE) -> int:
        """FLOPs of a run."""
        with Counting() as counter:
            self.run(transformer, applied)
        return counter.get_total_flops()

    def steps_of(self, module: nn.Module, transformer: Any, applied: Applied = DENSE) -> list[int]:
        """The steps of a run at which a module's forward is called; once for each guidance pass."""
        called: list[int] = []
        current = [0]
        handles = [
            transformer.register_forward_pre_hook(lambda *_: current.__setitem__(0, current[0] + 1)),
            module.register_forward_hook(lambda *_: called.append((current[0] - 1) // self.trajectory.branches)),
        ]
        self.run(transformer, applied)
        for handle in handles:
            handle.remove()
        return called

    def _inputs(self, transformer: Any, batch: int) -> dict[str, Any]:
        return {name: value for name, value in self.tiny.inputs(batch).items() if name != "timestep"}

    def _sample(self, transformer: Any, restart: Any) -> None:
        self.run(transformer, Applied(restart))
