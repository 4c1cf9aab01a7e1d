from pathlib import Path

import pytest
import yaml
from PIL import Image

from elastic_dit.cli.train import _parse
from shell import Run, assert_refused


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A tiny dense run on four pictures."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, color in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (16, 16), color).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"a {color} square")
    values = {
        "output": str(tmp_path / "run"),
        "model": "emoji-flux:tiny",
        "data": {"source": "folder", "path": str(pictures), "resolution": 16, "cache": str(tmp_path / "cache")},
        "steps": 50,
        "batch_size": 2,
        "threads": 1,
    }
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_it_trains_what_the_config_says(run: Run, config: Path, tmp_path: Path) -> None:
    outcome = run("train", config, "--steps", 2, "--output", tmp_path / "other", "--set", "data.limit=3")
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "other" / "model" / "model_index.json").is_file()
    assert not (tmp_path / "run").exists()


def test_bad_input(run: Run, config: Path, tmp_path: Path) -> None:
    assert_refused(run("train", tmp_path / "none.yaml"), "none.yaml")
    assert_refused(run("train", config, "--set", "data.limit"), "KEY=VALUE")
    assert_refused(run("train", config, "--set", "data.limit=[1"), "YAML")
    assert_refused(run("train", config, "--set", "optimizer.learning_rat=1"), "learning_rat")
    assert_refused(run("train", config, "--set", "data.path=nowhere"), "nowhere")
    config.write_text("a: b: c")
    assert_refused(run("train", config), "YAML")


def test_values_are_read_as_a_person_means_them() -> None:
    assert _parse("optimizer.learning_rate=1e-4", yaml) == ("optimizer.learning_rate", 1e-4)
    assert _parse("compile=true", yaml) == ("compile", True)
    assert _parse("data.path=a=b", yaml) == ("data.path", "a=b")
    assert _parse("adapter=null", yaml) == ("adapter", None)
