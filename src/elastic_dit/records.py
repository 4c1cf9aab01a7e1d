"""RunRecord: what a measurement was, on what, and every raw sample of it. Reports read nothing else."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elastic_dit.errors import CheckpointError

PACKAGES = ("elastic-dit", "torch", "diffusers", "transformers", "numpy")


class Environment(BaseModel):
    """Where and with what a measurement was made."""

    model_config = ConfigDict(extra="forbid")

    device: str
    threads: int
    versions: dict[str, str]
    commit: str
    time: str

    @classmethod
    def here(cls, device: torch.device | str = "cpu") -> "Environment":
        """The environment of this process."""
        return cls(
            device=device_name(torch.device(device)),
            threads=torch.get_num_threads(),
            versions={name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
            commit=_commit(),
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )


class RunRecord(BaseModel):
    """One measurement."""

    model_config = ConfigDict(extra="forbid")

    kind: str
    """What was measured, e.g. `demo`."""
    command: str
    """The command that makes it again."""
    environment: Environment
    config: dict[str, Any]
    """Every setting of the run."""
    results: dict[str, Any]
    """The numbers a report shows."""
    samples: dict[str, list[float]] = Field(default_factory=dict)
    """Raw measurements by name, in the order they were taken, with the unit in the name (`dense_seconds`)."""

    def write(self, file: Path) -> None:
        """Write as JSON, whole or not at all."""
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(f".{file.name}.partial")
        temporary.write_text(self.model_dump_json(indent=2) + "\n")
        temporary.rename(file)

    @classmethod
    def read(cls, file: Path) -> "RunRecord":
        """Read what `write` wrote.

        Raises:
            CheckpointError: the file is missing or is no RunRecord.
        """
        try:
            return cls.model_validate_json(file.read_text())
        except (OSError, ValidationError) as error:
            raise CheckpointError(f"{file} is no RunRecord: {error}") from error


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """The commit of a source checkout, with a `+` if the package has changes; `unknown` outside one."""

    def git(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True)

    try:
        commit, changes = git("rev-parse", "--short=12", "HEAD"), git("diff", "--quiet", "HEAD", "--", ".")
    except OSError:
        return "unknown"
    return "unknown" if commit.returncode else commit.stdout.strip() + "+" * changes.returncode
