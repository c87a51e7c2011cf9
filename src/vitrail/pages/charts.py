"""Line charts for HTML pages: lines, axis ticks and a marked point, in the coordinates of an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 320
"""Width of the plot in SVG units; `charts.html` draws the axes around it."""
HEIGHT = 180
"""Height of the plot in SVG units."""
STUB = 12
"""Half the length of the line that stands for a single point."""
INTERVALS = 5
"""Most intervals between the round numbers of an axis, before the ends are rounded outwards."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis, in the coordinates of an SVG of WIDTH by HEIGHT."""

    title: str
    lines: Sequence[tuple[str, str]]
    """Each line's name, and its points as the text of an SVG polyline."""
    x_ticks: Sequence[tuple[float, str]]
    """Each tick's position and label on the horizontal axis."""
    y_ticks: Sequence[tuple[float, str]]
    """Each tick's position and label on the vertical axis."""
    dot: Point | None
    """Where one point of the last line is marked."""
    points: Sequence[Point] = ()
    """Where single points lie, which no line joins."""


@dataclass(frozen=True)
class _Frame:
    """The ranges of values that a chart shows, mapped to positions in its SVG."""

    left: float
    right: float
    bottom: float
    top: float

    def place_x(self, x: float) -> float:
        # a single epoch has no width, and stands in the middle
        if self.right <= self.left:
            return WIDTH / 2
        return round(WIDTH * (x - self.left) / (self.right - self.left), 1)

    def place_y(self, y: float) -> float:
        return round(HEIGHT * (1 - (y - self.bottom) / (self.top - self.bottom)), 1)

    def place(self, point: Point) -> Point:
        return self.place_x(point[0]), self.place_y(point[1])


def line_chart(
    title: str,
    lines: Mapping[str, Sequence[Point]],
    marked_x: float | None = None,
    points: Sequence[Point] = (),
) -> Chart | None:
    """Draw named lines of (x, y) points, without those whose y is NaN or Inf; None where no line has a point left.

    Args:
        title: Names what y is.
        lines: The points of each line by its name; the last line is the one that may have a marked
            point.
        marked_x: The x of the point to mark.
        points: Points that no line joins.
    """
    finite: dict[str, list[Point]] = {}
    xs: list[float] = []
    ys: list[float] = []
    for name, of_line in lines.items():
        for x, y in of_line:
            if math.isfinite(y):
                finite.setdefault(name, []).append((x, y))
                xs.append(x)
                ys.append(y)
    if not finite:
        return None

    single = [(x, y) for x, y in points if math.isfinite(y)]
    y_values = choose_ticks([*ys, *(y for _, y in single)])
    frame = _Frame(left=min(xs), right=max(xs), bottom=y_values[0], top=y_values[-1])
    # the vertical axis ends at its outer ticks, the horizontal one at the first and the last epoch
    x_values = [x for x in choose_ticks(xs, whole=True) if frame.left <= x <= frame.right]

    *_, last_line = finite.values()
    marked = [point for point in last_line if point[0] == marked_x]
    return Chart(
        title=title,
        lines=[(name, _format_polyline(of_line, frame)) for name, of_line in finite.items()],
        x_ticks=[(frame.place_x(x), f"{x:g}") for x in x_values],
        y_ticks=[(frame.place_y(y), f"{y:g}") for y in y_values],
        dot=frame.place(marked[0]) if marked else None,
        points=[frame.place(point) for point in single],
    )


def choose_ticks(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Return three to seven round numbers that enclose some values.

    Args:
        values: What the axis shows.
        whole: Let every tick be a whole number, as for epochs.
    """
    low = min(values)
    high = max(values)
    span = high - low or abs(high) or 1.0

    # the smallest step of 1, 2, 5 or 10 times a power of ten that takes few enough intervals
    power = 10.0 ** math.floor(math.log10(span / INTERVALS))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= INTERVALS)
    if whole:
        step = max(1, round(step))

    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    # 12 digits hide what a multiple such as 3 * 0.1 has too much
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _format_polyline(points: Sequence[Point], frame: _Frame) -> str:
    places = [frame.place(point) for point in points]
    if len(places) == 1:  # a line of one point would not be seen
        ((x, y),) = places
        places = [(x - STUB, y), (x + STUB, y)]
    return " ".join(f"{x},{y}" for x, y in places)
