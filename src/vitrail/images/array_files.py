"""Files of numbers rather than pictures, `.npy` of any number of channels, read without trusting them."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vitrail.images.pixels import AS_INTEGERS, UnreadableImage, check_size

NPY = npy.MAGIC_PREFIX
NPY_VERSIONS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
"""A third is for types with names, which are no pixels."""


def read_npy(data: bytes, channels: int) -> NDArray[np.uint8 | np.uint16]:
    """Read an array (h, w) or (h, w, channels) of uint8 or uint16, as (h, w, channels).

    Args:
        data: The file.
        channels: That are wanted.

    Raises:
        UnreadableImage: It is of another shape or type, or not whole.
    """
    shape, by_columns, dtype, begin = npy_header(data)
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise UnreadableImage(f"is {dtype.name}; {AS_INTEGERS}")
    if len(shape) not in (2, 3) or min(shape) < 1 or (shape[0] == channels != shape[-1] and len(shape) == 3):
        raise UnreadableImage(f"is of shape {shape}; save it as (height, width) or (height, width, channels)")
    check_size(*shape)
    there, belong = len(data) - begin, math.prod(shape) * dtype.itemsize
    if there != belong:
        raise UnreadableImage(f"has {there:,} bytes of pixels where {belong:,} belong")
    array = np.frombuffer(data, dtype, offset=begin).reshape(shape, order="F" if by_columns else "C")
    array = np.array(array, dtype.newbyteorder("="), order="C")
    return array if array.ndim == 3 else array[:, :, None]


def npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Return shape, whether columns come first, type, and where the numbers begin.

    Raises:
        UnreadableImage: It is damaged.
    """
    file = io.BytesIO(data)
    try:  # NumPy refuses headers above 10,000 characters
        shape, by_columns, dtype = NPY_VERSIONS[npy.read_magic(file)](file)
    except Exception as error:  # as many kinds as text can be wrong in
        raise UnreadableImage("its .npy header is damaged, or of a kind that holds no image") from error
    return shape, by_columns, dtype, file.tell()
