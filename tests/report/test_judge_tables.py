"""What rows of a contest are called."""

from typing import Any

import pytest

from elastic_dit.report.judge_tables import row_name


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({}, "skip-0"),
        ({"budget": 0.5}, "skip-0 at 0.5"),
        ({"max_reuse": 3}, "skip-0, K = 3"),
        ({"max_reuse": 3, "steps": 4}, "skip-0, K = 3, 4 steps"),
        ({"adapter": None, "name": "teacache 0.3"}, "teacache 0.3"),
    ],
)
def test_row_names(values: dict[str, Any], name: str) -> None:
    entry = {"name": "runs/skip-0/adapter", "adapter": "runs/skip-0/adapter", "budget": None, "max_reuse": None}
    assert row_name({"entry": entry | values}) == name


def test_a_record_from_before_there_was_a_k() -> None:
    assert row_name({"entry": {"name": "a/b", "adapter": "a/b", "budget": 0.5}}) == "b at 0.5"
