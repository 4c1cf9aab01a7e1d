import pytest

from elastic_dit.errors import UnknownNameError
from elastic_dit.records import RunRecord
from elastic_dit.report.bench_tables import markdown, tables
from elastic_dit.report.bench_words import by_name
from elastic_dit.report.tables import Table, percent, seconds, size_of, times


def _columns(table: Table, row: str) -> dict[str, str]:
    """A row by its header, the first of each name."""
    cells = next(cells for cells in table.rows if cells[0] == row)
    return dict(reversed(list(zip(table.header, cells, strict=True))))


def test_speed_is_the_records(speed_record: RunRecord) -> None:
    speed, routes, _, _ = tables(speed_record)
    rows = speed_record.results["rows"]
    assert [cells[0] for cells in speed.rows] == [row["name"] for row in rows]
    assert speed.title.startswith("Speed of flux-tiny, batch 1, float32: a dense step takes")
    assert seconds(rows[0]["step_seconds"]) in speed.title
    row, shown = by_name(rows)["skip + width + cache"], _columns(speed, "skip + width + cache")
    assert shown["FLOPs"] == percent(row["flops_share"])
    assert shown["step"] == seconds(row["step_seconds"])
    assert shown["speed-up"] == times(row["speedup"])
    assert shown["predicted"] == f"{1 / row['flops_share']:.2f}×"
    assert float(shown["realised"]) == pytest.approx(row["speedup"]["median"] * row["flops_share"], abs=0.006)
    assert shown["beside"] == "dense" and _columns(speed, "dense")["beside"] == "–"
    assert "dense" not in [cells[0] for cells in routes.rows]  # it has no routes
    assert _columns(routes, "all open") == {"": "all open", "open": "100.0%", "reused": "0.0%", "width": "1.00"}


def test_the_timeline_adds_up(speed_record: RunRecord) -> None:
    timeline = tables(speed_record)[-1]
    assert timeline.title.endswith("step 3 of 4, guidance pass 1")
    assert timeline.rows == [
        ("skipped", "1", "4.0 ms", "0.1 ms", "0.03"),
        ("reused", "1", "2.0 ms", "0.2 ms", "0.10"),
        ("MLP width 0.25", "1", "2.0 ms", "1.2 ms", "0.60"),
        ("MLP width 1", "1", "4.0 ms", "4.1 ms", "1.03"),
        ("all blocks", "4", "12.0 ms", "5.6 ms", "0.47"),
    ]
    del speed_record.results["timeline"]
    assert len(tables(speed_record)) == 3


def test_the_first_step_and_the_later_ones(speed_record: RunRecord) -> None:
    """Three runs of four steps; the median at each, and long steps weigh more."""
    speed_record.samples["all open_seconds"] = [2.0, 1.1, 1.0, 3.3, 3.0, 1.1, 1.0, 3.0, 2.0, 9.0, 1.0, 3.3]
    speed_record.samples["all open_beside_seconds"] = [1.0, 1.0, 1.0, 3.0] * 3
    steps = tables(speed_record)[2]
    assert _columns(steps, "all open") == {
        "": "all open",
        "the first step": "2.000",
        "the later ones": "1.080",  # 1.1 and 1.0 of a second each, 1.1 of three
        "beside": "dense",
    }
    assert "dense" not in [cells[0] for cells in steps.rows]
    speed_record.config["steps"] = 1
    assert "First" not in "".join(table.title for table in tables(speed_record))


def test_peers_have_their_settings_and_sources(peers_record: RunRecord) -> None:
    speed, methods, left_out = tables(peers_record)
    assert [cells[0] for cells in speed.rows] == [row["name"] for row in peers_record.results["rows"]]
    assert _columns(speed, "teacache")["setting"] == "0.6"
    assert _columns(speed, "compiled")["setting"] == _columns(speed, "elastic")["setting"] == "–"
    assert [cells[0] for cells in methods.rows] == ["fewer-steps", "teacache", "cache-dit", "compiled"]
    assert _columns(methods, "teacache")["source"] == "a paper"
    assert left_out.rows == [("magcache", "does not fit")]
    peers_record.results["left_out"] = []
    assert len(tables(peers_record)) == 2


def test_scaling_has_a_table_for_each_axis(scaling_record: RunRecord) -> None:
    made = tables(scaling_record)
    assert [table.header[0] for table in made] == ["batch", "tokens", "blocks", "denoising steps"]
    assert [cells[0] for cells in made[1].rows] == ["64", "256", "1024"]
    shown = _columns(made[0], "8")
    assert shown["time"] == "0.53 (0.50–0.55)" and shown["all open"] == "1.02 (0.97–1.07)"
    assert shown["FLOPs"] == "50.0%" and shown["predicted"] == "2.00×" and shown["realised"] == "0.95"
    assert [bool(table.note) for table in made] == [False, False, False, True]


def test_training_has_time_and_memory(training_record: RunRecord) -> None:
    (table,) = tables(training_record)
    row = training_record.results["rows"][1]
    shown = next(cells for cells in table.rows if cells[0] == "elastic")
    assert shown[1] == seconds(row["step_seconds"])
    assert shown[2].startswith(f"{row['ratio']['median']:.2f}")
    assert shown[3:] == (
        size_of(row["peak_bytes"]),
        f"{row['memory_ratio']:.2f}",
        size_of(row["saved_bytes"]),
        f"{row['saved_ratio']:.2f}",
        "dense",
    )
    assert table.rows[3][-1] == "dense, checkpointing"


@pytest.mark.parametrize("kind", ["speed", "peers", "scaling", "training"])
def test_markdown_has_every_table_and_its_origin(kind: str, request: pytest.FixtureRequest) -> None:
    record: RunRecord = request.getfixturevalue(f"{kind}_record")
    text = markdown(record)
    for table in tables(record):
        assert f"**{table.title}**" in text and table.note in text
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == sum(2 + len(table.rows) for table in tables(record))
    here = record.environment
    assert text.endswith(f"torch {here.versions['torch']}, commit {here.commit}: `elastic-dit bench`\n")
    assert text.splitlines()[-1].startswith(f"{here.device}, {here.threads} thread")


def test_a_bar_in_a_cell_is_no_column(peers_record: RunRecord) -> None:
    assert "| teacache | teacache \\| in words |" in markdown(peers_record)


def test_every_column_is_explained(request: pytest.FixtureRequest) -> None:
    for kind in ("speed", "peers", "scaling"):
        made = tables(request.getfixturevalue(f"{kind}_record"))
        note = next(table.note for table in made if "FLOPs:" in table.note)
        for column in ("FLOPs", "Predicted", "Realised"):
            assert f"{column}:" in note
        assert "counted as executed, by torch's counter" in note


def test_an_unknown_kind_is_an_error(speed_record: RunRecord) -> None:
    with pytest.raises(
        UnknownNameError, match=r"'speeds'; known: parts, peers, scaling, speed, training. Did you mean 'speed'"
    ):
        tables(speed_record.model_copy(update={"kind": "speeds"}))


@pytest.mark.parametrize(
    ("count", "text"), [(512, "512 B"), (1536, "1.5 KiB"), (300 * 2**20, "300 MiB"), (2.25e9, "2.1 GiB")]
)
def test_sizes(count: float, text: str) -> None:
    assert size_of(count) == text
