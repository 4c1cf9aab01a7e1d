"""Stages of a reproduction: commands of ours, what each makes, and what it needs first."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from elastic_dit.config import explain
from elastic_dit.errors import ConfigError, TrainingError, UnknownNameError


class Stage(BaseModel):
    """One command."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    about: str
    """What it is for, in a few words."""
    run: str
    """The command, without the program's name."""
    makes: Path
    """A file that is there when it is done, and only then."""
    needs: list[str] = Field(default_factory=list)
    """Stages that come first, among them all whose files it reads."""
    ships: str | None = None
    """The folder of `elastic_dit.models.weights` that holds what it made once: `--shipped` copies that."""

    @property
    def done(self) -> bool:
        """Whether there is nothing to do."""
        return self.makes.exists()

    @property
    def recorded(self) -> bool:
        """Whether what it makes is a RunRecord: adapters and calibrations are JSON files, too."""
        return f"--json {self.makes}" in self.run


class Stages(BaseModel):
    """All stages of a file, in an order in which they can run."""

    model_config = ConfigDict(extra="forbid")

    stages: dict[str, Stage]

    @model_validator(mode="after")
    def _needs_come_first(self) -> "Stages":
        known: set[str] = set()
        for name, stage in self.stages.items():
            for need in stage.needs:
                if need not in known:
                    raise ValueError(f"stage {name!r} needs {need!r}, which is not above it")
            known.add(name)
        return self

    @classmethod
    def read(cls, file: Path) -> "Stages":
        """From a YAML file.

        Raises:
            ConfigError: no such file, or not one of stages.
        """
        from elastic_dit.training.yaml_file import read_yaml

        try:
            return cls.model_validate(read_yaml(file, "stages"))
        except ValidationError as error:
            raise ConfigError(f"{file}: {explain(error, cls)}") from error

    def needed(self, targets: Sequence[str], *, missing: bool = False) -> list[str]:
        """The targets and all that they need, in order; or what of that is missing: nothing that only the rest needs.

        Raises:
            UnknownNameError: no such stage.
        """
        wanted = set(targets)
        for target in targets:
            if target not in self.stages:
                raise UnknownNameError("stage", target, self.stages)
        left_out = {name for name, stage in self.stages.items() if missing and stage.done}
        for name in reversed(self.stages):
            if name in wanted - left_out:
                wanted.update(self.stages[name].needs)
        return [name for name in self.stages if name in wanted - left_out]


def run_stage(name: str, stage: Stage, processes: int) -> None:
    """Run a stage in a process of its own; training in several that share each batch.

    Raises:
        TrainingError: it failed, or did not make what it should.
    """
    arguments = shlex.split(stage.run)
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    command = [sys.executable, *(launcher if arguments[0] == "train" and processes > 1 else []), "-m", _PROGRAM]
    threads = max(1, (os.cpu_count() or 1) // processes) if arguments[0] == "train" else None
    environment: dict[str, Any] = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    code = subprocess.run([*command, *arguments], env=environment).returncode
    if code in (-signal.SIGINT, 130):
        raise KeyboardInterrupt
    if code or not stage.done:
        reason = f"ended with exit code {code}" if code else f"did not make {stage.makes}"
        raise TrainingError(f"stage {name!r} {reason}; its command: elastic-dit {stage.run}. Run again: it goes on.")


_PROGRAM = "elastic_dit.cli.app"
