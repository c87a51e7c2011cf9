"""HTML pages that need nothing beside themselves: templates filled in, pictures within, lines drawn as SVG."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image

from vitrail.errors import harmless
from vitrail.images.pixels import PixelFormat, Pixels

PAGES = Path(__file__).parent
LARGEST = 160
"""Pixels of the longer side of a picture of an image; larger ones are scaled down."""
LOSSLESS = 64
"""Up to this side, a picture is a PNG, and a JPEG above."""


def render(template: str, **values: Any) -> bytes:
    """Fill in a template of `pages/`; what it needs and is not given is an error, and all text is escaped."""
    return _environment().get_template(template).render(**values).encode()


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_harmless,
    )
    environment.filters |= {
        "shown": _harmless,
        "fixed": fixed,
        "percent": percent,
        "count": lambda number: f"{number:,}",
    }
    return environment


def _harmless(value: Any) -> Any:
    """Return a value without what a browser would obey in a text, such as the marks that turn its direction."""
    if type(value) is not str:  # markup is our own
        return value
    return "\n".join(map(harmless, value.split("\n")))


def fixed(number: float | None, digits: int = 2) -> str:
    """Return a number with so many digits after the point, and a dash where there is none."""
    return "-" if number is None or math.isnan(number) else f"{number:,.{digits}f}"


def percent(share: float | None) -> str:
    """Return a share in percent, and a dash where there is none."""
    return fixed(None if share is None else 100 * share, 1)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Return a file as the address of itself."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(pixels: Pixels) -> str:
    """Return an image as the address of itself, as `pictured` says."""
    shown = pixels[:3] if len(pixels) > 2 else pixels[:1]
    if shown.dtype == torch.uint16:
        levels = shown.float()
        low, high = levels.aminmax()
        shown = ((levels - low) * (255 / max(high - low, 1))).round().to(torch.uint8)
    array = shown.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[:, :, 0] if len(shown) == 1 else array)
    image.thumbnail((LARGEST, LARGEST))
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(buffer, format="PNG")
        return data_uri(buffer.getvalue())
    image.save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def pictured(wanted: PixelFormat) -> str:
    """Say what `picture` shows of images that are not RGB of 8 bits; nothing where there is nothing to say."""
    found = []
    if wanted.channels not in (1, 3):
        found.append(f"the first {'three' if wanted.channels > 2 else 'one'} of {wanted.channels} channels")
    if wanted.bits == 16:
        found.append("16 bits as 8, each picture from its least to its largest value")
    return f"Pictures show {', '.join(found)}." if found else ""


WIDTH, HEIGHT = 320, 180


@dataclass(frozen=True)
class Chart:
    """Lines over a common axis, in the coordinates of an SVG of WIDTH by HEIGHT."""

    title: str
    lines: Sequence[tuple[str, str]]
    """Name and points of each."""
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    dot: tuple[float, float] | None
    """Where one point of the last line is marked."""


def line_chart(
    title: str, lines: Mapping[str, Sequence[tuple[float, float]]], marked_x: float | None = None
) -> Chart | None:
    """Draw named lines of (x, y) points, without the points that are not finite; None where none is left.

    Args:
        title: What y is.
        lines: The last may have a marked point.
        marked_x: Of that point.
    """
    finite = {name: kept for name, points in lines.items() if (kept := [(x, y) for x, y in points if math.isfinite(y)])}
    if not finite:
        return None
    every = [point for points in finite.values() for point in points]
    x_values, y_values = ticks([x for x, _ in every], whole=True), ticks([y for _, y in every])
    low, high = min(x for x, _ in every), max(x for x, _ in every)
    bottom, top = y_values[0], y_values[-1]

    def place_x(x: float) -> float:
        return round(WIDTH * ((x - low) / (high - low) if high > low else 0.5), 1)

    def place_y(y: float) -> float:
        return round(HEIGHT * (1 - (y - bottom) / (top - bottom)), 1)

    last = list(finite.values())[-1]
    return Chart(
        title=title,
        lines=[(name, " ".join(f"{place_x(x)},{place_y(y)}" for x, y in points)) for name, points in finite.items()],
        x_ticks=[(place_x(x), f"{x:g}") for x in x_values if low <= x <= high],
        y_ticks=[(place_y(y), f"{y:g}") for y in y_values],
        dot=next(((place_x(x), place_y(y)) for x, y in last if x == marked_x), None),
    )


def ticks(values: Sequence[float], *, whole: bool = False) -> list[float]:
    """Return three to seven round numbers that enclose some values."""
    low, high = min(values), max(values)
    span = high - low or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= 5)
    if whole:
        step = max(1, round(step))
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]
