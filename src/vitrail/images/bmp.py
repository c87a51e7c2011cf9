"""Decode run-length encoded BMP files.

Pillow before 13 reads them wrongly where a run of 4-bit pixels has an odd length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from vitrail.images.pixels import UnreadableImage

CODEC = "bmp_rle"
"""Pillow's name of the run-length codec, for 4 bits and for 8."""
LINE_ENDS = 0
IMAGE_ENDS = 1
JUMP = 2
"""The values that are commands, where they follow a count of 0; larger ones are numbers of single
pixels."""


def is_run_length(image: ImageFile.ImageFile) -> bool:
    """Say whether an opened image is a BMP with run-length encoding."""
    return image.format == "BMP" and bool(image.tile) and image.tile[0].codec_name == CODEC


def read_run_length(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """Read the pixels of an opened BMP.

    What its runs leave out has the palette's first colour, as in Pillow.

    Raises:
        UnreadableImage: The runs end before the last row.
    """
    tile = image.tile[0]
    assert isinstance(tile.args, tuple)
    indices = _unpack(data, tile.offset, image.height, image.width, is_4_bit=bool(tile.args[1]))
    if tile.args[-1] == -1:  # the last row comes first
        indices = indices[::-1]
    if image.mode == "1":
        return Image.fromarray(np.where(indices > 0, np.uint8(255), np.uint8(0)))
    decoded = Image.fromarray(np.ascontiguousarray(indices))
    if image.palette is not None:
        decoded.putpalette(image.palette)
    return decoded


def _unpack(data: bytes, at: int, height: int, width: int, *, is_4_bit: bool) -> NDArray[np.uint8]:
    """Return the palette index of each pixel, in the order of the file's rows."""
    rows = np.zeros((height, width), np.uint8)
    x = y = 0
    while y < height:
        if at + 2 > len(data):
            raise UnreadableImage("is cut off")
        count, value = data[at], data[at + 1]
        at += 2
        if count > 0:
            run = np.full(_stored_bytes(count, is_4_bit), value, np.uint8)
        elif value == IMAGE_ENDS:
            break
        elif value == LINE_ENDS:
            x = 0
            y += 1
            continue
        elif value == JUMP:
            if at + 2 > len(data):
                raise UnreadableImage("is cut off")
            x += data[at]
            y += data[at + 1]
            at += 2
            continue
        else:
            # so many single pixels, filled up to whole words
            count = value
            size = _stored_bytes(count, is_4_bit)
            run = np.frombuffer(data[at : at + size], np.uint8)
            if len(run) < size:
                raise UnreadableImage("is cut off")
            at += size + size % 2
        if is_4_bit:
            run = np.stack((run >> 4, run & 15), axis=1).reshape(-1)
        room = max(0, min(count, width - x))
        rows[y, x : x + room] = run[:room]
        x += count
    is_in_last_row = y == height - 1
    if y < height - 1 or (is_in_last_row and x < width):
        raise UnreadableImage("its runs end before its last pixel")
    return rows


def _stored_bytes(pixels: int, is_4_bit: bool) -> int:
    return -(-pixels // 2) if is_4_bit else pixels
