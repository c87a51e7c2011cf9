"""Estimate what decoding an image will cost from its header and its size alone, without Pillow.

The rates are of one core of an AMD EPYC, rounded up; they need be right to a factor of a few only.
A file that lies about itself is stopped when it has had its time.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

NANO = 1e-9
BYTE_S = 8 * NANO
"""Seconds to read, unpack and copy a byte of any file."""
PIXEL_NS = {"JPEG": 8, "PNG": 25, "WEBP": 35, "GIF": 12, "BMP": 8, "TIFF": 18, "PPM": 8, "AVIF": 60}
"""Nanoseconds to decode and resize a pixel, by format."""
SCAN_PIXEL_NS = 4
"""Nanoseconds of a pixel in each further scan of a JPEG."""
RUN_PIXEL_NS = 45
"""Nanoseconds of a pixel of a run-length encoded BMP, which is unpacked in Python."""
RUN_BYTE_NS = 2500
"""Nanoseconds of a byte of a run-length encoded BMP."""
LZMA = 34925
"""Number of LZMA among the compressions of TIFF."""
LZMA_PIXEL_NS = 110
"""Nanoseconds of a pixel of a TIFF packed by LZMA."""
LEVEL_BYTE_NS = 600
"""Nanoseconds of a byte of a PPM whose levels Pillow scales in Python."""
TEXT_BYTE_NS = 120
"""Nanoseconds of a byte of a PPM that holds its numbers as text, which Pillow reads in Python."""
COMMENT_BYTE_NS = 250
"""Nanoseconds of a byte of a comment in a PPM's header, which Pillow reads in Python."""
SEGMENT_NS = 4000
"""Nanoseconds of each segment of a header that Pillow reads in Python, such as a comment."""
MOST_SEGMENTS = 2000
"""Segments of a header that are counted; where there are more, the whole file is taken for
header."""
MOST_PIECES = 50_000
"""Pieces of a GIF's extensions that are looked at; there may be ten million, of which no more is to
be learnt."""
MOST_TAGS = 100
"""Tags of a TIFF that are looked at."""

BETWEEN = rb"\s(?:\s|#[^\r\n]*[\r\n])*"
PPM = re.compile(rb"P[1-6]%b(\d{1,10})%b(\d{1,10})(?:%b(\d{1,5})\s)?" % (BETWEEN, BETWEEN, BETWEEN))
"""The header of a PPM: width, height and, unless it is a bitmap, the largest level."""
ISPE = re.compile(rb"ispe\0\0\0\0(.{8})", re.DOTALL)
"""The property of an AVIF that has the size of an image."""
LONGEST_HEADER = 4096
"""Bytes of a PPM or an AVIF in which the header is looked for."""

File = bytes | bytearray


class Cost(NamedTuple):
    """An estimate of what decoding an image costs."""

    seconds: float
    """Processor time."""
    pixels: int
    """Pixels that the header speaks of; 0 where it is not understood, and the file's size alone is
    counted."""
    reason: str
    """What takes so long, in a few words."""


def estimate_cost(file: File) -> Cost:
    """Return what decoding will cost if the header says the truth; this itself takes milliseconds at most."""
    for offset, magic, read_header in FORMATS:
        if file.startswith(magic, offset):
            try:
                cost = read_header(file)
            except (
                struct.error,
                ValueError,
                IndexError,
                OverflowError,
            ):  # anything may be in a file
                seconds = len(file) * COMMENT_BYTE_NS * NANO
                cost = Cost(seconds, 0, f"{len(file):,} bytes with a broken header")
            return cost._replace(seconds=cost.seconds + len(file) * BYTE_S)
    return Cost(len(file) * BYTE_S, 0, f"{len(file):,} bytes")


def _count_pixels(name: str, width: int, height: int, pixel_ns: float, remark: str = "") -> Cost:
    """Return the cost of so many pixels of a format."""
    pixels = width * height
    return Cost(pixels * pixel_ns * NANO, pixels, f"{width} x {height} pixels{remark} as {name}")


def _count_segments(segments: int) -> Cost:
    """Return the cost of a header that has too many segments to look at."""
    return Cost(segments * SEGMENT_NS * NANO, 0, f"a header of more than {MOST_SEGMENTS:,} pieces")


def _add_ns(cost: Cost, nanoseconds: float) -> Cost:
    return cost._replace(seconds=cost.seconds + nanoseconds * NANO)


def _read_jpeg(file: File) -> Cost:
    offset = 2
    width = 0
    height = 0
    segments = 0
    while segments < MOST_SEGMENTS:
        mark, kind, size = struct.unpack_from(">BBH", file, offset)
        if mark != 0xFF:
            raise ValueError
        if kind == 0xFF:  # filling
            offset += 1
            segments += 1
            continue
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the start of a frame
            height, width = struct.unpack_from(">HH", file, offset + 5)
        if kind == 0xDA:  # the start of a scan
            break
        offset += 2 + size
        segments += 1
    else:
        return _count_segments(len(file) // 4)

    scans = file.count(b"\xff\xda")
    plural = "s" if scans != 1 else ""
    pixel_ns = PIXEL_NS["JPEG"] + SCAN_PIXEL_NS * (scans - 1)
    cost = _count_pixels("JPEG", width, height, pixel_ns, f" in {scans} scan{plural}")
    return _add_ns(cost, segments * SEGMENT_NS)


def _read_png(file: File) -> Cost:
    width, height, bits, _, _, _, is_interlaced = struct.unpack_from(">IIBBBBB", file, 16)
    offset = 8
    for _segment in range(MOST_SEGMENTS):
        size, kind = struct.unpack_from(">I4s", file, offset)
        if kind == b"IDAT":
            break
        offset += 12 + size
    else:
        return _count_segments(len(file) // 12)

    pixel_ns = PIXEL_NS["PNG"]
    remark = f" of {bits} bits"
    if bits == 16:
        pixel_ns *= 2
    if is_interlaced:
        pixel_ns *= 2
        remark += ", interlaced,"
    return _count_pixels("PNG", width, height, pixel_ns, remark)


def _read_webp(file: File) -> Cost:
    kind = file[12:16]
    header = file[20:30]
    if kind == b"VP8X":
        width = 1 + int.from_bytes(header[4:7], "little")
        height = 1 + int.from_bytes(header[7:10], "little")
    elif kind == b"VP8L":
        packed = int.from_bytes(header[1:5], "little")
        width = 1 + (packed & 0x3FFF)
        height = 1 + (packed >> 14 & 0x3FFF)
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", header, 6))
    return _count_pixels("WebP", width, height, PIXEL_NS["WEBP"])


def _read_gif(file: File) -> Cost:
    offset = 13
    if file[10] & 0x80:  # colours of all images
        offset += 3 * 2 ** (1 + (file[10] & 7))
    pieces = 0
    for _segment in range(MOST_SEGMENTS):
        if file[offset] != 0x21:  # an image, not an extension
            break
        offset += 2
        while pieces < MOST_PIECES and (size := file[offset]):
            offset += 1 + size
            pieces += 1
        if pieces == MOST_PIECES:
            break
        offset += 1
    else:
        return _count_segments(len(file) // 4)
    width, height = struct.unpack_from("<HH", file, 6)
    return _count_pixels("GIF", width, height, PIXEL_NS["GIF"])


def _read_bmp(file: File) -> Cost:
    (header_size,) = struct.unpack_from("<I", file, 14)
    if header_size == 12:
        width, height = struct.unpack_from("<HH", file, 18)
        return _count_pixels("BMP", width, height, PIXEL_NS["BMP"])
    width, height, _, _, packing = struct.unpack_from("<iiHHI", file, 18)
    if packing not in (1, 2):
        return _count_pixels("BMP", abs(width), abs(height), PIXEL_NS["BMP"])
    remark = f" in {len(file):,} bytes of runs"
    cost = _count_pixels("BMP", abs(width), abs(height), RUN_PIXEL_NS, remark)
    return _add_ns(cost, len(file) * RUN_BYTE_NS)


def _read_avif(file: File) -> Cost:
    sizes = [struct.unpack(">II", match[1]) for match in ISPE.finditer(file, 0, LONGEST_HEADER)]
    width, height = max(sizes, key=math.prod)  # tiles have sizes of their own, beside the whole
    return _count_pixels("AVIF", width, height, PIXEL_NS["AVIF"])


class _TiffLayout(NamedTuple):
    """Where the numbers of a TIFF's first directory stand."""

    first_at: int
    """Byte of the file at which the directory's offset stands."""
    offset_code: str
    """Code of `struct` for an offset."""
    count_code: str
    """Code of `struct` for the number of entries."""
    entry_size: int
    value_at: int
    """Byte of an entry at which its value stands."""


TIFF = _TiffLayout(first_at=4, offset_code="I", count_code="H", entry_size=12, value_at=8)
BIG_TIFF = _TiffLayout(first_at=8, offset_code="Q", count_code="Q", entry_size=20, value_at=12)


def _read_tiff(file: File) -> Cost:
    order = "<" if file[:2] == b"II" else ">"
    layout = BIG_TIFF if file[2:4] in (b"+\0", b"\0+") else TIFF
    (offset,) = struct.unpack_from(order + layout.offset_code, file, layout.first_at)
    (entries,) = struct.unpack_from(order + layout.count_code, file, offset)
    offset += struct.calcsize(order + layout.count_code)

    tags: dict[int, int] = {}
    for number in range(min(entries, MOST_TAGS)):
        entry = offset + number * layout.entry_size
        tag, kind = struct.unpack_from(order + "HH", file, entry)
        if kind in (3, 4):  # whole numbers of 16 and of 32 bits
            (tags[tag],) = struct.unpack_from(order + "HI"[kind - 3], file, entry + layout.value_at)
    width, height, packing, channels = (tags.get(tag, 1) for tag in (256, 257, 259, 277))

    pixel_ns = PIXEL_NS["TIFF"]
    remark = ""
    if packing == LZMA:
        pixel_ns = LZMA_PIXEL_NS
        remark = " packed by LZMA"
    return _count_pixels("TIFF", width, height, pixel_ns * max(1, channels / 3), remark)


def _read_ppm(file: File) -> Cost:
    match = PPM.match(file, 0, LONGEST_HEADER)
    if match is None:
        seconds = len(file) * COMMENT_BYTE_NS * NANO
        return Cost(seconds, 0, f"{len(file):,} bytes of a PPM with a long header")
    width = int(match[1])
    height = int(match[2])
    largest = int(match[3] or 1)
    kind = file[1:2]
    # levels that Pillow has no mode for; it takes 16 bits of gray as they are, and not of colours
    unscaled = {b"5": (255, 65535), b"6": (255,)}
    if kind in b"123":
        cost = _count_pixels("PPM", width, height, PIXEL_NS["PPM"], ", written as text,")
        return _add_ns(cost, len(file) * TEXT_BYTE_NS)
    if kind in b"56" and largest not in unscaled[bytes(kind)]:
        cost = _count_pixels("PPM", width, height, PIXEL_NS["PPM"], f" of {largest + 1} levels")
        return _add_ns(cost, len(file) * LEVEL_BYTE_NS)
    return _count_pixels("PPM", width, height, PIXEL_NS["PPM"])


FORMATS: tuple[tuple[int, bytes | tuple[bytes, ...], Callable[[File], Cost]], ...] = (
    (0, b"\xff\xd8", _read_jpeg),
    (0, b"\x89PNG\r\n\x1a\n", _read_png),
    (0, b"RIFF", _read_webp),
    (0, (b"GIF87a", b"GIF89a"), _read_gif),
    (0, b"BM", _read_bmp),
    (0, (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _read_tiff),
    (4, (b"ftypavif", b"ftypavis"), _read_avif),
    (0, b"P", _read_ppm),
)
"""Where a format's mark stands, the mark, and what reads the header behind it."""
