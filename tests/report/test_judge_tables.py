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
