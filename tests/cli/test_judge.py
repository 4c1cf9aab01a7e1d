import importlib.util
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elastic_dit.bench.judged import compare
from elastic_dit.records import RunRecord
from elastic_dit.training.data.prepare import prepare
from emoji import EVERYDAY_SPRITES
from shell import Outcome, Run, assert_refused

SPRITES = Path(__file__).parents[1] / "data" / "sprites"
needs_network = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite_pytorch") is None, reason="needs elastic-dit[judge]"
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(folder, SPRITES, scenes=60, concepts=EVERYDAY_SPRITES)
    return folder


@pytest.mark.slow
@needs_network
def test_it_trains_and_judges(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    judge, record, table = tmp_path / "judge", tmp_path / "truth.json", tmp_path / "truth.md"
    files = ("--json", record, "--markdown", table, "--threads", 1)
    train = ("judge", "train", SPRITES, "--check", data / "val", "--output", judge)
    outcome = run(*train, "--scenes", 64, "--epochs", 2, "--pairs", 32, *files)
    assert outcome.code == 0, outcome.err
    truth = RunRecord.read(record).results["truth"]
    assert set(truth["scene_eval"]) >= {"single_object", "counting", "position"}
    assert f"{truth['scene_eval']['counting']:.1%}" in table.read_text()

    out = tmp_path / "images"
    files = ("--json", out / "run.json", "--markdown", out / "run.md", "--plot", out / "run.png")
    files = (*files, "--sheet", out / "sheet.png", "--threads", 1)
    models = ("--model", pair[0], "--adapter", pair[1], "--baseline", "fewer-steps=0.5", "--judge", judge)
    size = ("--per-task", 2, "--steps", 2, "--resolution", 32, "--batch", 6, "--repeats", 1)
    command = ("judge", "images", data / "val", "--output", out, *models, *size, *files)
    outcome = run(*command)
    assert outcome.code == 0, outcome.err
    result = RunRecord.read(out / "run.json")
    dense, elastic, fewer = result.results["rows"]
    assert (dense["cost"]["flops_share"], fewer["cost"]["flops_share"]) == (1, 0.5)
    assert elastic["cost"]["flops_share"] < 1
    assert 0 <= dense["overall"] <= 1
    assert f"{dense['kernel']:.1f} ±" in (out / "run.md").read_text()
    for picture in ("run.png", "sheet.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")
    drawn = list(out.glob("*/*.png"))
    assert len(drawn) == 3 * 12 and Image.open(drawn[0]).size == (32, 32)
    assert "32 pixels" in (out / "run.md").read_text()
    assert run(*command).code == 0  # nothing is drawn again
    again = RunRecord.read(out / "run.json")
    assert again.results == result.results

    selected, fitted = tmp_path / "selected", tmp_path / "fitted.json"
    size = ("--steps", 4, "--intervals", "1,2", "--share", 0.75, "--per-task", 2, "--images", 2)
    size += ("--batch", 6, "--resolution", 32)
    common = ("--model", pair[0], "--judge", judge, "--threads", 1)
    outcome = run("select-steps", data / "val", *common, *size, "--output", selected, "--json", fitted)
    assert outcome.code == 0, outcome.err
    assert "every 2. step: " in outcome.out and "with equal steps for all" in outcome.out
    record = RunRecord.read(fitted)
    assert len(record.samples["share"]) == 12 and len(record.results["right"]) == 2
    assert set(record.results["followed"]) == {"scene_difficulty", "failure", "gain", "difficulty_and_gain"}
    assert_refused(run("select-steps", data / "val", *common, "--intervals", "2;3", "--output", selected), "2;3")
    kept = tmp_path / "selected-scores.safetensors"
    written = kept.stat().st_mtime_ns
    assert run("select-steps", data / "val", *common, *size, "--output", selected, "--json", fitted).code == 0
    assert kept.stat().st_mtime_ns == written and RunRecord.read(fitted).samples == record.samples
    other = ("--guidance", 2, "--output", selected)
    assert_refused(run("select-steps", data / "val", *common, *size, *other), "other prompts, settings or models")
    kept.write_bytes(b"?")
    assert_refused(run("select-steps", data / "val", *common, *size, "--output", selected), "holds no scores")
    size = ("--per-task", 2, "--steps", 4, "--resolution", 32, "--batch", 6, "--repeats", 1, "--in-turn", 6)
    size += ("--shift", 1.5)
    files = ("--output", tmp_path / "by-prompt", "--json", out / "by-prompt.json")
    outcome = run("judge", "images", data / "val", *common, "--adapter", f"{selected}@share=0.5", *size, *files)
    assert outcome.code == 0, outcome.err
    judged = RunRecord.read(out / "by-prompt.json")
    assert judged.results["rows"][1]["cost"]["flops_share"] == pytest.approx(0.5, rel=1e-3)
    assert judged.config["shift"] == 1.5
    refused = run("judge", "images", data / "val", *common, "--adapter", f"{pair[1]}@share=0.5", *size, *files)
    assert_refused(refused, "no intervals to choose from")


def test_bad_input(run: Run, pair: tuple[Path, Path], data: Path, tmp_path: Path) -> None:
    images = ("judge", "images", data / "val", "--output", tmp_path)
    assert_refused(run(*images, "--model", pair[0]), "--adapter")
    assert_refused(run(*images, "--baseline", "teacash=1"), "teacash", "teacache")
    assert_refused(run(*images, "--baseline", "teacache"), "teacache=NUMBER")
    assert_refused(run(*images, "--judge", tmp_path / "none"), "judge train")
    assert_refused(run("judge", "images", tmp_path / "none", "--output", tmp_path), "none")
    assert_refused(run("judge", "images", data / "test", "--output", tmp_path), "counting")


RESULTS = Path(__file__).parents[2] / "docs" / "results"
FEW, MANY = RESULTS / "converged-4.json", RESULTS / "converged-long-8.json"


def test_rows_of_records_are_drawn_again(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "new" / "plot.png"
    other = RESULTS / "converged-faded-8.json"
    rows = ("--row", "dense=dense", "--row", "fewer-steps 0.5, guidance 2.5, shift 2=dense")
    outcome = run("judge", "plot", MANY, other, "--output", file, *rows)
    assert outcome.code == 0, outcome.err
    joined = np.array(Image.open(file).convert("RGB"))
    run("judge", "plot", MANY, other, "--output", file, *rows[:2], "--row", "dense-faded-8, 8 steps, shift 1.5=faded")
    assert joined.std() > 0 and not np.array_equal(joined, np.array(Image.open(file).convert("RGB")))


def test_a_row_is_compared_with_the_others(run: Run) -> None:
    """From the samples comes what the record says of its own pairs."""
    outcome = run("judge", "compare", MANY, "long-80-from-5, 5 steps, guidance 3")
    assert outcome.code == 0, outcome.err
    record = RunRecord.read(MANY)
    pairs = compare(record, 5)
    assert [pair["second"] for pair in pairs] == [0, 1, 2, 3, 4, 6, 7]
    (own,) = (pair for pair in record.results["pairs"] if (pair["first"], pair["second"]) == (4, 5))
    (again,) = (pair for pair in compare(record, 4) if pair["second"] == 5)
    for name, value in own.items():
        assert again[name] == pytest.approx(value), name
    assert_refused(run("judge", "compare", MANY, "slow"), "slow", "long-80-from-5")
    assert_refused(run("judge", "compare", RESULTS / "selection.json", "dense"), "judge images")
    assert_refused(run("judge", "compare", RESULTS / "rivals-8.json", "dense"), "older version", "make it again")


def test_rows_that_cannot_be_drawn(run: Run, tmp_path: Path) -> None:
    def plot(*arguments: object) -> Outcome:
        return run("judge", "plot", *arguments, "--output", tmp_path / "plot.png")

    assert_refused(plot(MANY, "--row", "slow=slow"), "slow", "long-80-from-5")
    assert_refused(plot(MANY, "--row", "dense"), "NAME=LABEL")
    assert_refused(plot(MANY, FEW, "--row", "dense=dense"), "4", "8", "same prompts and steps")
    assert_refused(plot(RESULTS / "selection.json", "--row", "dense=dense"), "selection.json", "judge images")
    assert not list(tmp_path.iterdir())
