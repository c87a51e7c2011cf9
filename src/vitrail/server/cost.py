"""What decoding an image will cost, estimated from its header and its size alone, without Pillow.

The rates are of one core of an AMD EPYC, rounded up; they need be right to a factor of a few only. What lies about
itself is stopped when it has had its time.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

NANO = 1e-9
A_BYTE = 8 * NANO
"""Seconds to read, unpack and copy a byte of any file."""
A_PIXEL = {"JPEG": 8, "PNG": 25, "WEBP": 35, "GIF": 12, "BMP": 8, "TIFF": 18, "PPM": 8, "AVIF": 60}
"""Nanoseconds, with resizing."""
A_SCAN = 4
"""Nanoseconds of a pixel in each further scan of a JPEG."""
A_RUN, A_RUN_BYTE = 45, 2500
"""Nanoseconds of a pixel, and of a byte, of a run-length encoded BMP, which is unpacked in Python."""
LZMA, LZMA_PIXEL = 34925, 110
A_LEVEL, A_DIGIT, A_REMARK = 600, 120, 250
"""Nanoseconds of a byte of a PPM that Pillow reads in Python: scaled levels, numbers as text, header comments."""
A_SEGMENT = 4000
"""Nanoseconds of each piece of a header that Pillow reads in Python, such as a remark."""
MOST_SEGMENTS = 2000
"""Pieces of a header that are counted; where there are more, the whole file is taken for header."""

BETWEEN = rb"\s(?:\s|#[^\r\n]*[\r\n])*"
PPM = re.compile(rb"P[1-6]%b(\d{1,10})%b(\d{1,10})(?:%b(\d{1,5})\s)?" % (BETWEEN, BETWEEN, BETWEEN))
ISPE = re.compile(rb"ispe\0\0\0\0(.{8})", re.DOTALL)
"""The property of an AVIF that has the size of an image."""
LONGEST_HEADER = 4096
"""Bytes of a PPM or an AVIF in which the header is looked for."""


class Cost(NamedTuple):
    """An estimate."""

    seconds: float
    """Processor time."""
    pixels: int
    """That the header speaks of; 0 where it is not understood, and the file's size alone is counted."""
    reason: str
    """What takes so long, in a few words."""


def estimate(data: bytes | bytearray) -> Cost:
    """Return what decoding will cost if the header says the truth; this itself takes milliseconds at most."""
    for at, magic, read in FORMATS:
        if data.startswith(magic, at):
            try:
                cost = read(data)
            except (struct.error, ValueError, IndexError, OverflowError):  # anything
                cost = Cost(len(data) * A_REMARK * NANO, 0, f"{len(data):,} bytes with a broken header")
            return cost._replace(seconds=cost.seconds + len(data) * A_BYTE)
    return Cost(len(data) * A_BYTE, 0, f"{len(data):,} bytes")


def _of(name: str, width: int, height: int, nanoseconds: float, more: str = "") -> Cost:
    pixels = width * height
    return Cost(pixels * nanoseconds * NANO, pixels, f"{width} x {height} pixels{more} as {name}")


def _many(segments: int) -> Cost:
    return Cost(segments * A_SEGMENT * NANO, 0, f"a header of more than {MOST_SEGMENTS:,} pieces")


def _jpeg(data: bytes | bytearray) -> Cost:
    at, width, height, segments = 2, 0, 0, 0
    while segments < MOST_SEGMENTS:
        mark, kind, size = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF:
            raise ValueError
        if kind == 0xFF:  # filling
            at, segments = at + 1, segments + 1
            continue
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
        if kind == 0xDA:
            break
        at += 2 + size
        segments += 1
    else:
        return _many(len(data) // 4)
    scans = data.count(b"\xff\xda")
    cost = _of("JPEG", width, height, A_PIXEL["JPEG"] + A_SCAN * (scans - 1), f" in {scans} scan{'s' * (scans != 1)}")
    return cost._replace(seconds=cost.seconds + segments * A_SEGMENT * NANO)


def _png(data: bytes | bytearray) -> Cost:
    width, height, bits, _, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    at = 8
    for _segments in range(MOST_SEGMENTS):
        size, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            break
        at += 12 + size
    else:
        return _many(len(data) // 12)
    twice = (1 + (bits == 16)) * (1 + bool(is_interlaced))
    return _of("PNG", width, height, A_PIXEL["PNG"] * twice, f" of {bits} bits{', interlaced,' * bool(is_interlaced)}")


def _webp(data: bytes | bytearray) -> Cost:
    kind, begin = data[12:16], data[20:30]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(begin[k : k + 3], "little") for k in (4, 7))
    elif kind == b"VP8L":
        packed = int.from_bytes(begin[1:5], "little")
        width, height = 1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF)
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", begin, 6))
    return _of("WebP", width, height, A_PIXEL["WEBP"])


def _gif(data: bytes | bytearray) -> Cost:
    at = 13 + (3 * 2 ** (1 + (data[10] & 7)) if data[10] & 0x80 else 0)
    for _ in range(MOST_SEGMENTS):
        if data[at] != 0x21:  # an image
            break
        at += 2
        while size := data[at]:
            at += 1 + size
        at += 1
    else:
        return _many(len(data) // 4)
    return _of("GIF", *struct.unpack_from("<HH", data, 6), A_PIXEL["GIF"])


def _bmp(data: bytes | bytearray) -> Cost:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        return _of("BMP", *struct.unpack_from("<HH", data, 18), A_PIXEL["BMP"])
    width, height, _, _, packing = struct.unpack_from("<iiHHI", data, 18)
    if packing not in (1, 2):
        return _of("BMP", abs(width), abs(height), A_PIXEL["BMP"])
    cost = _of("BMP", abs(width), abs(height), A_RUN, f" in {len(data):,} bytes of runs")
    return cost._replace(seconds=cost.seconds + len(data) * A_RUN_BYTE * NANO)


def _avif(data: bytes | bytearray) -> Cost:
    sizes = [struct.unpack(">II", found[1]) for found in ISPE.finditer(data, 0, LONGEST_HEADER)]
    width, height = max(sizes, key=math.prod)  # of the parts and of the whole
    return _of("AVIF", width, height, A_PIXEL["AVIF"])


def _tiff(data: bytes | bytearray) -> Cost:
    order, is_big = "<" if data[:2] == b"II" else ">", data[2:4] in (b"+\0", b"\0+")
    where, count, size, value = ("Q", "Q", 20, 12) if is_big else ("I", "H", 12, 8)
    (at,) = struct.unpack_from(order + where, data, 8 if is_big else 4)
    (entries,) = struct.unpack_from(order + count, data, at)
    at += struct.calcsize(order + count)
    tags: dict[int, int] = {}
    for number in range(min(entries, 100)):
        entry = at + number * size
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if kind in (3, 4):
            (tags[tag],) = struct.unpack_from(order + "HI"[kind - 3], data, entry + value)
    width, height, packing, channels = (tags.get(tag, 1) for tag in (256, 257, 259, 277))
    most = LZMA_PIXEL if packing == LZMA else A_PIXEL["TIFF"]
    return _of("TIFF", width, height, most * max(1, channels / 3), " packed by LZMA" * (packing == LZMA))


def _ppm(data: bytes | bytearray) -> Cost:
    found = PPM.match(data, 0, LONGEST_HEADER)
    if found is None:
        return Cost(len(data) * A_REMARK * NANO, 0, f"{len(data):,} bytes of a PPM with a long header")
    width, height, most = int(found[1]), int(found[2]), int(found[3] or 1)
    is_text, is_scaled = data[1:2] in b"123", data[1:2] in b"56" and most not in (255, 65535)
    is_scaled = is_scaled or (data[1:2] == b"6" and most != 255)
    a_byte = A_DIGIT if is_text else A_LEVEL if is_scaled else 0
    how = ", written as text," if is_text else f" of {most + 1} levels" if is_scaled else ""
    cost = _of("PPM", width, height, A_PIXEL["PPM"], how)
    return cost._replace(seconds=cost.seconds + len(data) * a_byte * NANO)


FORMATS: tuple[tuple[int, bytes | tuple[bytes, ...], Callable[[bytes | bytearray], Cost]], ...] = (
    (0, b"\xff\xd8", _jpeg),
    (0, b"\x89PNG\r\n\x1a\n", _png),
    (0, b"RIFF", _webp),
    (0, (b"GIF87a", b"GIF89a"), _gif),
    (0, b"BM", _bmp),
    (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _tiff),
    (4, (b"ftypavif", b"ftypavis"), _avif),
    (0, b"P", _ppm),
)
"""Where a format's mark stands, the mark, and what reads the header behind it."""
