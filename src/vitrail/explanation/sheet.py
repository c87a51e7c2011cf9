"""A sheet of an explanation: the picture as the model saw it, and for each class its maps over it, as a PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitrail.errors import escape_text
from vitrail.explanation.patch import Patch, magnify, note_of
from vitrail.images.pixels import Pixels
from vitrail.pages.render import to_shown

TILE = 256
"""Longer side of a picture on the sheet, in pixels."""
GAP, LINE = 16, 20
"""Between pictures, and from one line of text to the next."""
LONGEST = 60
"""Characters of a name that are shown."""
INK, MUTED, PAPER = (28, 37, 48), (88, 101, 117), (255, 255, 255)
CAUTION = (176, 42, 28)
RISING = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Colours from the least value of a map without a sign to its largest."""
SIGNED = ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43))
"""Colours from minus the largest size of a value, over 0, to the largest size."""
COVER = 0.6
"""How much of a picture the map over it hides."""


@dataclass(frozen=True)
class Row:
    """What the sheet shows of one class."""

    caption: str
    """Name and probability."""
    maps: Sequence[tuple[str, NDArray[np.float32]]]
    """Maps (h, w), each with the name of its level, the finest last."""
    note: str = ""
    """What is said below the maps of how faithful the finest is."""
    is_caution: bool = False
    """Whether the note says that the map fails."""


def draw_sheet(
    view: Pixels, title: str, rows: Sequence[Row], *, is_signed: bool, patch: Patch | None = None
) -> bytes:
    """Return a sheet as a PNG.

    Args:
        view: The picture (c, h, w) as the model saw it, before it was normalised.
        title: Line above all: file, model and method.
        rows: The classes.
        is_signed: Whether values below 0 speak against a class.
        patch: A patch that is magnified beside the maps, and framed in the picture; None is none.
    """
    whole = _to_picture(view)
    picture = _scale(whole)
    width, height = picture.size
    columns = 1 + max(len(row.maps) for row in rows) + (patch is not None)
    notes = LINE if any(row.note for row in rows) else 0
    row_height = LINE + height + LINE + notes + GAP
    size = (
        max(GAP + columns * (width + GAP), 2 * TILE),
        GAP + LINE + GAP + len(rows) * row_height,
    )
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    draw.text((GAP, GAP), _shorten(title, 2 * LONGEST), INK, font)
    for number, row in enumerate(rows):
        top = GAP + LINE + GAP + number * row_height
        draw.text((GAP, top), _shorten(row.caption), INK, font)
        sheet.paste(picture if patch is None else _frame(picture, patch), (GAP, top + LINE))
        draw.text((GAP, top + LINE + height + 3), "as the model saw it", MUTED, font)
        for place, (level, values) in enumerate(row.maps, 1):
            left = GAP + place * (width + GAP)
            sheet.paste(lay_over(picture, values, is_signed=is_signed), (left, top + LINE))
            note = f"{level}: {values.min():.3g} to {values.max():.3g}"
            draw.text((left, top + LINE + height + 3), note, MUTED, font)
        if patch is not None:
            left = GAP + (columns - 1) * (width + GAP)
            words = patch.cut(row.maps[-1][1])
            pixels = whole.crop(patch.box_in(*whole.size))
            colours = colour(words, is_signed=is_signed)
            sheet.paste(magnify(pixels, words, colours, min(width, height)), (left, top + LINE))
            note = note_of(patch, dict(row.maps))
            draw.text((left, top + LINE + height + 3), note, MUTED, font)
        tint = CAUTION if row.is_caution else MUTED
        draw.text((GAP, top + LINE + height + LINE + 3), row.note, tint, font)
    return _encode(sheet)


def _frame(picture: Image.Image, patch: Patch) -> Image.Image:
    """Return a picture with a frame around a patch."""
    framed = picture.copy()
    left, upper, right, lower = patch.box_in(*picture.size)
    draw = ImageDraw.Draw(framed)
    draw.rectangle((left - 2, upper - 2, right + 1, lower + 1), outline=INK, width=1)
    draw.rectangle((left - 1, upper - 1, right, lower), outline=PAPER, width=1)
    return framed


def draw_over(
    view: Pixels, values: NDArray[np.float32], largest: int, *, is_signed: bool
) -> Image.Image:
    """Return a view (c, h, w) with a map over it, as a thumbnail.

    Args:
        view: The picture as the model saw it, before it was normalised.
        values: The map (h, w).
        largest: Longer side of the thumbnail in pixels, at most.
        is_signed: Whether values below 0 speak against a class.
    """
    picture = _to_picture(view)
    picture.thumbnail((largest, largest))
    return lay_over(picture, values, is_signed=is_signed)


def lay_over(picture: Image.Image, values: NDArray[np.float32], *, is_signed: bool) -> Image.Image:
    """Return a picture in gray with the colours of a map over it, each value a square of its own."""
    colours = Image.fromarray(colour(values, is_signed=is_signed))
    colours = colours.resize(picture.size, Image.Resampling.NEAREST)
    return Image.blend(picture.convert("L").convert("RGB"), colours, COVER)


def encode_view(view: Pixels) -> bytes:
    """Return a view (c, h, w) as a PNG of its own size."""
    return _encode(_to_picture(view))


def encode_map(values: NDArray[np.float32], *, is_signed: bool) -> bytes:
    """Return a map (h, w) as a PNG of its own size, to be laid over a picture.

    Its places are the opaquer, the more they count: from the least value to the largest, or by the
    size of values that have a sign. A root keeps all but the largest in sight.
    """
    strengths = np.abs(values) if is_signed else values - values.min()
    largest = float(strengths.max())
    shares = strengths / largest if largest > 0 else np.full(values.shape, 0.5)
    opacity = (255 * np.sqrt(shares)).round().astype(np.uint8)
    colours = colour(values, is_signed=is_signed)
    return _encode(Image.fromarray(np.concatenate([colours, opacity[:, :, None]], axis=2)))


def colour(values: NDArray[np.float32], *, is_signed: bool) -> NDArray[np.uint8]:
    """Return the colours (h, w, 3) of a map; an even one has a single colour."""
    if is_signed:
        low, high = -float(np.abs(values).max()), float(np.abs(values).max())
    else:
        low, high = float(values.min()), float(values.max())
    places = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    table = np.array(SIGNED if is_signed else RISING, dtype=np.float64)
    stops = np.linspace(0, 1, len(table))
    channels = [np.interp(places, stops, table[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def to_css(colours: Sequence[tuple[int, int, int]]) -> str:
    """Return the stops of a scale of colours as a page writes them."""
    return ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours)


def _to_picture(view: Pixels) -> Image.Image:
    """Return a view as a picture of its own size."""
    shown = to_shown(view)
    if shown.dtype != torch.uint8:
        shown = shown.to(torch.uint8)
    array = shown.permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array[:, :, 0] if len(shown) == 1 else array).convert("RGB")


def _scale(picture: Image.Image) -> Image.Image:
    """Return a picture in the sheet's size, larger or smaller than it is."""
    scale = TILE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BICUBIC)


def _encode(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _shorten(text: str, most: int = LONGEST) -> str:
    """Return a text in so many characters, in letters that the sheet's font has."""
    shown = escape_text(text)
    if not shown.isascii():
        shown = shown.encode("latin-1", "replace").decode("latin-1")
    return shown if len(shown) <= most else f"{shown[: most - 3]}..."
