import io

import numpy as np
import pytest
from PIL import Image

from elastic_dit.records import RunRecord
from elastic_dit.report.bench_plots import scaling_plot, share_plot, timeline_colors, timeline_plot
from elastic_dit.report.labels import label_points


def _open(png: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    assert 800 <= image.width <= 1800 and 400 <= image.height <= 1800
    return image.convert("RGB")


def _pixels(image: Image.Image) -> dict[tuple[int, ...], int]:
    return {color: count for count, color in image.getcolors(1 << 24) or []}  # type: ignore[misc]


def _rgb(name: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(name.removeprefix("#")))


def test_speed_against_flops(speed_record: RunRecord, peers_record: RunRecord) -> None:
    ours, others = _rgb("#2b6cb0"), _rgb("#b7791f")
    own = _pixels(_open(share_plot(speed_record)))
    assert own[ours] > 200 and others not in own
    both = _pixels(_open(share_plot(peers_record)))
    assert both[ours] > 50 and both[others] > 200


def test_names_cover_nothing() -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5), layout="constrained")
    axis = figure.subplots()
    axis.set_xlim(0.4, 1.1)
    axis.set_ylim(0.8, 2.4)
    heights = [1.9, 1.91, 1.92, 1.85, 1.97]
    points = [
        (0.5 + 0.004 * n, {"median": y, "min": y - 0.05, "max": y + 0.05}, f"method {n}") for n, y in enumerate(heights)
    ]
    points.append((1.0, {"median": 1.0, "min": 1.0, "max": 1.0}, "dense"))
    label_points(figure, axis, points, np.linspace(0.4, 1.1, 50))
    figure.canvas.draw()
    names = {text.get_text(): text for text in axis.texts}
    assert sorted(names) == sorted(name for _, _, name in points)
    boxes = [super(type(text), text).get_window_extent() for text in names.values()]  # without the leader
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = axis.get_window_extent()
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes)
    marks = [axis.transData.transform((x, spread["median"])) for x, spread, _ in points]
    assert not any(box.contains(*mark) for box in boxes for mark in marks)


def test_one_step_in_the_colours_of_what_happened(speed_record: RunRecord) -> None:
    image = _open(timeline_plot(speed_record))
    pixels, colors = _pixels(image), timeline_colors([])
    counts = {kind: pixels.get(_rgb(color), 0) for kind, color in colors.items()}
    assert (
        counts["MLP width 1"] > 5 * counts["MLP width 0.25"] > 5000
    )  # all dense blocks and one elastic: 16.1 and 1.2 ms
    assert counts["reused"] > 1000  # 0.2 ms
    assert counts["MLP width 0.5"] == counts["MLP width 0.75"] == 0  # what is reused has no width
    assert list(timeline_colors([0.6]))[2:] == [f"MLP width {width}" for width in ("0.25", "0.5", "0.6", "0.75", "1")]


@pytest.mark.parametrize("axes", [("batch", "tokens", "blocks", "steps"), ("batch", "tokens", "steps"), ("tokens",)])
def test_scaling_has_a_panel_for_each_axis(scaling_record: RunRecord, axes: tuple[str, ...]) -> None:
    points = [point for point in scaling_record.results["points"] if point["axis"] in axes]
    image = Image.open(io.BytesIO(scaling_plot(scaling_record.model_copy(update={"results": {"points": points}}))))
    assert image.width == 640 * min(2, len(axes))
    assert image.height == 160 * (0.6 + 3 * -(-len(axes) // 2))
    assert _pixels(image.convert("RGB"))[_rgb("#2b6cb0")] > 300
