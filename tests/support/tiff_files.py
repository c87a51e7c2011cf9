"""TIFFs written sample by sample, so that tests know what is in them: any bits, colours, planes, order and alpha."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np

WHITE_IS_ZERO, GRAY, RGB, PALETTE, INKS, YCBCR, LAB = 0, 1, 2, 3, 5, 6, 8
STORED, LZW, DEFLATE = 1, 5, 8


def packed(values: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Pack rows of samples as TIFF defines it: whole bytes in the file's order, all else highest bit first."""
    if bits % 8 == 0:
        size = 4 if bits > 16 else bits // 8
        wide = values.astype(f"{order}u{size}").tobytes()
        if bits != 24:
            return wide
        four = np.frombuffer(wide, np.uint8).reshape(-1, 4)
        return (four[:, :3] if order == "<" else four[:, 1:]).tobytes()
    spread = (values[..., None].astype(np.int64) >> np.arange(bits)[::-1]) & 1
    return np.packbits(spread.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def tiff_file(
    samples: np.ndarray,
    bits: int,
    photometric: int = GRAY,
    *,
    order: str = "<",
    planar: bool = False,
    extra: Iterable[int] = (),
    palette: np.ndarray | None = None,
    kind: int = 1,
    fill: int = 1,
    compression: int = STORED,
    rows: int = 7,
    tile: int = 0,
    pages: int = 1,
    tags: dict[int, Any] | None = None,
) -> bytes:
    """Write samples (h, w, s), in strips of some rows or in square tiles; of several pages, each has one sample."""
    parts = [samples[:, :, number : number + 1] for number in range(pages)] if pages > 1 else [samples]
    out = bytearray((b"II*\0" if order == "<" else b"MM\0*") + bytes(4))
    link = 4
    for part in parts:
        height, width, count = part.shape
        pieces = []
        for plane in range(count) if planar else (slice(None),):
            channel = part[:, :, plane : plane + 1] if isinstance(plane, int) else part
            if tile:
                whole = np.zeros((-(-height // tile) * tile, -(-width // tile) * tile, channel.shape[2]), channel.dtype)
                whole[:height, :width] = channel
                blocks = [
                    whole[top : top + tile, left : left + tile]
                    for top in range(0, height, tile)
                    for left in range(0, width, tile)
                ]
            else:
                blocks = [channel[top : top + rows] for top in range(0, height, rows)]
            for block in blocks:
                raw = packed(block.reshape(len(block), -1), bits, order)
                raw = zlib.compress(raw) if compression == DEFLATE else raw
                if fill == 2:
                    raw = np.packbits(np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")).tobytes()
                pieces.append(raw)
        offsets = []
        for piece in pieces:
            offsets.append(len(out))
            out += piece + bytes(len(piece) % 2)
        entries: dict[int, Any] = {
            256: width, 257: height, 258: (bits,) * count, 259: compression, 262: photometric, 266: fill, 277: count,
            284: 2 if planar else 1, 339: (kind,) * count, **(tags or {}),
        }  # fmt: skip
        entries |= {322: tile, 323: tile, 324: offsets, 325: [*map(len, pieces)]} if tile else {}
        entries |= {} if tile else {273: offsets, 278: rows, 279: [*map(len, pieces)]}
        entries |= {338: tuple(extra)} if tuple(extra) else {}
        entries |= {} if palette is None else {320: palette.reshape(-1).tolist()}
        struct.pack_into(f"{order}I", out, link, len(out))
        link = _write_directory(out, entries, order)
    return bytes(out)


def _write_directory(out: bytearray, entries: dict[int, Any], order: str) -> int:
    """Write the tags, each of 16 or 32 bits, and return where the place of the next page stands."""
    at = len(out)
    out += struct.pack(f"{order}H", len(entries)) + bytes(12 * len(entries) + 4)
    for number, (tag, value) in enumerate(sorted(entries.items())):
        values = [*value] if isinstance(value, list | tuple) else [value]
        kind, letter = (4, "I") if tag in (273, 279, 324, 325) else (3, "H")
        content = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(content) > 4:
            content, body = struct.pack(f"{order}I", len(out)), content
            out += body + bytes(len(body) % 2)
        struct.pack_into(f"{order}HHI4s", out, at + 2 + 12 * number, tag, kind, len(values), content.ljust(4, b"\0"))
    return at + 2 + 12 * len(entries)
