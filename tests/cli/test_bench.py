"""`elastic-dit bench` writes what it measured."""

from pathlib import Path
from typing import Any

import pytest

from elastic_dit.backbones import backbones
from elastic_dit.bench import sizes
from elastic_dit.cli.app import main
from elastic_dit.records import RunRecord


def test_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    build: Any = backbones["flux"].tiny

    def inputs(transformer: Any, batch: int) -> dict[str, Any]:
        return {name: value for name, value in build()[1](batch).items() if name != "timestep"}

    tiny = sizes.Size("a tiny FLUX", steps=3, branches=1, build=lambda: build()[0], inputs=inputs)
    monkeypatch.setitem(sizes.SIZES, "tiny", tiny)
    record, table = tmp_path / "bench.json", tmp_path / "bench.md"
    assert main(["bench", "--size", "tiny", "--repeats", "2", "--json", str(record), "--markdown", str(table)]) == 0
    assert "skip + width + cache" in capsys.readouterr().out
    written = RunRecord.read(record)
    assert written.command.startswith("elastic-dit bench --size tiny --batch 1 --steps 3 --repeats 2")
    assert len(written.results["rows"]) == 5
    text = table.read_text()
    assert "| skip + width + cache |" in text
    assert written.environment.commit in text


def test_an_unknown_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--size", "fluxx"]) == 2
    assert "flux-cpu" in capsys.readouterr().err
