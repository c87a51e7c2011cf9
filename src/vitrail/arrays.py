"""Files of numbers rather than pictures, `.npy` and TIFF of any number of channels, read without trusting them."""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import zlib
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from vitrail.pixels import UnreadableImage, check_size

NPY = npy.MAGIC_PREFIX
NPY_VERSIONS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
"""A third is for types with names, which are no pixels."""
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""How TIFF and BigTIFF begin, in both orders of bytes."""
AS_INTEGERS = "save it as uint8 or uint16, in the range of that type"
STORED, PACKBITS, DEFLATE = 1, 32773, (8, 32946)
"""TIFF's compressions that need no other library than tifffile."""


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


def read_tiff(data: bytes, channels: int) -> tuple[NDArray[np.uint8 | np.uint16], bool]:
    """Read the first page of a TIFF, or all where there are as many as channels and each holds one of them.

    Args:
        data: The file.
        channels: That are wanted.

    Returns:
        The array (h, w, channels), and whether its last channel is alpha.

    Raises:
        UnreadableImage: It is of another type, not whole, or packed in a way that needs another library.
    """
    with _open_tiff(data) as file:
        pages = [file.pages[0]]
        if pages[0].samplesperpixel == 1:
            for number in range(1, channels + 1):  # never all of them: a file may chain them in a ring
                try:
                    pages.append(file.pages.get(number))
                except IndexError:
                    break
        if len(pages) != channels:
            pages = pages[:1]
        planes = [_read_page(page, data) for page in pages]
        if len({plane.shape for plane in planes}) > 1:
            raise UnreadableImage(f"has {channels} pages of different sizes")
        has_alpha = bool(pages[0].extrasamples) and pages[0].extrasamples[-1] in (1, 2)
        return np.concatenate(planes, axis=2), has_alpha


def tiff_header(data: bytes) -> tuple[int, int, int, int]:
    """Return height, width, channels and bits of the first page."""
    with _open_tiff(data) as file:
        page = file.pages[0]
        check_size(page.imagelength, page.imagewidth, page.samplesperpixel)
        bits = page.bitspersample
        return page.imagelength, page.imagewidth, page.samplesperpixel, bits if isinstance(bits, int) else max(bits)


def _open_tiff(data: bytes) -> Any:
    try:
        import tifffile  # few need it
    except ImportError as error:
        raise UnreadableImage("is a TIFF of a kind that needs tifffile (pip install tifffile)") from error

    logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what matters is raised
    return tifffile.TiffFile(io.BytesIO(data))


def _read_page(page: Any, data: bytes) -> NDArray[np.uint8 | np.uint16]:
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    check_size(height, width, samples)
    if page.dtype is None or page.dtype not in (np.uint8, np.uint16):
        kind = f"{page.bitspersample} bits of an unknown kind" if page.dtype is None else page.dtype.name
        raise UnreadableImage(f"is {kind}; {AS_INTEGERS}")
    if page.photometric not in (1, 2):
        colours = getattr(page.photometric, "name", page.photometric)
        raise UnreadableImage(f"holds its colours as {colours}; save it as gray or RGB")
    if (turned := page.tags.valueof(274, 1)) != 1:
        raise UnreadableImage(f"is turned (TIFF orientation {turned}); save it upright")
    if page.imagedepth != 1:
        raise UnreadableImage(f"is a volume of {page.imagedepth} layers; save one of them")
    _check_whole(page, data)
    array = page.asarray(maxworkers=1)
    if page.planarconfig == 2:
        return array.reshape(samples, height, width).transpose(1, 2, 0)
    return array.reshape(height, width, samples)


def _check_whole(page: Any, data: bytes) -> None:
    """Refuse what tifffile would fill up with zeros, or unpack without bounds."""
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(pieces) < math.prod(page.chunked) or any(not 0 < at < at + size <= len(data) for at, size in pieces):
        raise UnreadableImage("is cut off, or has pieces that were never written")
    if importlib.util.find_spec("imagecodecs") is not None:
        return
    if page.compression not in (STORED, PACKBITS, *DEFLATE):
        packed = getattr(page.compression, "name", page.compression)
        raise UnreadableImage(f"is packed by {packed}, which needs imagecodecs (pip install imagecodecs)")
    if page.compression in DEFLATE:
        values = math.prod(page.chunks)
        check_size(1, 1, values)
        most = values * page.dtype.itemsize
        for at, size in pieces:
            if len(zlib.decompressobj().decompress(data[at : at + size], most + 1)) > most:
                raise UnreadableImage("unpacks to more than its size")
