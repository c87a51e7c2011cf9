"""Decode TIFF pages with tifffile, to the whole range of uint8 or uint16.

Samples of 1 to 16 bits become 16 by their own range, `round(value * 65535 / (2**bits - 1))`, and 8
by the high byte of that, so that no number of bits makes an image darker. Packed samples begin with
the highest bit, whatever the byte order, as TIFF defines it. Associated alpha is divided out, inks
become RGB as in Pillow, palettes their colours.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import zlib
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.images.pixels import AS_INTEGERS, PixelFormat, UnreadableImage, check_size
from vitrail.images.tiff_tags import (
    ASSOCIATED,
    DEFLATE,
    INKS,
    LZW,
    PACKBITS,
    PALETTE,
    STORED,
    WHITE_IS_ZERO,
    Tags,
    pages_are_channels,
)

PLAIN = (STORED, LZW, PACKBITS, *DEFLATE)
"""Compressions of bytes, which work for samples of any number of bits."""
Array = NDArray[np.uint8 | np.uint16]


def read_tiff(data: bytes, tags: Tags, wanted: PixelFormat) -> Array:
    """Read the first page with tifffile, or all pages where each holds one of the channels that are asked for.

    Args:
        data: The file.
        tags: The tags of its first page, for which `choose_reader` returned tifffile.
        wanted: The pixel format that is asked for, of which only the number of channels matters.

    Returns:
        The array (h, w, channels), of uint8 or uint16 in the whole range of the type.

    Raises:
        UnreadableImage: It is damaged, or needs a library that is not installed.
    """
    with _open_tiff(data) as file:
        if pages_are_channels(tags, wanted):
            return _read_channels(file, tags, data, wanted.channels)
        page = file.pages[0]
        return _to_full_range(_read_page(page, tags, data), tags, page)


def _read_channels(file: Any, tags: Tags, data: bytes, channels: int) -> Array:
    """Read an image each of whose pages is one channel."""
    check_size(tags.height, tags.width, channels)
    planes = []
    has_other_sizes = False
    for number in range(channels):
        page = file.pages.get(number)
        if (
            page.photometric != tags.photometric
            or page.bitspersample != tags.bits
            or page.samplesperpixel != 1
        ):
            raise UnreadableImage(f"has {channels} pages of different kinds")
        if (page.imagelength, page.imagewidth) != (tags.height, tags.width):
            has_other_sizes = True
            continue
        planes.append(_to_full_range(_read_page(page, tags, data), tags, page))
    if has_other_sizes:
        raise UnreadableImage(f"has {channels} pages of different sizes")
    return np.concatenate(planes, axis=2)


def _open_tiff(data: bytes) -> Any:
    try:
        import tifffile  # few need it
    except ImportError as error:
        raise UnreadableImage(
            "is a TIFF of a kind that needs tifffile (pip install tifffile)"
        ) from error

    _quiet_tifffile_log()
    return tifffile.TiffFile(io.BytesIO(data))


@cache
def _quiet_tifffile_log() -> None:
    """Keep tifffile's log from being printed: what matters of it is raised."""
    logging.getLogger("tifffile").addHandler(logging.NullHandler())


def _read_page(page: Any, tags: Tags, data: bytes) -> Array:
    """Return the samples of a page as (h, w, samples), turned upright, with the values as they are stored."""
    as_tifffile_reads = (
        page.imagelength,
        page.imagewidth,
        page.samplesperpixel,
        page.bitspersample,
    )
    if as_tifffile_reads != (tags.height, tags.width, tags.samples, tags.bits):
        raise UnreadableImage("its TIFF tags can be read in two ways")
    _check_whole(page, data)
    if tags.bits not in (8, 16):
        array = _unpack_bits(page, tags, data)
    elif page.dtype in (np.uint8, np.uint16):
        if tags.compression == STORED:
            # only packed samples are differences; libtiff knows it, tifffile does not
            page.predictor = 1
        array = page.asarray(maxworkers=1)
        if tags.planar:
            array = array.reshape(tags.samples, tags.height, tags.width).transpose(1, 2, 0)
        array = array.reshape(tags.height, tags.width, tags.samples)
    else:
        raise UnreadableImage(f"is {page.dtype}; {AS_INTEGERS}")
    return _turn_upright(array, tags.orientation)


def _check_whole(page: Any, data: bytes) -> None:
    """Refuse a page that tifffile would fill up with zeros, or decompress without bounds."""
    pieces = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(pieces) < math.prod(page.chunked):
        raise UnreadableImage("is cut off, or has pieces that were never written")
    for at, size in pieces:
        if not 0 < at < at + size <= len(data):
            raise UnreadableImage("is cut off, or has pieces that were never written")
    if page.compression in DEFLATE:
        values = math.prod(page.chunks)
        check_size(1, 1, values)
        most = values * 2
        for at, size in pieces:
            if len(zlib.decompressobj().decompress(data[at : at + size], most + 1)) > most:
                raise UnreadableImage("unpacks to more than its size")
    if (
        page.compression not in (STORED, PACKBITS, *DEFLATE)
        and importlib.util.find_spec("imagecodecs") is None
    ):
        packed = getattr(page.compression, "name", page.compression)
        raise UnreadableImage(
            f"is packed by {packed}, which needs imagecodecs (pip install imagecodecs)"
        )


def _unpack_bits(page: Any, tags: Tags, data: bytes) -> Array:
    """Read samples that are no whole bytes; they begin with their highest bit, and each row begins a new byte."""
    if tags.compression not in PLAIN or tags.predictor != 1:
        raise UnreadableImage(
            f"packs samples of {tags.bits} bits in a way that is not read; save it with 8 or 16 "
            "bits"
        )
    from tifffile import TIFF  # which is there, as it opened the file

    # a page is cut into tiles or strips, row after row, and each plane on its own
    rows, columns = page.chunks[0], page.chunks[1]
    planes = tags.samples if tags.planar else 1
    samples = tags.samples // planes
    down = -(-tags.height // rows)
    across = -(-tags.width // columns)
    row_bytes = -(-columns * samples * tags.bits // 8)
    dtype = np.uint8 if tags.bits <= 8 else np.uint16
    array = np.zeros((down * rows, across * columns, tags.samples), dtype)
    weights = (1 << np.arange(tags.bits)[::-1]).astype(np.uint16)
    for number in range(planes * down * across):
        begin = page.dataoffsets[number]
        size = page.databytecounts[number]
        piece: Any = data[begin : begin + size]
        if tags.fill_order == 2:
            piece = np.packbits(
                np.unpackbits(np.frombuffer(piece, np.uint8), bitorder="little")
            ).tobytes()
        if tags.compression != STORED:
            piece = TIFF.DECOMPRESSORS[tags.compression](piece, out=rows * row_bytes)
        # the last strip of a page may be short, a tile never is
        plane, place = divmod(number, down * across)
        top = place // across * rows
        left = place % across * columns
        stored_rows = rows if page.is_tiled else min(rows, tags.height - top)
        if len(piece) < stored_rows * row_bytes:
            raise UnreadableImage("is cut off, or has pieces that were never written")
        packed = np.frombuffer(piece, np.uint8, stored_rows * row_bytes).reshape(
            stored_rows, row_bytes
        )
        bits = np.unpackbits(packed, axis=1)[:, : columns * samples * tags.bits]
        values = bits.reshape(stored_rows, columns, samples, tags.bits) @ weights
        channels = slice(plane, plane + 1) if tags.planar else slice(None)
        array[top : top + stored_rows, left : left + columns, channels] = values
    return array[: tags.height, : tags.width]


def _turn_upright(array: Array, orientation: int) -> Array:
    """Return an array upright: in TIFF, orientation is a part of the format."""
    if orientation >= 5:
        array = array.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array


def _to_full_range(array: Array, tags: Tags, page: Any) -> Array:
    """Bring samples to the whole range of uint8 or uint16, and what is neither gray nor RGB to RGB."""
    if tags.photometric == PALETTE:
        colours = np.asarray(page.colormap, np.uint16)
        if colours.shape[0] != 3 or array.max() >= colours.shape[1]:
            raise UnreadableImage("has colours that its palette lacks")
        if colours.max() < 256:  # some programs write 8 bits
            colours = colours * np.uint16(257)
        return np.ascontiguousarray(colours.T[array[:, :, 0]])
    most = 2**tags.bits - 1
    if tags.bits not in (8, 16):
        scale = (np.arange(most + 1, dtype=np.uint64) * (2 * 65535) + most) // (2 * most)
        array = scale.astype(np.uint16)[array]
    array = np.array(array, order="C")  # tifffile may give what cannot be written to
    full = 255 if array.dtype == np.uint8 else 65535
    if tags.photometric == WHITE_IS_ZERO:
        array[:, :, 0] = full - array[:, :, 0]
    if tags.photometric == INKS:
        inks = array[:, :, :3].astype(np.uint64)
        black = array[:, :, 3:4].astype(np.uint64)
        paper = full - black
        return (paper - (inks * paper + full // 2) // full).astype(array.dtype)
    if tags.extra == (ASSOCIATED,):
        alpha = array[:, :, -1:].astype(np.uint64)
        straight = np.minimum(array[:, :, :-1] * np.uint64(full) // np.maximum(alpha, 1), full)
        array[:, :, :-1] = np.where(alpha == 0, 0, straight)
    return array
