import json
from pathlib import Path

from shell import Run, assert_refused

SPRITES = Path(__file__).parents[1] / "data" / "sprites"


def test_prepare_writes_shards_and_says_how_many(run: Run, tmp_path: Path) -> None:
    outcome = run("data", "prepare", tmp_path / "out", "--sources", SPRITES, "--size", 16, "--scenes", 4, "--seed", 3)
    assert outcome.code == 0, outcome.err
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (about["size"], about["scenes"], about["seed"]) == (16, 4, 3)
    assert all(f"{number} {split}" in outcome.out for split, number in about["samples"].items())
    again = run("data", "prepare", tmp_path / "out", "--sources", SPRITES, "--size", 16, "--scenes", 5)
    assert_refused(again, "another data set")
