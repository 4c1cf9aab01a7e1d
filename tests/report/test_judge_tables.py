"""What rows of a contest are called."""

import pytest

from elastic_dit.report.judge_tables import row_name


@pytest.mark.parametrize(
    ("entry", "name"),
    [
        (("runs/skip-0/adapter", "runs/skip-0/adapter"), "skip-0"),
        (("runs/skip-0/adapter at 0.5, K = 3, 4 steps", "runs/skip-0/adapter"), "skip-0 at 0.5, K = 3, 4 steps"),
        (("a/b at 0.5", "a/b"), "b at 0.5"),
        (("teacache 0.3", None), "teacache 0.3"),
    ],
)
def test_row_names(entry: tuple[str, str | None], name: str) -> None:
    assert row_name({"entry": dict(zip(("name", "adapter"), entry, strict=True))}) == name


@pytest.mark.parametrize(
    ("folders", "name"),
    [
        ("runs/skip-*/adapter", "skip (3 runs)"),
        ("runs/skip-*", "skip (3 runs)"),
        ("runs/skip-[0-9]*/adapter, lag = 1", "skip, lag = 1 (3 runs)"),
        ("runs/skip_*/adapter at 0.5, K = 3", "skip at 0.5, K = 3 (3 runs)"),
    ],
)
def test_names_of_a_recipes_trainings(folders: str, name: str) -> None:
    entry = {"name": folders, "adapter": "runs/skip-0/adapter"}
    assert row_name({"entry": entry, "runs": [1, 2, 3]}) == name
