"""Confusion matrix as a picture, for 2 classes as for 1,000."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import grey_dilation

from vitrail.errors import escape_text

SIDE = 1000
"""Most pixels of the matrix, but for many classes, which have two pixels each."""
SMALLEST_CELL, LARGEST_CELL = 2, 96
"""Sides of a cell, in pixels."""
COUNTS_FROM = 28
"""Side of a cell from which its count stands in it."""
SPECK = 5
"""Smallest side that a wrong cell is drawn with, as it would be lost among a million others."""
NAMES_EVERY = 15
"""Pixels from one name to the next, at least."""
NAME = 28
"""Characters of a name that are shown."""
RIGHT, WRONG = (31, 99, 168), (196, 60, 30)
INK, GRID, PAPER = (31, 41, 51), (203, 210, 217), (255, 255, 255)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def shades(confusion: Int[np.ndarray, "k k"], least: float = 0.12) -> NDArray[np.float64]:
    """Return how dark each cell is, from 0 to 1: by its share of the row, and at least `least` where there is an image.

    The root lets a few images among many be seen.
    """
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    return np.where(confusion > 0, least + (1 - least) * np.sqrt(share), 0.0)


def draw_confusion(confusion: Int[np.ndarray, "k k"], classes: Sequence[str]) -> bytes:
    """Draw the matrix as a PNG: a row a true class, a column an answer; blue is right, red is wrong."""
    k = len(confusion)
    cell = min(max(SIDE // k, SMALLEST_CELL), LARGEST_CELL)
    font, small = ImageFont.load_default(13), ImageFont.load_default(12)
    step = -(-NAMES_EVERY // cell)
    shown = [(number, _short(escape_text(classes[number]))) for number in range(0, k, step)]
    side = k * cell

    # The canvas: room for the names left of the matrix and above it.
    margin = max(80, 24 + int(max(font.getlength(name) for _, name in shown)))
    left, top = margin + 22, margin + 40
    image = Image.new("RGB", (max(left + side + 16, 420), top + side + 34), PAPER)
    draw = ImageDraw.Draw(image)
    image.paste(_cells(confusion, cell), (left, top))
    _grid(draw, k, cell, left, top)
    for number, name in shown:
        middle = number * cell + cell // 2
        draw.text((left - 8, top + middle), name, INK, font, anchor="rm")
        _write_upwards(image, name, font, left + middle, top - 8)
    if cell >= COUNTS_FROM:
        _write_counts(draw, confusion, cell, (left, top), small)

    # The legend, and the file.
    draw.text((left, 8), "answer", INK, font)
    draw.text((8, top), "true", INK, font)
    every = "" if step == 1 else f"; one class in {step} is named"
    draw.text(
        (8, top + side + 12),
        f"blue right, red wrong; stronger is a larger share of the row{every}",
        INK,
        small,
    )
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _cells(confusion: Int[np.ndarray, "k k"], cell: int) -> Image.Image:
    # small cells need more shade to be seen
    least = min(max(3 / cell, 0.12), 0.45)
    shade = shades(confusion, least).astype(np.float32)
    on_diagonal = np.eye(len(confusion), dtype=bool)
    right = _magnified(np.where(on_diagonal, shade, 0), cell)
    wrong = _magnified(np.where(on_diagonal, 0, shade), cell)
    if cell < SPECK:
        wrong = grey_dilation(wrong, (SPECK, SPECK, 1))
    paper, blue, red = (np.array(colour, dtype=np.float32) for colour in (PAPER, RIGHT, WRONG))
    pixels = paper + np.where(right > 0, (blue - paper) * right, (red - paper) * wrong)
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def _magnified(cells: NDArray[np.float32], cell: int) -> NDArray[np.float32]:
    """Return (k * cell, k * cell, 1) pixels for (k, k) cells."""
    return cells.repeat(cell, axis=0).repeat(cell, axis=1)[:, :, None]


def _write_counts(
    draw: ImageDraw.ImageDraw,
    confusion: Int[np.ndarray, "k k"],
    cell: int,
    corner: tuple[int, int],
    font: Font,
) -> None:
    """Write the number of images into each cell that has any and has room for it."""
    left, top = corner
    for row, column in np.argwhere(confusion > 0):
        count = f"{confusion[row, column]:,}"
        if font.getlength(count) < cell - 2:
            is_dark = shades(confusion[row : row + 1])[0, column] > 0.6
            colour = PAPER if is_dark else INK
            place = (left + int(column) * cell + cell // 2, top + int(row) * cell + cell // 2)
            draw.text(place, count, colour, font, anchor="mm")


def _grid(draw: ImageDraw.ImageDraw, k: int, cell: int, left: int, top: int) -> None:
    # finer cells only get the frame
    every = 1 if cell >= COUNTS_FROM else k
    for number in range(0, k + 1, every):
        at = number * cell
        draw.line((left, top + at, left + k * cell, top + at), GRID)
        draw.line((left + at, top, left + at, top + k * cell), GRID)


def _write_upwards(image: Image.Image, text: str, font: Font, x: int, y: int) -> None:
    """Write a text from bottom to top, ending at y below it."""
    box = Image.new("L", (max(1, int(font.getlength(text)) + 2), 18), 0)
    ImageDraw.Draw(box).text((0, 9), text, 255, font, anchor="lm")
    turned = box.rotate(90, expand=True)
    image.paste(INK, (x - 9, y - turned.height), turned)


def _short(name: str) -> str:
    return name if len(name) <= NAME else name[: NAME - 1] + "..."
