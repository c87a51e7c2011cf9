"""Read images from NumPy's `.npy` files, of any number of channels, without trusting the file."""

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
"""Readers of the header by version. The third version is for types with names, which are no
pixels."""


def read_npy(data: bytes, channels: int) -> NDArray[np.uint8 | np.uint16]:
    """Read an array (h, w) or (h, w, channels) of uint8 or uint16, as (h, w, channels).

    Args:
        data: The file.
        channels: Number of channels that is asked for.

    Raises:
        UnreadableImage: It is of another shape or type, or not whole.
    """
    shape, by_columns, dtype, begin = read_npy_header(data)
    if dtype.newbyteorder("=") not in (np.uint8, np.uint16):
        raise UnreadableImage(f"is {dtype.name}; {AS_INTEGERS}")
    channels_come_first = len(shape) == 3 and shape[0] == channels != shape[-1]
    if len(shape) not in (2, 3) or min(shape) < 1 or channels_come_first:
        raise UnreadableImage(
            f"is of shape {shape}; save it as (height, width) or (height, width, channels)"
        )
    check_size(*shape)
    available = len(data) - begin
    needed = math.prod(shape) * dtype.itemsize
    if available != needed:
        raise UnreadableImage(f"has {available:,} bytes of pixels where {needed:,} belong")
    order = "F" if by_columns else "C"
    stored = np.frombuffer(data, dtype, offset=begin).reshape(shape, order=order)
    array = np.array(stored, dtype.newbyteorder("="), order="C")
    if array.ndim == 2:
        array = array[:, :, None]
    return array


def read_npy_header(data: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """Read a header: the shape, whether the order is Fortran's, the type, and where the values begin.

    Raises:
        UnreadableImage: It is damaged.
    """
    file = io.BytesIO(data)
    try:  # NumPy refuses headers above 10,000 characters
        shape, by_columns, dtype = NPY_VERSIONS[npy.read_magic(file)](file)
    except Exception as error:  # as many kinds as text can be wrong in
        raise UnreadableImage(
            "its .npy header is damaged, or of a kind that holds no image"
        ) from error
    return shape, by_columns, dtype, file.tell()
