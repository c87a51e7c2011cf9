"""The estimate of what decoding costs, beside what it takes in truth."""

import io
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from vitrail.server.cost import FORMATS, estimate_cost

SIDE = 700


def photo(form: str, **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE // 4, SIDE // 4, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((SIDE, SIDE)).convert(options.pop("mode", "RGB")).save(buffer, form, **options)
    return buffer.getvalue()


def levels(most: int, kind: int = 6) -> bytes:
    pixels = np.random.default_rng(0).integers(0, most + 1, SIDE * SIDE * (3 if kind in (3, 6) else 1))
    if kind in (2, 3):
        body = " ".join(map(str, pixels)).encode()
    else:
        body = pixels.astype(">u2" if most > 255 else np.uint8).tobytes()
    return b"P%d # a remark\n%d %d\n%d\n" % (kind, SIDE, SIDE, most) + body


FILES = {
    "jpeg": lambda: photo("JPEG", quality=90),
    "jpeg progressive": lambda: photo("JPEG", quality=90, progressive=True),
    "png": lambda: photo("PNG"),
    "png gray": lambda: photo("PNG", mode="L"),
    "webp": lambda: photo("WEBP"),
    "webp lossless": lambda: photo("WEBP", lossless=True),
    "webp alpha": lambda: photo("WEBP", mode="RGBA"),
    "gif": lambda: photo("GIF", mode="P"),
    "bmp": lambda: photo("BMP"),
    "tiff": lambda: photo("TIFF"),
    "tiff lzw": lambda: photo("TIFF", compression="tiff_lzw"),
    "tiff big": lambda: photo("TIFF", big_tiff=True),
    "ppm": lambda: levels(255),
    "ppm 254": lambda: levels(254),
    "ppm 16": lambda: levels(65535),
    "pgm 65535": lambda: levels(65535, 5),
    "ppm text": lambda: levels(255, 3),
    "pgm text": lambda: levels(99, 2),
}


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_that_an_estimate_is_of_are_the_files(name: str) -> None:
    assert estimate_cost(FILES[name]()).pixels == SIDE * SIDE


@pytest.mark.parametrize("name", ["ppm 254", "ppm text", "pgm text"])
def test_what_pillow_decodes_in_python_costs_many_times_as_much(name: str) -> None:
    assert estimate_cost(FILES[name]()).seconds > 10 * max(
        estimate_cost(FILES[usual]()).seconds for usual in ("jpeg", "ppm")
    )


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_the_size_of_an_avif_is_found() -> None:
    assert estimate_cost(photo("AVIF")).pixels == SIDE * SIDE


def test_what_takes_long_costs_much() -> None:
    progressive = photo("JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    few, many = estimate_cost(progressive), estimate_cost(progressive[:-2] + last * 80 + progressive[-2:])
    assert many.seconds > 5 * few.seconds
    assert "90 scans" in many.reason or "scans" in many.reason
    assert estimate_cost(b"P6 #" + b"a" * 10**6 + b"\n1 1 255\nabc").seconds > 0.1
    jpeg = photo("JPEG")
    assert estimate_cost(jpeg[:2] + b"\xff\xfe\x00\x02" * 10**5 + jpeg[2:]).seconds > 0.1
    png = photo("PNG")
    assert estimate_cost(png[:33] + b"\0\0\0\0aaAa\0\0\0\0" * 10**5 + png[33:]).seconds > 0.1
    assert (
        estimate_cost(b"BM" + bytes(8) + b"\0\0\0\0(\0\0\0" + b"\x40\x1f\0\0" * 2 + b"\1\0\x04\0\2\0\0\0").seconds > 1
    )


def test_no_header_takes_long_to_look_at() -> None:
    gif = photo("GIF", mode="P")
    colours = 13 + 3 * 2 ** (1 + (gif[10] & 7))
    many = gif[:colours] + b"!\xfe" + b"\x01a" * 10**7 + b"\0" + gif[colours:]
    began = time.process_time()
    assert estimate_cost(many).pixels == SIDE * SIDE
    assert time.process_time() - began < 0.15  # all ten million pieces took 0.3 s


MAGICS = [magic for _, mark, _ in FORMATS for magic in (mark if isinstance(mark, tuple) else (mark,))]


@given(st.sampled_from(MAGICS), st.binary(max_size=200))
def test_anything_has_an_estimate(magic: bytes, rest: bytes) -> None:
    for data in (magic + rest, b"\0\0\0\x20" + magic + rest, rest, magic + rest * 40):
        cost = estimate_cost(data)
        assert cost.seconds >= 0
        assert cost.pixels >= 0
        assert cost.reason


@pytest.mark.parametrize("name", ["jpeg", "png", "webp", "tiff", "ppm"])
def test_a_file_that_is_cut_off_has_an_estimate(name: str) -> None:
    data = FILES[name]()
    for size in range(0, 600, 7):
        assert estimate_cost(data[:size]).seconds >= 0
