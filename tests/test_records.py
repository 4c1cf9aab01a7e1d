"""Run records: what goes in comes out, and nothing else is taken for one."""

import json
from pathlib import Path

import pytest
import torch

from elastic_dit.errors import CheckpointError
from elastic_dit.records import PACKAGES, Environment, RunRecord


def record() -> RunRecord:
    return RunRecord(
        kind="demo",
        command="elastic-dit demo",
        environment=Environment.here(),
        config={"steps": 28, "sizes": [64, 128]},
        results={"speedup": 1.5},
        samples={"dense_seconds": [0.3, 0.1, 0.2]},
    )


def test_round_trip(tmp_path: Path) -> None:
    file, written = tmp_path / "runs" / "demo.json", record()
    written.write(file)
    assert RunRecord.read(file) == written
    assert [path.name for path in file.parent.iterdir()] == ["demo.json"]


def test_environment_says_where_and_with_what() -> None:
    environment = Environment.here()
    assert environment.versions["torch"] == torch.__version__
    assert {*PACKAGES, "python"} == set(environment.versions)
    assert environment.threads == torch.get_num_threads()
    assert environment.device
    assert environment.time.endswith("+00:00")


@pytest.mark.parametrize("content", [None, "{", '{"kind": "demo"}'])
def test_not_a_record(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "broken.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CheckpointError, match=r"broken\.json is no RunRecord"):
        RunRecord.read(file)


def test_unknown_keys_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "demo.json"
    record().write(file)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"mood": "good"}))
    with pytest.raises(CheckpointError, match="mood"):
        RunRecord.read(file)
