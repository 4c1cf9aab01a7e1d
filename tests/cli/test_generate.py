import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from elastic_dit.models import shipped_adapter, shipped_model
from shell import Run, assert_refused

SIZE = ("--height", 32, "--width", 48, "--steps", 3)


def test_it_writes_numbered_images_and_a_summary(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    file = tmp_path / "new" / "cat.png"
    outcome = run("generate", "a cat", "--model", pair[0], "--adapter", pair[1], "--output", file, "--number", 2, *SIZE)
    assert outcome.code == 0, outcome.err
    images = [Image.open(file.with_stem(f"cat-{number}")) for number in (1, 2)]
    assert [image.size for image in images] == [(48, 32)] * 2
    assert {f.name for f in file.parent.iterdir()} == {"cat-1.png", "cat-2.png"}
    assert str(file.with_stem("cat-2")) in outcome.out
    assert "66.7% open, 33.3% of them reused" in outcome.out
    run("generate", "a cat", "--model", pair[0], "--adapter", pair[1], "--output", file, "--seed", 1, *SIZE)
    second = np.array(images[1], dtype=int)
    assert np.abs(np.array(Image.open(file), dtype=int) - second).max() <= 1  # seed 1 is the second of seed 0


def test_batches_draw_the_same_images(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name, more in (("all", ()), ("few", ("--batch", 2))):
        file = tmp_path / f"{name}.png"
        model = ("--model", pair[0], "--adapter", pair[1], "--output", file, "--number", 3)
        outcome = run("generate", "a cat", *model, *more, *SIZE)
        assert outcome.code == 0, outcome.err
        assert f"x {3 if name == 'all' else 1} samples" in outcome.out
    for number in (1, 2, 3):
        pixels = [np.array(Image.open(tmp_path / f"{name}-{number}.png"), dtype=int) for name in ("all", "few")]
        assert np.abs(pixels[0] - pixels[1]).max() <= 1
    assert len(list(tmp_path.iterdir())) == 6


def test_settings_reach_the_routers(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    elastic = ("--model", pair[0], "--adapter", pair[1], "--output", tmp_path / "a.jpg", *SIZE)
    assert "0.0% of them reused" in run("generate", "a cat", *elastic, "--max-reuse", 0).out
    assert "0.0% of them reused" in run("generate", "a cat", *elastic, "--delta", 0.001).out
    assert "33.3% open" in run("generate", "a cat", *elastic, "--tau", 0.6).out
    assert Image.open(tmp_path / "a.jpg").format == "JPEG"


def test_dense_runs_without_an_adapter(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = run("generate", "a cat", "--model", pair[0], "--dense", "--output", tmp_path / "a.png", *SIZE)
    assert outcome.code == 0
    assert outcome.out.split() == [str(tmp_path / "a.png")]
    assert_refused(run("generate", "a cat", "--model", pair[0], "--dense", "--tau", 0.6), "--tau")
    shifted = ("--shift", 3, "--output", tmp_path / "b.png", *SIZE)
    assert run("generate", "a cat", "--model", pair[0], "--dense", *shifted).code == 0
    assert (np.array(Image.open(tmp_path / "a.png")) != np.array(Image.open(tmp_path / "b.png"))).any()


def test_bad_input(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    elastic = ("generate", "a cat", "--model", pair[0], "--adapter", pair[1], "--output", tmp_path / "a.png")
    assert_refused(run(*elastic, "--tau", 7), "tau", "7")
    half = ("--model", shipped_model("emoji-dozen"), "--adapter", shipped_adapter("emoji-dozen-half"))
    assert_refused(run("generate", "a cat", *half, "--tau", 0.6), "--tau", "fixed route")
    assert_refused(run(*elastic, "--step-share", 0.5), "step_share", "several step_intervals")
    assert_refused(run(*elastic, "--height", 30, "--steps", 1), "multiples of 4")
    assert_refused(run(*elastic, "--device", "abacus"), "abacus")
    assert_refused(run(*elastic[:-1], tmp_path / "a.docx"), "a.docx", ".png")
    assert_refused(run(*elastic[:-1], tmp_path / "a"), ".png")
    assert_refused(run("generate", "a cat", "--model", tmp_path, "--dense"), "model_index.json")
    assert_refused(run("generate", "a cat", "--model", tmp_path, "--dense", "--shift", 0), "--shift", "above 0")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damaged", ["model_index.json", "transformer/config.json"])
def test_a_damaged_model(run: Run, pair: tuple[Path, Path], tmp_path: Path, damaged: str) -> None:
    shutil.copytree(pair[0], tmp_path / "model")
    (tmp_path / "model" / damaged).write_text("{ not json")
    assert_refused(run("generate", "a cat", "--model", tmp_path / "model", "--dense"), "model")


def test_another_models_adapter(run: Run, pair: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(pair[1], tmp_path / "adapter")
    card = tmp_path / "adapter" / "elastic_config.json"
    card.write_text(card.read_text().replace('"base_fingerprint": "', '"base_fingerprint": "0'))
    assert_refused(run("generate", "a cat", "--model", pair[0], "--adapter", tmp_path / "adapter"), "fingerprint")
