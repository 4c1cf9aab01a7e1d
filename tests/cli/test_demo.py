from pathlib import Path

import pytest
from PIL import Image

from elastic_dit.cli.app import main
from elastic_dit.records import RunRecord
from elastic_dit.report.demo_tables import compute_table, headline, latency_table
from emoji import STEPS
from shell import Run, assert_refused


@pytest.fixture(scope="module")
def folder(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    model = ["--model", str(pair[0]), "--adapter", str(pair[1])]
    files = ["--output", str(folder / "out"), "--json", str(folder / "numbers" / "run.json")]
    prompts = ["--prompt", "a red apple", "--prompt", "it's a cat"]
    options = ["--steps", str(STEPS), "--repeats", "1", "--seed", "5", "--shift", "2"]
    assert main(["demo", *model, *files, *prompts, *options]) == 0
    return folder


def test_it_leaves_pictures_and_a_page(folder: Path) -> None:
    names = {"dense.png", "elastic.png", "heat_map.png", "index.html", "side_by_side.png"}
    assert {file.name for file in (folder / "out").iterdir()} == names
    sizes = {name: Image.open(folder / "out" / name).size for name in ("dense.png", "elastic.png")}
    assert sizes["dense.png"] == sizes["elastic.png"] == (2 * 192 + 12, 192)


def test_the_page_shows_the_record(folder: Path) -> None:
    record = RunRecord.read(folder / "numbers" / "run.json")
    page = (folder / "out" / "index.html").read_text()
    for row in latency_table(record).rows + compute_table(record).rows:
        assert all(cell in page for cell in row[1:])
    assert all(value in page for value, _ in headline(record))
    assert record.environment.commit in page


def test_the_record_says_how_to_make_it_again(folder: Path, pair: tuple[Path, Path]) -> None:
    record = RunRecord.read(folder / "numbers" / "run.json")
    assert record.command == (
        f"elastic-dit demo --model {pair[0]} --adapter {pair[1]} --steps {STEPS} --guidance 3.0 --shift 2.0 --seed 5 "
        "--repeats 1 --prompt 'a red apple' --prompt 'it'\"'\"'s a cat'"
    )
    assert [row["seed"] for row in record.results["prompts"]] == [5, 6]
    assert (record.config["dtype"], record.config["shift"]) == ("float32", 2)


def test_the_terminal_shows_the_tables(pair: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    options = ("--steps", 2, "--repeats", 1, "--prompt", "a dog", "--guidance", 1, "--threads", 1)
    json = tmp_path / "run.json"
    outcome = run("demo", "--model", pair[0], "--adapter", pair[1], "--output", tmp_path, "--json", json, *options)
    assert outcome.code == 0
    record = RunRecord.read(json)
    assert all(cell in outcome.out for row in latency_table(record).rows for cell in row)
    assert record.environment.threads == 1
    assert "index.html" in outcome.out
    assert outcome.err == ""


def test_bad_input(pair: tuple[Path, Path], tmp_path: Path, run: Run) -> None:
    assert_refused(run("demo", "--model", pair[0]), "--adapter")
    assert_refused(run("demo", "--model", tmp_path / "none", "--adapter", pair[1]), "none", "folder")
    assert_refused(run("demo", "--model", pair[0], "--adapter", pair[0]), "elastic_config.json")
    (tmp_path / "file").write_text("")
    assert_refused(run("demo", "--model", pair[0], "--adapter", pair[1], "--output", tmp_path / "file"), "file")
    assert_refused(run("demo", "--model", pair[0], "--adapter", pair[1], "--device", "abacus"), "abacus")
    assert_refused(run("demo", "--model", pair[0], "--adapter", pair[1], "--dtype", "int3"), "int3", "bfloat16")
