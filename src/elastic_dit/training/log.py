"""The log of a run: `log.jsonl`, one JSON object a line, and the same for TensorBoard."""

import json
from pathlib import Path
from types import TracebackType
from typing import Self


class RunLog:
    """Appends scalars by step; lines past the step a run resumes from are dropped, so none stands twice."""

    def __init__(self, folder: Path, resume_step: int = 0) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "log.jsonl"
        kept: list[str] = []
        if self.file.is_file():
            kept = [line for line in self.file.read_text().splitlines() if _step(line) <= resume_step]
        self.file.write_text("".join(line + "\n" for line in kept))
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record scalars at a step."""
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tensorboard.close()


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # the half-written line of a killed run
