"""Tables and figures of real studies of a tiny model."""

import io
import math
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from elastic_dit.evaluation.allocation_study import study_allocation
from elastic_dit.evaluation.block_study import study_blocks
from elastic_dit.evaluation.cache_study import study_cache
from elastic_dit.evaluation.route_study import study_routes
from elastic_dit.evaluation.sampling import SampleSettings
from elastic_dit.records import RunRecord
from elastic_dit.report.results_page import results_page
from elastic_dit.report.study_plots import study_plot
from elastic_dit.report.study_tables import STUDIES, study_markdown, study_tables
from emoji import save_dial
from studies import SIZE, subject

LEVELS = (0.25, 0.75)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunRecord]:
    """One of each kind, from its file."""
    folder = tmp_path_factory.mktemp("studies")
    family, adapter, scenes = subject(folder)
    settings = SampleSettings(steps=4, height=SIZE, width=SIZE)
    dial = str(save_dial(family.pipeline, folder / "dial"))
    prompts, common = [one.prompt for one in scenes[:2]], {"batch": 6, "command": "elastic-dit study"}
    made = [
        study_routes(family, adapter, scenes, settings, LEVELS, reuse=True, **common),
        study_cache(family.pipeline, adapter, prompts, settings, (0.0, 0.1), (1, 3), 0.1, **common),
        study_blocks(family, scenes, SIZE, LEVELS, **common),
        study_allocation(family, dial, scenes, SIZE, LEVELS, (0.3, 0.5, 1.0), **common),
    ]
    for record in made:
        record.write(folder / f"{record.kind}.json")
    return {record.kind: RunRecord.read(folder / f"{record.kind}.json") for record in made}


def test_every_kind_has_tables_and_a_figure(records: dict[str, RunRecord]) -> None:
    assert set(records) == set(STUDIES)
    for record in records.values():
        for table in study_tables(record):
            assert {len(cells) for cells in table.rows} == {len(table.header)}
        assert record.environment.commit in study_markdown(record)
        assert study_plot(record).startswith(b"\x89PNG")


def test_the_tables_show_the_records_numbers(records: dict[str, RunRecord]) -> None:
    blocks, routes, cache = (study_markdown(records[f"study-{name}"]) for name in ("blocks", "routes", "cache"))
    easy, hard = (records["study-blocks"].results["left_out"][group][1][2] for group in ("easy", "hard"))
    assert f"{easy:.4f} / {hard:.4f}" in blocks
    run = records["study-routes"].results["runs"][1]
    assert f"{run['flops_share']:.1%} ± {run['deviation']:.1%}" in routes
    assert "δ = 0.1, K = 3" in routes
    for row in records["study-cache"].results["rows"]:
        assert f"{row['psnr']:.2f} ±" in cache
    assert "by δ (K = 3)" in cache and "by K (δ = 0.1)" in cache
    (row,) = records["study-allocation"].results["rows"]
    assert f"{row['ways']['sample']['excess']:.4f} (" in study_markdown(records["study-allocation"])


def changed(record: RunRecord, change: Callable[[RunRecord], None]) -> RunRecord:
    copy = record.model_copy(deep=True)
    change(copy)
    return copy


def pixels(record: RunRecord) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(study_plot(record))).convert("RGB"), dtype=int)


def test_the_difference_of_the_maps_is_shown(records: dict[str, RunRecord]) -> None:
    """Where hard prompts open a block that easy ones skip, there is red; nowhere before."""

    def open_it(record: RunRecord) -> None:
        record.results["runs"][0]["hard"]["open"][1][1] = 1.0

    same, other = (pixels(one) for one in (records["study-routes"], changed(records["study-routes"], open_it)))

    def red(image: np.ndarray) -> int:
        upper = image[: image.shape[0] // 4, image.shape[1] * 2 // 3 :]
        return int(((upper[..., 0] > upper[..., 2] + 60) & (upper[..., 0] > 90)).sum())

    assert red(same) == 0 < red(other)


def test_figures_bear_flat_values(records: dict[str, RunRecord]) -> None:
    """Nothing changes without a block, no sample ran anywhere, one point alone."""

    def flatten(record: RunRecord) -> None:
        for name in ("left_out", "quarter"):
            record.results[name] |= {group: [[0.0] * 3] * 2 for group in ("easy", "hard")}

    def close(record: RunRecord) -> None:
        for group in ("easy", "hard"):
            record.results["runs"][0][group] |= {"open": [[0.0] * 3] * 4, "width": [[None] * 3] * 4}

    def shorten(record: RunRecord) -> None:
        record.results["rows"] = record.results["rows"][:1]

    for kind, change in (("blocks", flatten), ("routes", close), ("cache", shorten)):
        assert study_plot(changed(records[f"study-{kind}"], change)).startswith(b"\x89PNG")


def test_the_results_page_shows_them(records: dict[str, RunRecord]) -> None:
    page = results_page(list(records.items()))
    assert page.count("data:image/png") == len(STUDIES)
    value = records["study-routes"].results["runs"][0]["correlation"]["value"]
    assert math.isfinite(value) and f"{value:+.2f} (" in page
