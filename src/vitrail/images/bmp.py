"""BMP packed by run lengths, which Pillow before 13 reads wrongly where a run of 4-bit pixels has an odd length."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from vitrail.images.pixels import UnreadableImage

CODEC = "bmp_rle"
"""What Pillow calls it, for 4 bits and for 8."""
LINE_ENDS, IMAGE_ENDS, JUMP = 0, 1, 2


def is_run_length(image: ImageFile.ImageFile) -> bool:
    """Say whether an opened image is such a BMP."""
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
    read = Image.fromarray(np.ascontiguousarray(indices))
    if image.palette is not None:
        read.putpalette(image.palette)
    return read


def _unpack(data: bytes, at: int, height: int, width: int, *, is_4_bit: bool) -> NDArray[np.uint8]:
    rows = np.zeros((height, width), np.uint8)
    x = y = 0
    while y < height:
        if at + 2 > len(data):
            raise UnreadableImage("is cut off")
        count, value = data[at], data[at + 1]
        at += 2
        if count == 0 and value == IMAGE_ENDS:
            break
        if count == 0 and value == LINE_ENDS:
            x, y = 0, y + 1
            continue
        if count == 0 and value == JUMP:
            if at + 2 > len(data):
                raise UnreadableImage("is cut off")
            x, y, at = x + data[at], y + data[at + 1], at + 2
            continue
        if count == 0:  # so many pixels as they are, in whole words
            size = -(-value // 2) if is_4_bit else value
            run = np.frombuffer(data[at : at + size], np.uint8)
            if len(run) < size:
                raise UnreadableImage("is cut off")
            count, at = value, at + size + size % 2
        else:
            run = np.full(-(-count // 2) if is_4_bit else count, value, np.uint8)
        if is_4_bit:
            run = np.stack((run >> 4, run & 15), axis=1).reshape(-1)
        room = max(0, min(count, width - x))
        rows[y, x : x + room] = run[:room]
        x += count
    if y < height - 1 or (y == height - 1 and x < width):
        raise UnreadableImage("its runs end before its last pixel")
    return rows
