from pathlib import Path

import pytest

from elastic_dit.records import RunRecord
from elastic_dit.training.data.prepare import prepare
from shell import Run, assert_refused

SPRITES = Path(__file__).parents[1] / "data" / "sprites"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, SPRITES, scenes=16)
    return folder / "train"


def test_it_writes_a_record_and_a_table(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    size = ("--samples", 8, "--resolution", 16, "--cache", tmp_path / "cache", "--threads", 1)
    files = ("--json", tmp_path / "out" / "run.json", "--markdown", tmp_path / "out" / "run.md")
    files = (*files, "--plot", tmp_path / "out" / "run.png", "--images", 3, "--steps", 2, "--shift", 2)
    outcome = run("evaluate", data, "--model", pair[0], "--adapter", pair[1], *size, *files)
    assert outcome.code == 0, outcome.err
    record = RunRecord.read(tmp_path / "out" / "run.json")
    dense, elastic = record.results["rows"]
    assert elastic["name"] == str(pair[1])
    assert f"{dense['loss']:.4f}" in outcome.out
    markdown = (tmp_path / "out" / "run.md").read_text()
    assert f"{elastic['loss']:.4f}" in markdown
    assert record.config["shift"] == 2
    (images,) = record.results["images"]
    assert f"{images['psnr']:.2f} ±" in markdown
    assert (tmp_path / "out" / "run.png").read_bytes().startswith(b"\x89PNG")


def test_bad_input(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    model = ("--model", pair[0], "--adapter", pair[1], "--cache", tmp_path)
    assert_refused(run("evaluate", data, *model, "--budgets", "0.5,many"), "--budgets", "many")
    assert_refused(run("evaluate", data, *model, "--budgets", "1.5"), "--budgets", "1.5")
    assert_refused(run("evaluate", data, "--model", pair[0]), "--adapter")
    assert_refused(run("evaluate", tmp_path / "none", *model), "none")
