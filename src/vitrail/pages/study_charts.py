"""Charts of a study for HTML pages: the course of a search, and parallel coordinates, in the coordinates of an SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.pages.charts import choose_ticks

WIDTH = 640
"""Width of the course of a search in SVG units."""
HEIGHT = 220
"""Height of both charts in SVG units."""
AXIS_GAP = 130
"""Distance of two axes of the parallel coordinates in SVG units."""
MOST_LABELS = 6
"""Labels of an axis, at most."""


@dataclass(frozen=True)
class Trial:
    """A trial as the charts show it."""

    name: str
    value: float | None
    """Its best number; None where it has none."""
    is_whole: bool
    """Whether it was trained to its end."""
    is_best: bool
    values: Mapping[str, Any]
    """Values of its settings by their keys."""


@dataclass(frozen=True)
class Axis:
    """The axis of a setting: where its values stand."""

    key: str
    choices: Sequence[Any] = ()
    """Values to choose from; empty for a range."""
    low: float = 0.0
    high: float = 1.0
    log: bool = False

    def place(self, value: Any) -> float | None:
        """Return the height of a value from 0 to 1; None for one that is not on the axis."""
        if self.choices:
            if value not in self.choices:
                return None
            last = len(self.choices) - 1
            return list(self.choices).index(value) / last if last else 0.5
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if self.log and value <= 0:
            return None
        low, high, at = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        share = (at - low) / (high - low)
        return share if -1e-9 <= share <= 1 + 1e-9 else None

    def labels(self) -> list[tuple[float, str]]:
        """Return the height and the text of each label."""
        if self.choices:
            shown = list(self.choices)
            if len(shown) > MOST_LABELS:
                shown = [shown[0], shown[-1]]
            return [(self.place(one) or 0.0, _text(one)) for one in shown]
        return [(0.0, f"{self.low:.3g}"), (1.0, f"{self.high:.3g}")]


@dataclass(frozen=True)
class History:
    """The course of a search: a dot a trial, and the best so far."""

    dots: Sequence[tuple[float, float, str, str]]
    """Position of each trial, its kind and its title."""
    best: str
    """Points of the line of the best so far, as the text of an SVG polyline."""
    y_ticks: Sequence[tuple[float, str]]
    x_ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Parallel:
    """Parallel coordinates: a line a trial through the axes of its settings and its number."""

    axes: Sequence[tuple[float, str, Sequence[tuple[float, str]]]]
    """Position, title and labels of each axis."""
    lines: Sequence[tuple[str, float, str, str]]
    """Points, opacity, kind and title of each line, the best last."""
    width: float


def draw_history(trials: Sequence[Trial], *, is_lower_better: bool) -> History | None:
    """Draw the number of each trial in their order, and the best whole one so far; None where there is no number."""
    found = [(place, one) for place, one in enumerate(trials) if one.value is not None]
    if not found:
        return None
    ticks = choose_ticks([float(one.value or 0.0) for _, one in found])
    last = max(1, len(trials) - 1)

    def place_x(place: int) -> float:
        return round(WIDTH * place / last, 1)

    def place_y(value: float) -> float:
        return round(HEIGHT * (1 - (value - ticks[0]) / (ticks[-1] - ticks[0])), 1)

    dots, steps = [], []
    best: float | None = None
    for place, one in found:
        value = float(one.value or 0.0)
        kind = "best" if one.is_best else ("whole" if one.is_whole else "early")
        dots.append((place_x(place), place_y(value), kind, f"{one.name}: {value:.4g}"))
        is_better = best is None or (value < best if is_lower_better else value > best)
        if one.is_whole and is_better:
            if best is not None:
                steps.append(f"{place_x(place)},{place_y(best)}")
            best = value
            steps.append(f"{place_x(place)},{place_y(best)}")
    if best is not None:
        steps.append(f"{WIDTH},{place_y(best)}")
    marks = [tick for tick in choose_ticks([0, last], whole=True) if 0 <= tick <= last]
    return History(
        dots=dots,
        best=" ".join(steps),
        y_ticks=[(place_y(tick), f"{tick:g}") for tick in ticks],
        x_ticks=[
            (place_x(int(tick)), trials[int(tick)].name) for tick in marks if tick < len(trials)
        ],
    )


def draw_parallel(
    trials: Sequence[Trial], axes: Sequence[Axis], metric: str, *, is_lower_better: bool
) -> Parallel | None:
    """Draw a line a trial through its settings to its number; None where there is no number."""
    found = [one for one in trials if one.value is not None]
    if not found:
        return None
    values = [float(one.value or 0.0) for one in found]
    low, high = min(values), max(values)
    if low == high:
        low, high = low - 0.5, high + 0.5
    last = Axis(metric, low=low, high=high)
    placed = [*axes, last]
    titles = []
    for number, axis in enumerate(placed):
        labels = [(_height(share), text) for share, text in axis.labels()]
        titles.append((float(AXIS_GAP * number), axis.key, labels))
    # the better ones are drawn later and stronger
    ranked = sorted(found, key=lambda one: float(one.value or 0.0), reverse=is_lower_better)
    lines = []
    for place, one in enumerate(ranked):
        points = []
        for number, axis in enumerate(placed):
            value = one.value if axis is last else one.values.get(axis.key)
            share = axis.place(value)
            if share is not None:
                points.append(f"{AXIS_GAP * number},{_height(share)}")
        opacity = round(0.15 + 0.6 * (place + 1) / len(ranked), 2)
        kind = "best" if one.is_best else ("whole" if one.is_whole else "early")
        title = f"{one.name}: {metric} {one.value:.4g}"
        lines.append((" ".join(points), 1.0 if one.is_best else opacity, kind, title))
    lines.sort(key=lambda line: line[2] == "best")
    return Parallel(axes=titles, lines=lines, width=AXIS_GAP * (len(placed) - 1))


def _height(share: float) -> float:
    return round(HEIGHT * (1 - share), 1)


def _text(value: Any) -> str:
    if value is None:
        return "null"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
