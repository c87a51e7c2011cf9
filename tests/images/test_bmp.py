"""BMP packed by run lengths, and the layouts around it: right, whichever Pillow is installed, or refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from support.images import read, reason

WIDTH, HEIGHT = 8, 2


def bmp(
    runs: bytes, *, bits: int = 4, width: int = WIDTH, height: int = HEIGHT, palette: np.ndarray | None = None
) -> bytes:
    """Return a BMP of runs: 4 bits are packed by RLE4, 8 by RLE8. The last row comes first."""
    colours = np.array([[17 * k % 256] * 3 for k in range(2**bits)]) if palette is None else palette
    table = b"".join(struct.pack("4B", *row[::-1], 0) for row in colours.tolist())
    begin = 14 + 40 + len(table)
    info = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, 2 if bits == 4 else 1, len(runs), 1, 1, len(colours), 0
    )
    return struct.pack("<2sIHHI", b"BM", begin + len(runs), 0, 0, begin) + info + table + runs


def levels(data: bytes) -> list[list[int]]:
    return (read(data, 1)[:, :, 0] // 17).tolist()


def test_an_odd_run_of_4_bit_pixels_moves_nothing() -> None:
    runs = bytes.fromhex("00 03 12 30 05 44 00 00  08 55 00 01".replace(" ", ""))
    assert levels(bmp(runs)) == [[5] * 8, [1, 2, 3, 4, 4, 4, 4, 4]]


@pytest.mark.parametrize("length", range(3, 24))
def test_runs_of_every_length_are_read(length: int) -> None:
    row = [(3 * k) % 16 for k in range(length)]
    packed = bytes(a << 4 | b for a, b in zip(row[::2], [*row[1::2], 0][: len(row[::2])], strict=True))
    runs = bytes((0, length)) + packed + bytes(len(packed) % 2) + b"\1\x70\0\0" + bytes((length + 1, 0x9A)) + b"\0\1"
    expected = [([9, 10] * length)[: length + 1], [*row, 7]]
    assert levels(bmp(runs, width=length + 1)) == expected
    runs = bytes((0, length, *row)) + bytes(length % 2) + b"\1\7\0\0" + bytes((length + 1, 9)) + b"\0\1"
    assert levels(bmp(runs, bits=8, width=length + 1)) == [[9] * (length + 1), [*row, 7]]


def test_jumps_and_short_rows_leave_the_first_colour() -> None:
    runs = bytes.fromhex("02110000 0002 0301 0233 0355 0001".replace(" ", ""))
    assert levels(bmp(runs, height=3)) == [[0, 0, 0, 3, 3, 5, 5, 5], [0] * 8, [1, 1, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        (b"\x08\x11\0\0", "is cut off"),
        (b"\x08\x11\0\0\0\x06\x11", "is cut off"),
        (b"\x08\x11\0\0\0\2\1", "is cut off"),
        (b"\x08\x11\0\0\0\1", "its runs end before its last pixel"),
        (b"\x08\x11\0\0\x05\x22\0\1", "its runs end before its last pixel"),
    ],
)
def test_runs_that_end_too_early_are_refused(runs: bytes, message: str) -> None:
    assert reason(bmp(runs)) == message


def test_palettes_of_colours_and_of_grays_are_kept() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 3))
    runs = b"\0\x08\x01\x23\x45\x67\0\0\0\x08\x89\xab\xcd\xef\0\1"
    expected = colours[[[8, 9, 10, 11, 12, 13, 14, 15], [0, 1, 2, 3, 4, 5, 6, 7]]]
    assert np.array_equal(read(bmp(runs, palette=colours)), expected)
    grays = np.arange(16)[:, None].repeat(3, 1)  # of which Pillow makes no palette
    assert np.array_equal(read(bmp(runs, palette=grays), 1)[:, :, 0], [range(8, 16), range(8)])
    black_and_white = np.array([[0] * 3, [255] * 3])
    runs = b"\0\x08\x01\x01\x10\x11\0\0\x08\x10\0\1"
    expected = 255 * np.array([[1, 0, 1, 0, 1, 0, 1, 0], [0, 1, 0, 1, 1, 0, 1, 1]])
    assert np.array_equal(read(bmp(runs, palette=black_and_white), 1)[:, :, 0], expected)
    upside_down = bytearray(bmp(runs, palette=black_and_white))
    struct.pack_into("<i", upside_down, 22, -HEIGHT)
    assert np.array_equal(read(bytes(upside_down), 1)[:, :, 0], expected[::-1])
