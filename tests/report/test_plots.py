import io

import numpy as np
import pytest
from PIL import Image

from elastic_dit.bench.compare import Comparison
from elastic_dit.report.plots import enlarged, heat_map, side_by_side, width_colors
from elastic_dit.report.routes import REUSED, SKIPPED, extreme_routes, read_route
from emoji import STEPS


def test_routes_come_back_as_arrays(reread: Comparison) -> None:
    route = read_route(reread.record, 0)
    assert route.branch == "cond"
    assert route.decisions.shape == route.keep_prob.shape == (STEPS, 3)
    assert route.decisions[:, 0].tolist() == [3] * STEPS  # the second width
    assert route.decisions[:, 1].tolist() == [SKIPPED] * STEPS
    assert route.decisions[:, 2].tolist() == [5, REUSED, REUSED, REUSED, 5]
    assert route.keep_prob[0] == pytest.approx(1 / (1 + np.exp([-3, 3, -0.08])), abs=1e-3)


def test_the_extremes_are_least_and_most_compute(reread: Comparison) -> None:
    record = reread.record.model_copy(deep=True)
    for row, share in zip(record.results["prompts"], (0.5, 0.9, 0.2), strict=True):
        row["flops_share"] = share
    assert [route.share for route in extreme_routes(record)] == [0.2, 0.9]
    record.results["prompts"] = record.results["prompts"][:1]
    assert len(extreme_routes(record)) == 1


def _colors(png: bytes) -> set[tuple[int, ...]]:
    image = Image.open(io.BytesIO(png)).convert("RGB")
    return {color for count, color in image.getcolors(1 << 24) or [] if count > 2000}


def _rgb(name: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(name.removeprefix("#")))


def test_the_heat_map_shows_each_decision_in_its_colour(reread: Comparison) -> None:
    blues = width_colors(reread.record.config["elastic"]["width_ratios"])
    found = _colors(heat_map(reread.record))
    assert {_rgb("#e8ebee"), _rgb("#f2b04a"), _rgb(blues[1]), _rgb(blues[3])} <= found
    assert _rgb(blues[0]) not in found  # nothing ran at a quarter; its legend entry is small


@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_the_heat_map_bears_the_ends_of_tau(reread: Comparison, tau: float) -> None:
    record = reread.record.model_copy(deep=True)
    record.config["elastic"]["tau"] = tau
    assert heat_map(record).startswith(b"\x89PNG")


def test_side_by_side_has_every_image(reread: Comparison) -> None:
    flat = [Image.new("RGB", (64, 64), (10 * index, 200, 40)) for index in range(6)]
    found = _colors(side_by_side(reread.record, flat[:3], flat[3:]))
    assert {(10 * index, 200, 40) for index in range(6)} <= found


def test_small_images_are_enlarged_and_large_ones_left() -> None:
    assert enlarged(Image.new("RGB", (64, 32))).size == (192, 96)
    assert enlarged(Image.new("RGB", (512, 512))).size == (512, 512)
