from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from elastic_dit.cli.recipes import Recipes
from elastic_dit.records import RunRecord
from emoji import save_pair
from shell import Run, assert_refused


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Two recipes of two steps on four pictures."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for index, color in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (16, 16), color).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"a {color} square")
    data = {"source": "folder", "path": str(pictures), "validation": str(pictures), "resolution": 16}
    base = {
        "output": str(tmp_path / "run"),
        "model": str(save_pair(tmp_path / "pair")[0]),
        "elastic": {"rho_g": 0.5},
        "data": data | {"cache": str(tmp_path / "cache")},
        "steps": 2,
        "batch_size": 2,
        "threads": 1,
    }
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    values = {
        "about": "Two recipes",
        "base": str(tmp_path / "base.yaml"),
        "output": str(tmp_path / "runs"),
        "set": {"optimizer.router_learning_rate": 1e-5},
        "recipes": {
            "plain": {"about": "as it is"},
            "noisy": {"about": "noise", "set": {"elastic.decision_noise": 0.5}},
        },
    }
    file = tmp_path / "recipes.yaml"
    file.write_text(yaml.safe_dump(values, sort_keys=False))
    return file


def test_every_recipe_has_every_seed_once(run: Run, recipes: Path, tmp_path: Path) -> None:
    trained = run("ablate", recipes, "--seeds", "1", "--recipe", "plain", "--train-only")
    assert trained.code == 0, trained.err
    scored = run("ablate", recipes, "--score-only", "--samples", 4)
    assert scored.code == 0 and "plain" in scored.out and "noisy" not in scored.out
    files = ("--json", tmp_path / "a.json", "--markdown", tmp_path / "a.md", "--plot", tmp_path / "a.png")
    outcome = run("ablate", recipes, "--seeds", "1", "--samples", 4, *files)
    assert outcome.code == 0, outcome.err
    assert "plain, seed 1: done" in outcome.err and "noisy, seed 1: noise" in outcome.err
    assert (tmp_path / "runs" / "noisy-1" / "adapter" / "elastic_config.json").is_file()
    assert '"decision_noise": 0.5' in (tmp_path / "runs" / "noisy-1" / "adapter" / "elastic_config.json").read_text()
    record = RunRecord.read(tmp_path / "a.json")
    plain, noisy = record.results["recipes"]
    assert (plain["name"], noisy["name"]) == ("plain", "noisy")
    assert [row["name"] for row in record.results["runs"]] == [
        str(tmp_path / "runs" / run / "adapter") for run in ("plain-1", "noisy-1")
    ]
    assert f"{noisy['excess_by_run'][0]:.4f}" in (tmp_path / "a.md").read_text()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_recipes_of_other_budgets_keep_their_scores(run: Run, recipes: Path, tmp_path: Path) -> None:
    """Each is scored at the highest budget that it knows."""
    changed = yaml.safe_load(recipes.read_text())
    ranges = {"low": [0.4, 0.8], "full": [0.4, 1.0], "plain": None}
    changed["recipes"] = {
        name: {"about": name, "set": {"elastic.budget_range": limits} if limits else {}}
        for name, limits in ranges.items()
    }
    recipes.write_text(yaml.safe_dump(changed, sort_keys=False))
    outcome = run("ablate", recipes, "--seeds", 0, "--samples", 4, "--json", tmp_path / "a.json")
    assert outcome.code == 0, outcome.err
    record = RunRecord.read(tmp_path / "a.json")
    assert [(Path(row["name"]).parent.name, row["budget"]) for row in record.results["runs"]] == [
        ("low-0", 0.8),
        ("full-0", 1.0),
        ("plain-0", None),
    ]
    dense = np.array(record.samples["dense_loss"])
    for recipe, row in zip(record.results["recipes"], record.results["runs"], strict=True):
        own = np.array(record.samples[f"{row['name']}_{row['budget']}_loss"])
        assert recipe["excess"] == pytest.approx((own - dense).mean())
    assert len(record.samples) == 4


def test_a_recipe_goes_on_from_its_own_seed() -> None:
    first = {"about": "first"}
    then = {"about": "then", "set": {"adapter": "runs/first-{seed}/adapter", "steps": 3}}
    recipes = Recipes.model_validate(
        {"about": "Two", "base": "a.yaml", "output": "runs", "recipes": {"first": first, "then": then}}
    )
    assert str(recipes.folder("first", 2)) in recipes.stage("then", 2).run
    assert "{seed}" not in recipes.stage("then", 2).run


def test_bad_input(run: Run, recipes: Path, tmp_path: Path) -> None:
    assert_refused(run("ablate", tmp_path / "none.yaml"), "none.yaml")
    assert_refused(run("ablate", recipes, "--seeds", "one"), "--seeds", "one")
    assert_refused(run("ablate", recipes, "--recipe", "nosiy"), "nosiy", "noisy")
    assert_refused(run("ablate", recipes, "--score-only"), "no run")
    recipes.write_text(recipes.read_text().replace("about: noise", "abuot: noise"))
    assert_refused(run("ablate", recipes), "abuot")
