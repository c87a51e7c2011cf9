"""A patch of a TNT or PyramidTNT magnified: its pixels, and what each word has of its value over them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vitrail.errors import ConfigError, write_option
from vitrail.explanation.explainer import Explainer
from vitrail.models.family import VisionModel
from vitrail.models.pyramid_tnt import PyramidTNT
from vitrail.models.tnt import TNT

WITH_WORDS = {"TNT": ("rollout", "gradient-attention"), "PyramidTNT": ("gradient-attention",)}
"""Methods that have a map of words, by family."""
COVER = 0.45
"""How much of the pixels the colours of the words hide."""
DARK, BRIGHT = (20, 24, 30), (255, 255, 255)


@dataclass(frozen=True)
class Patch:
    """Where a patch lies among those of a model, and of how many it is one."""

    row: int
    column: int
    rows: int
    columns: int

    def box_in(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Return left, upper, right and lower of the patch in a picture of the whole image."""
        return (
            round(self.column * width / self.columns),
            round(self.row * height / self.rows),
            round((self.column + 1) * width / self.columns),
            round((self.row + 1) * height / self.rows),
        )

    def cut(self, words: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the words of the patch (p, p), from the map of all words (h, w)."""
        left, upper, right, lower = self.box_in(words.shape[1], words.shape[0])
        return words[upper:lower, left:right]


def find_patch(explainer: Explainer, place: tuple[int, int]) -> Patch:
    """Return the patch in a row and a column, both counted from 0.

    Raises:
        ConfigError: The model has no words, or the method no map of them, or there is no such patch.
    """
    row, column = place
    where = write_option("patch", f"{row},{column}")
    model = explainer.answer
    if not isinstance(model, VisionModel):
        raise ConfigError(
            f"{where}: {explainer.path} is an exported file, which has answers and no words; give the "
            "weight file"
        )
    if not isinstance(model, TNT | PyramidTNT):
        raise ConfigError(
            f"{where}: {explainer.path} has no map of the words in its patches; give a TNT or "
            "PyramidTNT, or leave it out"
        )
    family = "PyramidTNT" if isinstance(model, PyramidTNT) else "TNT"
    if explainer.method not in WITH_WORDS[family]:
        raise ConfigError(
            f"{where}: {explainer.method} has no map of the words of a {family}; take "
            f"{' or '.join(WITH_WORDS[family])}"
        )
    rows, columns = model.config.grid
    if not (0 <= row < rows and 0 <= column < columns):
        raise ConfigError(
            f"{where}: {explainer.path} has {rows} rows of {columns} patches; give one from 0,0 to "
            f"{rows - 1},{columns - 1}"
        )
    return Patch(row, column, rows, columns)


def magnify(
    picture: Image.Image, words: NDArray[np.float32], colours: NDArray[np.uint8], side: int
) -> Image.Image:
    """Return the pixels of a patch, so large, with the colours of its words and their share of it in percent.

    Args:
        picture: The pixels of the patch.
        words: Values of its words (p, p).
        colours: Their colours (p, p, 3).
        side: Longer side of what is returned.
    """
    scale = side / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    large = picture.resize(size, Image.Resampling.NEAREST)
    cover = Image.fromarray(colours).resize(size, Image.Resampling.NEAREST)
    large = Image.blend(large, cover, COVER)
    draw = ImageDraw.Draw(large)
    font = ImageFont.load_default(13)
    total = float(words.sum())
    shares = words / total if total else np.zeros_like(words)
    rows, columns = words.shape
    for row in range(rows):
        for column in range(columns):
            middle = ((column + 0.5) * size[0] / columns, (row + 0.5) * size[1] / rows)
            text = f"{100 * shares[row, column]:.0f} %"
            draw.text(middle, text, BRIGHT, font, anchor="mm", stroke_width=2, stroke_fill=DARK)
    return large


def note_of(patch: Patch, maps: Mapping[str, NDArray[np.float32]]) -> str:
    """Return what stands below a magnified patch: where it lies, and its value."""
    value = maps["sentences"][patch.row, patch.column]
    return f"patch {patch.row},{patch.column}: {value:.3g}"
