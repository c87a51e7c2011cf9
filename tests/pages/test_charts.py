"""Line charts: ticks that enclose the values, and points placed between them."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from vitrail.pages.charts import HEIGHT, STUB, WIDTH, choose_ticks, line_chart


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.booleans())
def test_ticks_enclose_the_values_and_are_few(values: list[float], whole: bool) -> None:
    ticks = choose_ticks(values, whole=whole)
    assert 2 <= len(ticks) <= 8
    slack = 1e-9 * max(1, *map(abs, values))
    assert ticks[0] <= min(values) + slack
    assert ticks[-1] >= max(values) - slack
    assert not whole or all(tick == round(tick) for tick in ticks)


def test_a_line_chart_places_its_points_between_the_ticks() -> None:
    chart = line_chart("loss", {"training": [(1, 0.0), (2, math.nan), (3, 10.0)], "validation": [(2, 5.0)]}, 2)
    assert chart is not None
    assert dict(chart.lines) == {
        "training": f"0.0,{HEIGHT:.1f} {WIDTH:.1f},0.0",
        "validation": f"{WIDTH / 2 - STUB:.1f},{HEIGHT / 2:.1f} {WIDTH / 2 + STUB:.1f},{HEIGHT / 2:.1f}",
    }
    assert chart.dot == (WIDTH / 2, HEIGHT / 2)
    assert [text for _, text in chart.x_ticks] == ["1", "2", "3"]
    assert [text for _, text in chart.y_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_single_points_are_placed_in_the_frame_of_the_lines() -> None:
    chart = line_chart("reach", {"mean": [(1, 2.0), (3, 4.0)]}, points=[(1, 0.0), (3, 10.0), (2, math.nan)])
    assert chart is not None
    assert chart.points == [(0.0, HEIGHT), (WIDTH, 0.0)]
    assert len(chart.lines) == 1
    assert line_chart("loss", {"mean": [(1, 2.0), (3, 4.0)]}).points == []  # pyright: ignore[reportOptionalMemberAccess]


def test_a_chart_of_one_epoch_or_of_none() -> None:
    chart = line_chart("loss", {"training": [(1, 0.5)]})
    assert chart is not None
    assert [place.split(",")[0] for place in chart.lines[0][1].split()] == ["148.0", "172.0"], "a line that is seen"
    assert line_chart("loss", {"training": [(1, math.nan)]}) is None
