"""HTML pages that need no network: Jinja templates filled in, with images embedded as data URIs."""

from __future__ import annotations

import base64
import io
import math
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import torch
from PIL import Image
from torch import Tensor

from vitrail.errors import escape_text
from vitrail.images.pixels import PixelFormat, Pixels

TEMPLATES = Path(__file__).parent
LARGEST = 160
"""Longer side of an embedded image in pixels, at most; larger images are scaled down."""
LOSSLESS = 64
"""Longer side up to which an embedded image is a PNG; a larger one is a JPEG."""


def render(template: str, **values: Any) -> bytes:
    """Fill in a template of `pages/`.

    All text is escaped, and a value that the template needs and is not given is an error.
    """
    return _environment().get_template(template).render(**values).encode()


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_make_harmless,
    )
    environment.filters["shown"] = _make_harmless
    environment.filters["fixed"] = format_fixed
    environment.filters["percent"] = format_percent
    environment.filters["count"] = lambda number: f"{number:,}"
    return environment


def _make_harmless(value: Any) -> Any:
    """Return a value without what a browser would obey in a text, such as marks that turn its direction."""
    if type(value) is not str:  # markup is our own
        return value
    return "\n".join(map(escape_text, value.split("\n")))


def format_fixed(number: float | None, digits: int = 2) -> str:
    """Return a number with so many digits after the point, and a dash for None or NaN."""
    if number is None or math.isnan(number):
        return "-"
    return f"{number:,.{digits}f}"


def format_percent(share: float | None) -> str:
    """Return a share of 1 in percent, with one digit after the point, and a dash for None or NaN."""
    if share is None:
        return "-"
    return format_fixed(100 * share, 1)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """Encode bytes as a base64 `data:` URI."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(pixels: Pixels, largest: int = LARGEST) -> str:
    """Return a thumbnail of an image as a `data:` URI, in the channels and levels that `pictured` tells of.

    Args:
        pixels: The image.
        largest: Longer side in pixels, at most.
    """
    shown = to_shown(pixels)
    array = shown.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array[:, :, 0] if len(shown) == 1 else array)
    image.thumbnail((largest, largest))
    return to_data_uri(image)


def to_data_uri(image: Image.Image) -> str:
    """Return a picture as a `data:` URI: a small one as it is, and a larger one as a JPEG."""
    buffer = io.BytesIO()
    if max(image.size) <= LOSSLESS:
        image.save(buffer, format="PNG")
        return data_uri(buffer.getvalue())
    image.save(buffer, format="JPEG", quality=85)
    return data_uri(buffer.getvalue(), "image/jpeg")


def to_shown(pixels: Pixels) -> Tensor:
    """Return the channels and levels of an image that a picture shows: 8 bits of one channel, or of three."""
    shown = pixels[:3] if len(pixels) > 2 else pixels[:1]
    return _stretch_levels(shown) if shown.dtype == torch.uint16 else shown


def pictured(pixels: PixelFormat) -> str:
    """Say how `picture` shows images that are not 8-bit gray or RGB; an empty text where it shows them as they are."""
    remarks = []
    if pixels.channels not in (1, 3):
        number = "three" if pixels.channels > 2 else "one"
        remarks.append(f"the first {number} of {pixels.channels} channels")
    if pixels.bits == 16:
        remarks.append("16 bits as 8, each picture from its least to its largest value")
    if not remarks:
        return ""
    return f"Pictures show {', '.join(remarks)}."


def _stretch_levels(pixels: Tensor) -> Tensor:
    """Return pixels of 16 bits in 8, from the least value of the image to its largest.

    Sensors of 10 or 12 bits fill a small part of the 16, and would be all black without this.
    """
    levels = pixels.float()
    low, high = levels.aminmax()
    return ((levels - low) * (255 / max(high - low, 1))).round().to(torch.uint8)
