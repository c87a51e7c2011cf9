"""Pictures with their structure broken on purpose, and what each decoder makes of them.

Chunks, segments and blocks are cut, changed, swapped, repeated or put in, with checksums left as they were or made
right again; bytes are changed, lost and put before and behind.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image

from vitrail.images import decoding
from vitrail.images.decoding import decode
from vitrail.images.pixels import RGB, PixelFormat, Pixels, UnreadableImage

SIDE = (37, 50)
"""Height and width of the pictures: no multiples of a block."""
PNG_BEGINS = b"\x89PNG\r\n\x1a\n"
ADDED = (
    b"tEXt", b"zTXt", b"iTXt", b"eXIf", b"tIME", b"gAMA", b"pHYs", b"PLTE", b"tRNS", b"iCCP", b"acTL", b"fcTL", b"quux",
    b"QUUX", b"IDAT", b"IEND", b"IHDR",
)  # fmt: skip
WEBP_ADDED = (b"EXIF", b"XMP ", b"ICCP", b"ALPH", b"VP8 ", b"VP8L", b"VP8X", b"ANIM", b"ANMF", b"quux")
Pieces = list[tuple[bytes, bytes]]
"""Chunks or segments by their kind; what is not of these has an empty one."""


def pictures() -> dict[str, list[bytes]]:
    """Return small pictures in each format, of every way to store them that the formats have."""
    draw = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(draw.normal(0, 1.2, (*SIDE, 3)), 0), 1)
    image = Image.fromarray(np.clip(128 + smooth, 0, 255).astype(np.uint8))
    gray, clear = image.convert("L"), image.copy()
    clear.putalpha(Image.fromarray(draw.integers(0, 256, SIDE, dtype=np.uint8)))
    two = {"save_all": True, "append_images": [image.rotate(180)]}
    return {
        "JPEG": [
            _encoded(image, "JPEG"), _encoded(image, "JPEG", progressive=True), _encoded(gray, "JPEG"),
            _encoded(image, "JPEG", restart_marker_blocks=2), _encoded(image, "JPEG", subsampling=0, optimize=True),
            _encoded(image.convert("CMYK"), "JPEG"),
        ],
        "PNG": [
            _encoded(image, "PNG"), _encoded(gray, "PNG"), _encoded(clear, "PNG"), _encoded(clear.convert("LA"), "PNG"),
            _encoded(image.quantize(9), "PNG"), _encoded(image.quantize(9), "PNG", transparency=0),
            _encoded(gray.convert("1"), "PNG"), _encoded(image, "PNG", **two), _interlaced(np.asarray(gray)),
        ],
        "WebP": [
            _encoded(image, "WEBP"), _encoded(image, "WEBP", lossless=True), _encoded(clear, "WEBP"),
            _encoded(clear, "WEBP", lossless=True), _encoded(image, "WEBP", exif=b"Exif\0\0"),
            _encoded(image, "WEBP", **two),
        ],
        "GIF": [_encoded(image, "GIF"), _encoded(gray, "GIF"), _encoded(image, "GIF", **two)],
    }  # fmt: skip


def damaged(form: str, data: bytes, draw: random.Random) -> bytes:
    """Return a file with something wrong in its structure, its content, or both."""
    if form in TAKEN_APART and draw.random() < 0.7:
        apart, together = TAKEN_APART[form]
        pieces = apart(data)
        for _ in range(draw.choice((1, 1, 1, 2))):
            _break(pieces, draw)
        data = together(pieces, draw)
    for _ in range(draw.choice((0, 0, 1, 2)) if form in TAKEN_APART else 1):
        data = _bent(data, draw)
    return data


def read(data: bytes, fast: bool, wanted: PixelFormat = RGB) -> Pixels | str:
    """Decode with torchcodec or without it; return the pixels, or why there are none."""
    kept = decoding.fast_decoders
    decoding.fast_decoders = kept if fast else dict
    try:
        return decode(data, wanted)
    except UnreadableImage as error:
        return str(error)
    finally:
        decoding.fast_decoders = kept


def compare(form: str, files: int) -> Iterator[tuple[str, bytes]]:
    """Yield what comes out of each damaged file of a format: "both read", "both refuse" or "differ"."""
    draw, originals = random.Random(form), pictures()[form]
    for number in range(files):
        data = damaged(form, originals[number % len(originals)], draw)
        with_torchcodec, alone = read(data, fast=True), read(data, fast=False)
        if isinstance(with_torchcodec, str) or isinstance(alone, str):
            same = isinstance(with_torchcodec, str) and isinstance(alone, str)
            yield "both refuse" if same else "differ", data
        else:
            yield "both read" if torch.equal(with_torchcodec, alone) else "differ", data


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _interlaced(gray: np.ndarray) -> bytes:
    """Return a PNG in Adam7's seven passes, which Pillow cannot write."""
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
    rows = b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in gray[top::down, left::right] if row.size
    )
    head = struct.pack(">IIBBBBB", gray.shape[1], gray.shape[0], 8, 0, 0, 0, 1)
    pieces = [(b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return PNG_BEGINS + b"".join(_png_chunk(*piece) for piece in pieces)


def _png_chunk(kind: bytes, content: bytes, wrong: int = 0) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content) ^ wrong)


def _png_apart(data: bytes) -> Pieces:
    pieces, at = [], 8
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        pieces.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return pieces


def _png_together(pieces: Pieces, draw: random.Random) -> bytes:
    if draw.random() < 0.3:  # pixels in many chunks, as most writers have them
        parts: Pieces = []
        for kind, content in pieces:
            cut = draw.randrange(len(content)) if kind == b"IDAT" and content else 0
            parts += [(kind, content[:cut]), (kind, content[cut:])] if cut else [(kind, content)]
        pieces[:] = parts
    wrong = draw.randrange(len(pieces)) if pieces and draw.random() < 0.3 else -1
    return PNG_BEGINS + b"".join(
        _png_chunk(*piece, wrong=draw.getrandbits(31) + 1 if number == wrong else 0)
        for number, piece in enumerate(pieces)
    )


def _jpeg_apart(data: bytes) -> Pieces:
    """Part a JPEG at every marker, those within its scans included."""
    pieces, begin, at = [], 0, 0
    while (at := data.find(b"\xff", at + 1)) >= 0:
        if at + 1 < len(data) and data[at + 1] not in (0, 0xFF):
            pieces.append((data[begin : begin + 2], data[begin + 2 : at]))
            begin = at
    return [*pieces, (data[begin : begin + 2], data[begin + 2 :])]


def _jpeg_together(pieces: Pieces, draw: random.Random) -> bytes:
    return b"".join(kind + content for kind, content in pieces)


def _webp_apart(data: bytes) -> Pieces:
    pieces, at = [], 12
    while at < len(data):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        pieces.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return pieces


def _webp_together(pieces: Pieces, draw: random.Random) -> bytes:
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(content)) + content + bytes(len(content) % 2) for kind, content in pieces
    )
    size = len(body) if draw.random() < 0.8 else max(0, len(body) + draw.choice((-9, -2, -1, 1, 2, 9, 10**6)))
    return b"RIFF" + struct.pack("<I", size) + body


TAKEN_APART: dict[str, tuple[Callable[[bytes], Pieces], Callable[[Pieces, random.Random], bytes]]] = {
    "JPEG": (_jpeg_apart, _jpeg_together),
    "PNG": (_png_apart, _png_together),
    "WebP": (_webp_apart, _webp_together),
}


def _break(pieces: Pieces, draw: random.Random) -> None:
    """Do one thing to the pieces of a file."""
    at = draw.randrange(len(pieces))
    kind, content = pieces[at]
    how = draw.choice(("drop", "repeat", "swap", "cut", "cut", "flip", "flip", "grow", "add", "add", "inside"))
    if how == "drop" and len(pieces) > 1:
        del pieces[at]
    elif how == "repeat":
        pieces.insert(draw.randrange(len(pieces) + 1), (kind, content))
    elif how == "swap":
        other = draw.randrange(len(pieces))
        pieces[at], pieces[other] = pieces[other], pieces[at]
    elif how == "cut":
        pieces[at] = kind, content[: draw.randrange(len(content) + 1)]
    elif how == "flip" and content:
        bent = bytearray(content)
        bent[draw.randrange(len(bent))] ^= 1 << draw.randrange(8)
        pieces[at] = kind, bytes(bent)
    elif how == "grow":
        pieces[at] = kind, content + draw.randbytes(draw.choice((1, 2, 9, 300)))
    elif how == "add":
        pieces.insert(draw.randrange(len(pieces) + 1), _new_piece(kind, draw))
    elif kind == b"IDAT":  # what is unpacked is wrong, and all around it is right
        pieces[at] = kind, _repacked(content, draw)


def _new_piece(like: bytes, draw: random.Random) -> tuple[bytes, bytes]:
    """Return a piece of some kind with any content, which may be far too much of it."""
    content = draw.choice(
        (b"", draw.randbytes(4), draw.randbytes(40), b"key\0\0" + zlib.compress(bytes(draw.choice((9, 2_000_000)))))
    )
    if len(like) == 2:
        marker = bytes(
            (0xFF, draw.choice((0xC0, 0xC2, 0xC4, 0xD0, 0xD3, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xE1, 0xEE, 0xFE)))
        )
        return marker, struct.pack(">H", len(content) + 2) + content
    return draw.choice(WEBP_ADDED if like in (*WEBP_ADDED, b"RIFF") else ADDED), content


def _repacked(content: bytes, draw: random.Random) -> bytes:
    try:
        rows = bytearray(zlib.decompress(content))
    except zlib.error:
        return content
    how = draw.choice(("filter", "short", "long", "checksum", "behind"))
    if how == "filter":
        rows[draw.randrange(len(rows))] = draw.randrange(256)
    elif how == "short":
        del rows[draw.randrange(len(rows)) :]
    elif how == "long":
        rows += draw.randbytes(draw.choice((1, 500)))
    packed = zlib.compress(bytes(rows))
    if how == "checksum":
        packed = packed[:-4] + draw.randbytes(4)
    return packed + draw.randbytes(9) if how == "behind" else packed


def _bent(data: bytes, draw: random.Random) -> bytes:
    """Do one thing to a file's bytes, whatever they are."""
    how = draw.choice(("flip", "flip", "byte", "cut", "zeros", "behind", "before", "lose", "twice"))
    at = draw.randrange(len(data)) if data else 0
    bent = bytearray(data)
    if how in ("flip", "byte") and bent:
        bent[at] = bent[at] ^ 1 << draw.randrange(8) if how == "flip" else draw.randrange(256)
    elif how == "cut":
        del bent[at:]
    elif how == "zeros":  # a download that stopped, into a file of the whole size
        bent[at:] = bytes(len(bent) - at)
    elif how == "behind":
        bent += draw.choice((b"\0", draw.randbytes(5), draw.randbytes(3000), data))
    elif how == "before" and draw.random() < 0.2:
        bent[:0] = draw.choice((b"\0", b"\r\n", draw.randbytes(5)))
    elif how == "lose":
        del bent[at : at + draw.randint(1, 9)]
    elif how == "twice":
        bent[at:at] = bent[at : at + draw.randint(1, 40)]
    return bytes(bent)
