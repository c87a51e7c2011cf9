"""Operations on pictures of 8 bits as Pillow computes them: calls of the C++ beside this file, compiled on the machine.

They give Pillow's pixels to the last bit, and `filter_rows` those of the same sums in PyTorch, so that
nothing depends on whether a compiler is there.

Shapes
    h rows, w columns
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from vitrail.kernels.compiled import NotCompiled, load, prepare

NAME = "pictures"
"""Name of the C++ file."""
Picture = NDArray[np.uint8]
"""Colours of 8 bits, (h, w, 3), whose pixels lie one after the other."""


def prepare_pictures() -> str | None:
    """Compile the operations for this machine's CPU, unless that was done before; return why not, where it failed."""
    return prepare(NAME, check_library)


class Compiled:
    """The operations of a compiled library."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.vitrail_sum_grays.restype = ctypes.c_int64

    def rotate(
        self, picture: Picture, degrees: float, fill: tuple[int, int, int], *, is_cubic: bool
    ) -> Picture:
        """Rotate a picture around its middle, counter-clockwise, by an angle that is not right."""
        height, width = picture.shape[:2]
        matrix = np.array(find_rotation(degrees, height, width))
        colour = np.array(fill, dtype=np.uint8)
        picture, out = _with_room(picture)
        sizes = ctypes.c_int64(height), ctypes.c_int64(width)
        places = _pointer(matrix), _pointer(colour)
        self._library.vitrail_rotate(
            _pointer(picture), _pointer(out), *sizes, *places, ctypes.c_int32(is_cubic)
        )
        return out

    def count_levels(self, picture: Picture) -> NDArray[np.int64]:
        """Count how often each level is there, (3, 256)."""
        picture, counts = np.ascontiguousarray(picture), np.empty((3, 256), dtype=np.int64)
        self._library.vitrail_count_levels(_pointer(picture), _pixels(picture), _pointer(counts))
        return counts

    def look_up(self, picture: Picture, tables: NDArray[np.uint8]) -> Picture:
        """Replace levels by those of a table for each channel, (3, 256)."""
        picture, out = _with_room(picture)
        self._library.vitrail_look_up(
            _pointer(picture), _pointer(out), _pixels(picture), _pointer(tables)
        )
        return out

    def sum_grays(self, picture: Picture) -> int:
        """Add up the gray levels of all pixels."""
        picture = np.ascontiguousarray(picture)
        return self._library.vitrail_sum_grays(_pointer(picture), _pixels(picture))

    def blend(self, picture: Picture, plain: float, factor: float) -> Picture:
        """Move every level away from a plain one, or towards it."""
        picture, out = _with_room(picture)
        numbers = ctypes.c_int64(picture.size), ctypes.c_float(plain), ctypes.c_float(factor)
        self._library.vitrail_blend(_pointer(picture), _pointer(out), *numbers)
        return out

    def saturate(self, picture: Picture, factor: float) -> Picture:
        """Move every pixel away from its gray, or towards it."""
        picture, out = _with_room(picture)
        self._library.vitrail_saturate(
            _pointer(picture), _pointer(out), _pixels(picture), ctypes.c_float(factor)
        )
        return out

    def filter_rows(
        self,
        levels: NDArray[np.uint8],
        starts: NDArray[np.int64],
        step: int,
        weights: NDArray[np.float32],
        length: int,
        rounding: float,
    ) -> NDArray[np.uint8]:
        """Return rows of so many sums of weighted levels, (n, length), cut off to whole levels.

        Args:
            levels: Any array whose levels lie one after the other.
            starts: (n,) places of the first level that the first sum of each row takes.
            step: How many levels further the next one lies that a sum takes.
            weights: (n, 2) or (n, 4).
            length: Number of sums in a row.
            rounding: What is added to each sum before it is cut off.
        """
        out = np.empty((len(starts), length), dtype=np.uint8)
        sizes = ctypes.c_int64(len(starts)), ctypes.c_int64(length)
        self._library.vitrail_filter_rows(
            _pointer(levels),
            _pointer(out),
            *sizes,
            _pointer(starts),
            ctypes.c_int64(step),
            _pointer(weights),
            ctypes.c_int64(weights.shape[1]),
            ctypes.c_float(rounding),
        )
        return out

    def sharpen(self, picture: Picture, factor: float) -> Picture:
        """Move every pixel away from the mean of its neighbourhood, or towards it."""
        picture, out = _with_room(picture)
        sizes = (ctypes.c_int64(side) for side in picture.shape[:2])
        self._library.vitrail_sharpen(
            _pointer(picture), _pointer(out), *sizes, ctypes.c_float(factor)
        )
        return out


def find_compiled() -> Compiled | None:
    """Return the operations where they were compiled before; None where they were not."""
    library = load(NAME)
    return None if library is None else Compiled(library)


def _with_room(picture: Picture) -> tuple[Picture, Picture]:
    """Return a picture whose pixels lie one after the other, and room for another."""
    picture = np.ascontiguousarray(picture)
    return picture, np.empty_like(picture)


def _pixels(picture: Picture) -> ctypes.c_int64:
    return ctypes.c_int64(picture.size // 3)


def _pointer(array: NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def find_rotation(degrees: float, height: int, width: int) -> tuple[float, ...]:
    """Return where a pixel (x, y) comes from, a x + b y + c and d x + e y + f, rounded as Pillow rounds it."""
    angle = -math.radians(degrees % 360)
    cosine, sine = round(math.cos(angle), 15), round(math.sin(angle), 15)
    x, y = width / 2, height / 2
    c = cosine * -x + sine * -y + 0.0 + x
    f = -sine * -x + cosine * -y + 0.0 + y
    return cosine, sine, c, -sine, cosine, f


def check_library(library: ctypes.CDLL) -> None:
    """Compare a library that was just compiled with Pillow.

    Raises:
        NotCompiled: Its pixels are others.
    """
    rng, compiled = np.random.default_rng(0), Compiled(library)
    for height, width in ((61, 47), (2, 9), (1, 1)):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image, fill, gray = (
            Image.fromarray(picture),
            (1, 2, 3),
            Image.fromarray(picture).convert("L"),
        )
        tables = rng.integers(0, 256, (3, 256), dtype=np.uint8)
        pairs = [
            (compiled.count_levels(picture).ravel(), image.histogram()),
            (compiled.look_up(picture, tables), image.point(tables.ravel().tolist())),
            (compiled.sum_grays(picture), np.asarray(gray, dtype=np.int64).sum()),
        ]
        for factor in (0.1, 1.7):
            pairs += [
                (
                    compiled.blend(picture, 0, factor),
                    ImageEnhance.Brightness(image).enhance(factor),
                ),
                (compiled.saturate(picture, factor), ImageEnhance.Color(image).enhance(factor)),
                (compiled.sharpen(picture, factor), ImageEnhance.Sharpness(image).enhance(factor)),
            ]
        for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            is_cubic = resample == Image.Resampling.BICUBIC
            wanted = image.rotate(17.3, resample=resample, fillcolor=fill)
            pairs.append((compiled.rotate(picture, 17.3, fill, is_cubic=is_cubic), wanted))
        weights = rng.uniform(-0.5, 1, (2, 2)).astype(np.float32)
        levels = rng.integers(0, 256, (3, 99), dtype=np.uint8)
        sums = levels[:2] * weights[:, :1] + levels[1:] * weights[:, 1:] + np.float32(0.1)
        filtered = compiled.filter_rows(levels, np.array([0, 99]), 99, weights, 99, 0.1)
        pairs.append((filtered, sums.clip(0, 255).astype(np.uint8)))
        if not all(np.array_equal(found, np.asarray(wanted)) for found, wanted in pairs):
            raise NotCompiled("what the compiler made of it computes wrong pixels")
