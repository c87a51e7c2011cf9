"""The structure of PNG, WebP and JPEG files: whether they are complete, and which decoder may read them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import takewhile
from typing import Literal

import numpy as np

from vitrail.images.pixels import Pixels

PNG_BEHIND = (b"IDAT", b"tEXt", b"tIME", b"IEND")
"""Chunks that may follow a PNG's first pixels and never trouble Pillow, if they are short."""
PNG_SHORT = 65536
"""Most bytes of such a chunk, but for pixels."""
JPEG_BEGINS = b"\xff\xd8"
SCAN = 0xDA
IMAGE_ENDS = 0xD9
RESTARTS = range(0xD0, 0xD8)
INTERVAL = 0xDD
APP1 = 0xE1
SEQUENTIAL = (0xC0, 0xC1)
"""JPEG frames that go from the first block to the last."""
HUFFMAN = (0xC0, 0xC1, 0xC2)
"""JPEG frames whose code ends where the pixels do."""
EXIF = b"Exif\0\0"
ORIENTATION = 274
"""EXIF tag of the orientation."""
TURNED = range(2, 9)
"""EXIF orientations that are not upright."""
MARKER = re.compile(rb"\xff[\x01-\xfe]")
FILLER = np.random.default_rng(0).integers(0, 255, 64, dtype=np.uint8).tobytes()
"""Random Huffman code, which decodes to some blocks; it has no byte that begins a marker."""
RICH = 16
"""Range of gray levels above which a block is not flat."""
LUMA = (0.299, 0.587, 0.114)


def png_is_whole(data: bytes) -> bool:
    """Say whether a PNG is complete, and holds behind its first pixels no chunk that decoders disagree about."""
    inside = False
    for kind, begin, end in _png_chunks(data):
        inside = inside or kind == b"IDAT"
        if kind == b"IEND":
            return inside and end + 4 == len(data)
        is_long = kind != b"IDAT" and end - begin > PNG_SHORT
        if inside and (kind not in PNG_BEHIND or is_long):
            return False
    return False


def png_has_exif(data: bytes) -> bool:
    """Say whether a PNG may say how it is to be turned; Pillow would decode all of it to find out."""
    for kind, begin, _ in _png_chunks(data):
        if kind == b"eXIf":
            return True
        is_text = kind[1:] in (b"EXt", b"TXt")
        if is_text and data.startswith((b"Raw profile type", b"XML:com"), begin):
            return True
    return False


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of each chunk's content, up to the first that reaches beyond the file's end."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        yield data[at + 4 : at + 8], at + 8, end
        at = end + 4


def webp_is_whole(data: bytes) -> bool:
    """Say whether a WebP is complete and holds one picture and nothing else; of others decoders disagree."""
    size = int.from_bytes(data[16:20], "little")
    fills = len(data) == 20 + size + size % 2 == 8 + int.from_bytes(data[4:8], "little")
    return fills and data[12:16] in (b"VP8 ", b"VP8L")


def seems_turned(data: bytes) -> bool:
    """Say whether torchcodec may turn a JPEG by its EXIF orientation.

    It ignores types and counts of EXIF entries, and so turns images that Pillow finds to be
    upright.
    """
    heads = takewhile(lambda segment: segment[0] != SCAN, _jpeg_segments(data))
    return any(
        _entry_turns(data[begin + len(EXIF) : end]) for kind, begin, end in heads if kind == APP1
    )


def _entry_turns(exif: bytes) -> bool:
    """Say whether an entry of EXIF's first directory may be the orientation, and not that of an upright image."""
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    begin = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[begin : begin + 2], order)
    entries = (
        exif[at : at + 12] for at in range(begin + 2, min(begin + 2 + 12 * count, len(exif)), 12)
    )
    return any(
        int.from_bytes(entry[:2], order) == ORIENTATION
        and int.from_bytes(entry[8:10], order) in TURNED
        for entry in entries
    )


def is_last_block_rich(data: bytes, pixels: Pixels) -> bool:
    """Say whether the last block of a sequential JPEG is not flat, which proves that the file is complete.

    Where the code ends early, libjpeg makes up flat blocks to the end.

    Args:
        data: The file.
        pixels: The decoded pixels, not turned by EXIF.
    """
    frame = 0
    scans = 0
    restarts = False
    for kind, begin, end in _jpeg_segments(data):
        if kind in HUFFMAN:
            frame = kind
        scans += kind == SCAN
        restarts |= kind == INTERVAL and any(data[begin:end])
        if kind == SCAN and scans == 2:
            break
    if frame not in SEQUENTIAL or scans != 1 or restarts:
        return False
    top, left = ((side - 1) // 8 * 8 for side in pixels.shape[1:])
    levels = pixels[:, top:, left:].numpy().astype(np.float64)
    if pixels.element_size() > 1:
        levels /= 257
    # colours are stored coarsely, and those of the block before may reach into this one; brightness
    # does not
    brightness = np.tensordot(LUMA, levels, 1) if len(levels) == len(LUMA) else levels.mean(0)
    return bool(np.ptp(brightness) > RICH)


def append_filler(data: bytes) -> bytes:
    """Return a JPEG with random code appended to each scan, which changes pixels only where blocks were missing.

    Arithmetic code is left as it is, as it cannot be told where it ends.
    """
    parts = []
    begin = 0
    is_huffman = False
    for kind, _, at in _jpeg_segments(data):
        is_huffman = is_huffman or kind in HUFFMAN
        if kind != SCAN or not is_huffman:
            continue
        while (marker := MARKER.search(data, at)) is not None:
            parts += [data[begin : marker.start()], FILLER]
            begin, at = marker.start(), marker.end()
            if marker[0][1] not in RESTARTS:
                break
    return b"".join((*parts, data[begin:]))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the marker of each segment before the image's end, and where its content begins and ends."""
    at = len(JPEG_BEGINS)
    while (marker := MARKER.search(data, at)) is not None:
        kind, begin = marker[0][1], marker.end()
        if kind == IMAGE_ENDS:
            return
        if kind in RESTARTS or begin + 2 > len(data):
            at = begin
            continue
        at = begin + max(2, int.from_bytes(data[begin : begin + 2], "big"))
        yield kind, begin + 2, at
