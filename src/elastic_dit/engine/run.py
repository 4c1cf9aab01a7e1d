"""Which run, step and guidance branch a forward belongs to, and the state each of them owns.

A run is one trip from noise to image. Everything that is remembered between steps hangs on the run, so
starting a new one forgets it all.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from elastic_dit.core.cache import CacheMemory, FeatureBank
from elastic_dit.core.forecast import VelocityBank
from elastic_dit.core.guidance import GuidanceBank
from elastic_dit.core.ready_routers import Reading
from elastic_dit.engine.trace import Trace

MAX_BRANCHES = 4
"""With the prompt, without it, and two for other kinds of guidance."""


@dataclass
class Branch:
    """One guidance branch of a run."""

    name: Hashable
    """The cache context's name, or the order of its first appearance."""
    text: Tensor | None
    """Its conditioning, which tells it from the others where no context names it."""
    rows: int
    """Samples in each of its forwards."""
    last_step: int
    """The last step it ran at."""
    banks: dict[int, FeatureBank] = field(default_factory=dict[int, FeatureBank])
    """Stored residuals by block."""
    velocities: VelocityBank = field(default_factory=VelocityBank)
    """Outputs of the transformer."""
    velocity: Tensor | None = None
    """Its last output, computed or not."""
    guidance: GuidanceBank = field(default_factory=GuidanceBank)
    """How far it was from the first branch."""
    reading: Reading = field(default_factory=Reading)
    """What its routers read in its last forward."""
    unspent: list[float] = field(default_factory=list[float])
    """By sample, what its forwards so far took less than their budgets, in dense forwards; empty before the first."""


@dataclass
class Run:
    """One trip from noise to image of a batch."""

    shape: torch.Size
    """Of one sample's noisy input; another shape is another run."""
    timestep: float
    """Of the current step."""
    step: int = 0
    """Index of the current step."""
    branches: list[Branch] = field(default_factory=list[Branch])
    trace: Trace = field(default_factory=Trace)
    memory: CacheMemory = field(default_factory=CacheMemory)
    """Of the stored residuals of all branches and blocks."""
    allocated: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """The budgets (B,) that were shared out at a step; the first branch decides for all."""
    intervals: list[int] | None = None
    """Every so-many-th step runs, by sample; None: all of them. Chosen in the first branch at the first step."""

    def due(self, branch: Branch) -> list[bool] | None:
        """Which samples' turn this step is in a branch; None: all of theirs, as where it runs for the first time."""
        due = [self.step % interval == 0 for interval in self.intervals or ()]
        return None if all(due) or branch.velocity is None else due


def enter(
    run: Run | None, shape: torch.Size, timestep: float, text: Tensor | None, context: str | None
) -> tuple[Run, Branch]:
    """The run and branch of a forward that is about to start.

    A new run starts where there is none, the shape or the batch changed, the timestep went up, this branch
    has already run at the first step (the same call again) or had other conditioning before, or there would be
    more branches than guidance needs (a one-step model's runs). Otherwise a lower timestep is the next step, and so is
    the same one where this branch had it: Heun's come twice, and in bfloat16 many near 1000 are alike.
    A branch is known by the pipeline's cache context or, where it sets none, by its conditioning: a
    count of calls would take the first call after an interrupted run for a second branch of it.

    Args:
        run: the current run, if any.
        shape: of the noisy input.
        timestep: of the forward; it falls during a run.
        text: conditioning of the forward.
        context: name of the pipeline's cache context, if it sets one.
    """
    rows, sample = shape[0], shape[1:]
    if run is None or sample != run.shape or timestep > run.timestep:
        run = Run(sample, timestep)
    elif timestep < run.timestep:
        run.step, run.timestep = run.step + 1, timestep
    branch = _find(run, text, context)
    if branch is not None and branch.last_step == run.step > 0:
        run.step += 1
    if branch is None:
        other_batch = context is None and any(known.rows != rows for known in run.branches)
        over = other_batch or len(run.branches) == MAX_BRANCHES
    else:
        other_prompt = context is not None and not _same(branch.text, text)
        over = other_prompt or branch.rows != rows or branch.last_step == run.step
    if over:
        run, branch = Run(sample, timestep), None
    if branch is None:
        branch = Branch(context if context is not None else len(run.branches), text, rows, run.step)
        run.branches.append(branch)
    branch.last_step = run.step
    return run, branch


def _find(run: Run, text: Tensor | None, context: str | None) -> Branch | None:
    if context is not None:
        return next((branch for branch in run.branches if branch.name == context), None)
    return next((branch for branch in run.branches if _same(branch.text, text)), None)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a is b:
        return a is b
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
