"""HTML pages: templates, formatted numbers and embedded images."""

from __future__ import annotations

import base64
import io
import math

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

from vitrail.pages.render import LARGEST, format_fixed, format_percent, picture, render


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        render("training.html")


@pytest.mark.parametrize(
    ("number", "text"), [(None, "-"), (math.nan, "-"), (1234.5, "1,234.50"), (0.0, "0.00"), (99.999, "100.00")]
)
def test_numbers_have_fixed_digits_and_nothing_is_a_dash(number: float | None, text: str) -> None:
    assert format_fixed(number) == text


def test_shares_are_shown_in_percent_and_nothing_is_a_dash() -> None:
    assert [format_percent(share) for share in (0.5, None, math.nan)] == ["50.0", "-", "-"]


def decoded(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.split(",", 1)[1])))


def test_a_small_picture_has_every_pixel_and_a_large_one_is_scaled() -> None:
    pixels = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    with decoded(picture(pixels)) as image:
        assert image.format == "PNG"
        assert np.asarray(image).tolist() == pixels.permute(1, 2, 0).tolist()
    with decoded(picture(torch.zeros(3, 400, 200, dtype=torch.uint8))) as image:
        assert (image.format, image.size) == ("JPEG", (LARGEST // 2, LARGEST))
