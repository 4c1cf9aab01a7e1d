import shutil
from pathlib import Path

import pytest

from elastic_dit.calibration import Calibration
from shell import Run, assert_refused

SIZE = ("--height", 32, "--width", 32, "--steps", 3)


@pytest.fixture
def adapter(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return shutil.copytree(pair[1], tmp_path / "adapter")


def test_a_speed_up_can_be_asked_for_afterwards(
    run: Run, pair: tuple[Path, Path], adapter: Path, tmp_path: Path
) -> None:
    model = ("--model", pair[0], "--adapter", adapter)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red apple\n\na dog\n")
    output = ("--output", tmp_path / "cat.png")
    assert_refused(run("generate", "a cat", *model, *output, *SIZE, "--speedup", 1.2), "elastic-dit calibrate")
    few = ("--points", 10, "--repeats", 1, "--guidance", 1, "--shift", 2, "--check", 1000)
    outcome = run("calibrate", *model, *SIZE, "--prompts", prompts, *few)
    assert outcome.code == 0, outcome.err
    result = Calibration.read(adapter)
    assert result is not None
    assert result.config["prompts"] == ["a red apple", "a dog"] and result.config["shift"] == 2
    assert result.command.startswith("elastic-dit calibrate --model")
    assert "speed-up" in outcome.out and str(adapter) in outcome.out.replace("\n", "")
    assert result.checks == [] and "1000.00× lies outside" in outcome.out
    middle = sorted(point.speedup for curve in result.curves() for point in curve)[1]
    assert run("generate", "a cat", *model, *output, *SIZE, "--speedup", middle).code == 0
    assert_refused(run("generate", "a cat", *model, *output, *SIZE, "--speedup", 1000), "1000", "reaches from")
    assert_refused(run("generate", "a cat", *model, *output, *SIZE, "--speedup", 2, "--tau", 0.5), "--speedup", "--tau")


def test_bad_input(
    run: Run, pair: tuple[Path, Path], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ("--model", pair[0], "--adapter", adapter)
    assert_refused(run("calibrate", *model, "--prompts", tmp_path / "none.txt"), "none.txt")
    (tmp_path / "empty.txt").write_text("\n")
    assert_refused(run("calibrate", *model, "--prompts", tmp_path / "empty.txt"), "empty")
    assert_refused(run("calibrate", *model, "--points", 3), "points")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert_refused(run("calibrate", *model), str(adapter), "cannot be written")
