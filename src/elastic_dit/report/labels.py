"""Names beside the points of a figure, none over another."""

from typing import Any

import numpy as np
import numpy.typing as npt

from elastic_dit.report.plots import FAINT, INK

LEADER = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}


def label_points(
    figure: Any, axis: Any, points: list[tuple[float, dict[str, float], str]], line: npt.NDArray[np.float64]
) -> None:
    """Name the points: neighbours in a column beside them, in their order, where nothing else is covered.

    Args:
        figure: laid out but for the names.
        axis: its limits are final.
        points: x, the spread of y, and the name.
        line: x of the curve 1 / x, which names keep off.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # only now is the layout known
    point = figure.dpi / 72
    frame = axis.get_window_extent()
    marks = [
        axis.transData.transform([(x, spread[key]) for key in ("min", "median", "max")]) for x, spread, _ in points
    ]
    taken = [Bbox([low - 3 * point, high + 3 * point]) for low, _, high in marks]
    taken += [Bbox([at - 2, at + 2]) for at in axis.transData.transform(np.column_stack([line, 1 / line]))]
    order = sorted(range(len(points)), key=lambda index: marks[index][1][0])
    for group in _neighbours(order, [mark[1][0] for mark in marks], 0.08 * frame.width):
        group.sort(key=lambda index: marks[index][1][1])
        texts = [figure.text(0, 0, points[index][2], fontsize=8.5) for index in group]
        sizes = [text.get_window_extent(canvas.get_renderer()) for text in texts]
        middles = _apart(
            [marks[index][1][1] for index in group], 13 * point, frame.y0 + 8 * point, frame.y1 - 8 * point
        )
        for text in texts:
            text.remove()
        left, right = (choose(marks[index][1][0] for index in group) for choose in (min, max))
        places = [
            (sign, start + sign * away * point)
            for away in ((8, 24, 40, 60, 80, 110) if len(group) == 1 else (24, 40, 60, 80, 110, 140, 170, 200))
            for sign, start in ((1, right), (-1, left))
        ]
        for sign, start in places:
            boxes = [
                Bbox.from_bounds(start - (sign < 0) * size.width, middle - size.height / 2, size.width, size.height)
                for size, middle in zip(sizes, middles, strict=True)
            ]
            inside = all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in boxes)
            if inside and not any(box.overlaps(other) for box in boxes for other in taken):
                break
        taken += boxes
        for index, middle in zip(group, middles, strict=True):
            own = marks[index][1]
            text = axis.annotate(
                points[index][2],
                (points[index][0], points[index][1]["median"]),
                ((start - own[0]) / point, (middle - own[1]) / point),
                textcoords="offset points",
                ha="left" if sign > 0 else "right",
                va="center",
                fontsize=8.5,
                color=INK,
                arrowprops=None if abs(start - own[0]) < 12 * point else LEADER | {"relpos": (float(sign < 0), 0.5)},
            )
            text.set_in_layout(False)


def _neighbours(order: list[int], places: list[float], gap: float) -> list[list[int]]:
    """Points from left to right, in groups that are more than a gap apart."""
    groups: list[list[int]] = []
    for index in order:
        if groups and places[index] - places[groups[-1][-1]] <= gap:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _apart(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Rising places near the wanted ones, a gap apart and within bounds."""
    groups: list[list[float]] = []  # of places that touch: each group stands around the mean of what it wants
    for place in wanted:
        groups.append([place])
        while len(groups) > 1 and _first(groups[-1], gap, low, high) - _last(groups[-2], gap, low, high) < gap:
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_first(group, gap, low, high) + gap * number for group in groups for number in range(len(group))]


def _first(group: list[float], gap: float, low: float, high: float) -> float:
    length = gap * (len(group) - 1)
    return max(low, min(high - length, sum(group) / len(group) - length / 2))


def _last(group: list[float], gap: float, low: float, high: float) -> float:
    return _first(group, gap, low, high) + gap * (len(group) - 1)
