"""Pages that need nothing beside themselves."""

from __future__ import annotations

import base64
import io
import math

import jinja2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.pages.render import HEIGHT, LARGEST, WIDTH, fixed, line_chart, percent, picture, render, ticks


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("training.html")


@pytest.mark.parametrize(
    ("number", "text"), [(None, "-"), (math.nan, "-"), (1234.5, "1,234.50"), (0.0, "0.00"), (99.999, "100.00")]
)
def test_numbers_have_fixed_digits_and_nothing_is_a_dash(number: float | None, text: str) -> None:
    assert fixed(number) == text


def test_shares_are_shown_in_percent_and_nothing_is_a_dash() -> None:
    assert [percent(share) for share in (0.5, None, math.nan)] == ["50.0", "-", "-"]


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1])))


def test_a_small_picture_has_every_pixel_and_a_large_one_is_scaled() -> None:
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    with decoded(picture(pixels)) as image:
        assert image.format == "PNG"
        assert np.asarray(image).tolist() == pixels.permute(1, 2, 0).tolist()
    with decoded(picture(torch.zeros(3, 400, 200, dtype=torch.uint8))) as image:
        assert (image.format, image.size) == ("JPEG", (LARGEST // 2, LARGEST))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.booleans())
def test_ticks_enclose_the_values_and_are_few(values: list[float], whole: bool) -> None:
    found = ticks(values, whole=whole)
    assert 2 <= len(found) <= 8
    slack = 1e-9 * max(1, *map(abs, values))
    assert found[0] <= min(values) + slack
    assert found[-1] >= max(values) - slack
    assert not whole or all(tick == round(tick) for tick in found)


def test_a_line_chart_places_its_points_between_the_ticks() -> None:
    chart = line_chart("loss", {"training": [(1, 0.0), (2, math.nan), (3, 10.0)], "validation": [(2, 5.0)]}, 2)
    assert chart is not None
    assert dict(chart.lines) == {
        "training": f"0.0,{HEIGHT:.1f} {WIDTH:.1f},0.0",
        "validation": f"{WIDTH / 2:.1f},{HEIGHT / 2:.1f}",
    }
    assert chart.dot == (WIDTH / 2, HEIGHT / 2)
    assert [text for _, text in chart.x_ticks] == ["1", "2", "3"]
    assert [text for _, text in chart.y_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_a_chart_of_one_epoch_or_of_none() -> None:
    chart = line_chart("loss", {"training": [(1, 0.5)]})
    assert chart is not None
    assert chart.lines[0][1].startswith(f"{WIDTH / 2},")
    assert line_chart("loss", {"training": [(1, math.nan)]}) is None
