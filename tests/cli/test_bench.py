"""`elastic-dit bench` writes what it measured, and a page of it."""

from pathlib import Path

import pytest

from elastic_dit.bench import sizes
from elastic_dit.cli.app import main
from elastic_dit.records import RunRecord
from small import small_flux

KINDS = {
    "speed": ["--steps", "4", "--no-compile"],
    "peers": ["--steps", "4", "--only", "fewer-steps", "--no-compile"],
    "scaling": ["--batches", "1,2", "--tokens", "", "--blocks", "", "--lengths", "3"],
    "training": [],
}


def test_every_table_and_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sizes.SIZES, "tiny", small_flux())
    files = []
    for kind, options in KINDS.items():
        file, table = tmp_path / f"{kind}.json", tmp_path / f"{kind}.md"
        where = ["--json", str(file), "--markdown", str(table)]
        assert main(["bench", kind, "--size", "tiny", "--repeats", "1", *options, *where]) == 0
        record = RunRecord.read(file)
        assert record.kind == kind
        assert record.command.startswith(f"elastic-dit bench {kind} --size tiny --repeats 1")
        assert record.config["size"] == "tiny"
        assert record.environment.commit in table.read_text()
        files.append(str(file))
    assert "elastic" in capsys.readouterr().out
    page, plots = tmp_path / "page.html", tmp_path / "plots"
    assert (
        main(
            [
                "bench",
                "report",
                *files,
                "--output",
                str(page),
                "--plots",
                str(plots),
                "--markdown",
                str(tmp_path / "bars.md"),
            ]
        )
        == 0
    )
    assert "every block open" in (tmp_path / "bars.md").read_text()
    assert "<html" in page.read_text()
    assert {plot.stem for plot in plots.glob("*.png")} == {"speed-flops", "timeline", "peers-flops", "scaling"}


def test_an_unknown_size_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "speed", "--size", "fluxx"]) == 2
    assert "flux-cpu" in capsys.readouterr().err


def test_values_that_are_no_numbers_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "scaling", "--batches", "1,two"]) == 2
    assert "'1,two'" in capsys.readouterr().err


def test_a_file_that_is_no_record_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.json").write_text("{}")
    assert main(["bench", "report", str(tmp_path / "x.json")]) == 2
    assert "no RunRecord" in capsys.readouterr().err
