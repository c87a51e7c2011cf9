"""Rotation of a picture as Pillow rotates it, by a call of the C++ beside this file, which is compiled on the machine.

It gives Pillow's pixels to the last bit, so that nothing depends on whether a compiler is there.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitrail.kernels.compiled import NotCompiled, compile_kernel, load

NAME = "rotate"
"""Name of the C++ file."""
Picture = NDArray[np.uint8]
"""Colours of 8 bits, (h, w, 3), whose pixels lie one after the other."""


def prepare_rotate() -> str | None:
    """Compile the rotation for this machine's CPU, unless that was done before; return why it cannot be used, if so."""
    try:
        compile_kernel(NAME, check_library)
    except NotCompiled as error:
        return str(error)
    return None


def rotate(
    picture: Picture, degrees: float, fill: tuple[int, int, int], resample: Image.Resampling
) -> Picture:
    """Rotate a picture around its middle, counter-clockwise; by Pillow where nothing was compiled.

    Args:
        picture: (h, w, 3).
        degrees: The angle.
        fill: Colour of the pixels that come from outside the picture.
        resample: BICUBIC or BILINEAR.
    """
    library = load(NAME)
    # right angles move pixels to pixels
    if library is None or degrees % 90 == 0:
        image = Image.fromarray(picture).rotate(degrees, resample=resample, fillcolor=fill)
        return np.array(image)
    return run_rotate(library, picture, degrees, fill, resample == Image.Resampling.BICUBIC)


def run_rotate(
    library: ctypes.CDLL,
    picture: Picture,
    degrees: float,
    fill: tuple[int, int, int],
    is_cubic: bool,
) -> Picture:
    """Rotate by a compiled library."""
    height, width = picture.shape[:2]
    picture = np.ascontiguousarray(picture)
    out = np.empty_like(picture)
    matrix = np.array(_find_matrix(degrees, height, width))
    colour = np.array(fill, dtype=np.uint8)
    library.vitrail_rotate(
        ctypes.c_void_p(picture.ctypes.data),
        ctypes.c_void_p(out.ctypes.data),
        ctypes.c_int64(height),
        ctypes.c_int64(width),
        ctypes.c_void_p(matrix.ctypes.data),
        ctypes.c_void_p(colour.ctypes.data),
        ctypes.c_int32(is_cubic),
    )
    return out


def _find_matrix(degrees: float, height: int, width: int) -> tuple[float, ...]:
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
    rng, fill = np.random.default_rng(0), (1, 2, 3)
    for degrees, (height, width) in ((17.3, (61, 47)), (-29.9, (2, 9)), (5.0, (1, 1))):
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(picture)
        for resample in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
            is_cubic = resample == Image.Resampling.BICUBIC
            found = run_rotate(library, picture, degrees, fill, is_cubic)
            wanted = image.rotate(degrees, resample=resample, fillcolor=fill)
            if not np.array_equal(found, np.asarray(wanted)):
                raise NotCompiled("what the compiler made of it computes wrong pixels")
