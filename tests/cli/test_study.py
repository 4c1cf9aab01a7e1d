"""`elastic-dit study` writes a record, tables and a figure of each kind."""

from pathlib import Path

import pytest

from elastic_dit.models import EmojiFluxPipeline
from elastic_dit.records import RunRecord
from emoji import save_dial
from shell import Run, assert_refused
from studies import SIZE, scenes_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scenes_folder(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("study", "options"),
    [
        ("blocks", ("--levels", "0.75,0.25")),
        ("routes", ("--steps", 2, "--shift", 2, "--reuse", "--levels", "0.5")),
        ("allocation", ("--levels", "0.5", "--budgets", "0.3,0.6,1")),
        ("cache", ("--steps", 2, "--shift", 2, "--deltas", "0,0.1", "--reuses", "1", "--fixed-delta", 0.2)),
    ],
)
def test_it_writes_a_record_tables_and_a_figure(
    run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path, study: str, options: tuple[object, ...]
) -> None:
    out = tmp_path / "out"
    files = ("--json", out / "run.json", "--markdown", out / "run.md", "--plot", out / "run.png")
    adapter = pair[1]
    if study == "allocation":
        adapter = save_dial(EmojiFluxPipeline.from_pretrained(pair[0]), tmp_path / "dial")
    models = ("--model", pair[0], *(("--adapter", adapter) if study != "blocks" else ()))
    size = ("--per-task", 2 if study == "blocks" else 1, "--resolution", SIZE, "--threads", 1)
    outcome = run("study", study, data, *models, *size, *options, *files)
    assert outcome.code == 0, outcome.err
    record = RunRecord.read(out / "run.json")
    assert record.kind == f"study-{study}"
    assert record.command.startswith(f"elastic-dit study {study} ")
    assert record.config["data"] == [str(data)]
    assert record.environment.commit in (out / "run.md").read_text()
    assert (out / "run.png").read_bytes().startswith(b"\x89PNG")
    if study == "blocks":
        assert record.config["levels"] == [0.25, 0.75]
    if study in ("routes", "cache"):
        assert record.config["shift"] == 2
    if study == "cache":
        assert [row["delta"] for row in record.results["rows"]] == [0, 0.1, 0.2, 0, 0]


def test_bad_input(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    assert_refused(run("study", "routes", data, "--model", pair[0]), "--adapter")
    assert_refused(run("study", "routes", data, "--levels", "0.5,much"), "--levels", "much")
    assert_refused(run("study", "cache", data, "--deltas", "1.5"), "--deltas", "0..1")
    assert_refused(run("study", "blocks", tmp_path / "none", "--model", pair[0]), "none")
