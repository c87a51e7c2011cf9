"""What PNG, WebP and JPEG files are made of, as far as it decides who decodes them and whether all of them is there."""

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
JPEG_BEGINS = b"\xff\xd8"
SCAN, IMAGE_ENDS, RESTARTS, INTERVAL, APP1 = 0xDA, 0xD9, range(0xD0, 0xD8), 0xDD, 0xE1
SEQUENTIAL, HUFFMAN = (0xC0, 0xC1), (0xC0, 0xC1, 0xC2)
"""Markers of frames, those that go from the first block to the last, and those whose code ends where the pixels do."""
EXIF = b"Exif\0\0"
ORIENTATION, TURNED = 274, range(2, 9)
MARKER = re.compile(rb"\xff[\x01-\xfe]")
FILLER = np.random.default_rng(0).integers(0, 255, 64, dtype=np.uint8).tobytes()
"""Code of some blocks, whatever they show; it has no byte that begins a marker."""
RICH = 16
LUMA = (0.299, 0.587, 0.114)


def png_is_whole(data: bytes) -> bool:
    """Say whether what follows a PNG's first pixels is what no decoder can stumble over, up to its end."""
    inside = False
    for kind, begin, end in _png_chunks(data):
        inside = inside or kind == b"IDAT"
        if kind == b"IEND":
            return inside and end + 4 == len(data)
        if inside and (kind not in PNG_BEHIND or (kind != b"IDAT" and end - begin > PNG_SHORT)):
            return False
    return False


def png_has_exif(data: bytes) -> bool:
    """Say whether a PNG may say how it is to be turned; Pillow would decode all of it to find out."""
    return any(
        kind == b"eXIf" or (kind[1:] in (b"EXt", b"TXt") and data.startswith((b"Raw profile type", b"XML:com"), begin))
        for kind, begin, _ in _png_chunks(data)
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, begin and end of each chunk's content, up to the first that leaves the file."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            return
        yield data[at + 4 : at + 8], at + 8, end
        at = end + 4


def webp_is_whole(data: bytes) -> bool:
    """Say whether a WebP is one picture and nothing else, up to its end: of others each decoder has its own idea."""
    size = int.from_bytes(data[16:20], "little")
    fills = len(data) == 20 + size + size % 2 == 8 + int.from_bytes(data[4:8], "little")
    return fills and data[12:16] in (b"VP8 ", b"VP8L")


def seems_turned(data: bytes) -> bool:
    """Say whether a careless reader finds that a JPEG is to be turned: one that minds neither types nor counts in EXIF.

    torchcodec is one, and turns what Pillow, which goes by what EXIF is, says to be upright.
    """
    heads = takewhile(lambda segment: segment[0] != SCAN, _jpeg_segments(data))
    return any(_entry_turns(data[begin + len(EXIF) : end]) for kind, begin, end in heads if kind == APP1)


def _entry_turns(exif: bytes) -> bool:
    """Say whether an entry of EXIF's first directory may be the orientation, and not that of an upright image."""
    order: Literal["little", "big"] = "little" if exif.startswith(b"II") else "big"
    begin = int.from_bytes(exif[4:8], order)
    count = int.from_bytes(exif[begin : begin + 2], order)
    entries = (exif[at : at + 12] for at in range(begin + 2, min(begin + 2 + 12 * count, len(exif)), 12))
    return any(
        int.from_bytes(entry[:2], order) == ORIENTATION and int.from_bytes(entry[8:10], order) in TURNED
        for entry in entries
    )


def is_last_block_rich(data: bytes, pixels: Pixels) -> bool:
    """Say whether a JPEG goes from its first block to its last, and something is to be seen in the last.

    Then its code cannot have ended before: what libjpeg makes up in its place is flat. It need not go on looking.

    Args:
        data: The file.
        pixels: Of it, upright as they are stored.
    """
    frame, scans, restarts = 0, 0, False
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
    block = pixels[:, top:, left:].numpy() / (1 if pixels.element_size() == 1 else 257)
    # colours are stored coarsely, and those of the block before may reach into this one; brightness does not
    levels = np.tensordot(LUMA, block, 1) if len(block) == len(LUMA) else block.mean(0)
    return bool(np.ptp(levels) > RICH)


def filled(data: bytes) -> bytes:
    """Return a JPEG with other code behind all of its own, which counts only where blocks are still missing.

    Of arithmetic code nobody can say where it ends; it is left as it is.
    """
    parts, begin, is_huffman = [], 0, False
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
