import numpy as np
import pytest

from elastic_dit.evaluation.ablation import compare_recipes
from elastic_dit.records import Environment, RunRecord
from elastic_dit.report.ablation_tables import ablation_markdown, ablation_tables
from elastic_dit.report.results_page import results_page


@pytest.fixture
def record() -> RunRecord:
    random = np.random.default_rng(0)
    dense = random.random(40)
    losses = [dense + 0.2, dense + 0.22, dense + 0.1]
    runs = {"static": {0: 0, 1: 1}, "noisy": {0: 2}, "late": {2: 2}}
    rows = compare_recipes(runs, losses, dense, [0.5, 0.52, 0.6])
    recipes = {"static": {"about": "no routers", "set": {"elastic": None}}, "noisy": {"about": "noise", "set": {}}}
    recipes["late"] = {"about": "of another seed", "set": {}}
    return RunRecord(
        kind="ablation",
        command="elastic-dit ablate x.yaml",
        environment=Environment.here(),
        config={"about": "Two", "recipes": {"recipes": recipes}, "samples": 40, "steps": 3, "resolution": 16},
        results={"dense": {"loss": float(dense.mean())}, "recipes": rows},
    )


def test_a_row_for_each_recipe(record: RunRecord) -> None:
    loss, recipes = ablation_tables(record)
    static, noisy, late = loss.rows
    assert static[:3] == ("static", "2", "51.0%")
    assert static[3].startswith("+0.2100") and static[4] == "0.2000 0.2200"
    assert noisy[5].startswith("-0.1000 (-0.1000 to")  # on the one seed that both have
    assert late[3] == noisy[3] and late[5] == "–"
    assert recipes.rows[:2] == [("static", "no routers", "elastic: null"), ("noisy", "noise", "–")]
    assert "`elastic-dit ablate x.yaml`" in ablation_markdown(record)


def test_the_page_shows_it(record: RunRecord) -> None:
    page = results_page([("Recipes", record)])
    assert "Beside: paired by seed" in page and "data:image/png;base64" in page
