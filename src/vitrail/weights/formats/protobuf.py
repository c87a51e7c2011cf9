"""The protobuf wire format, as far as MindSpore's two kinds of file need it."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator

from vitrail.files import Buffer

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
"""How the value of a field is stored, in the low three bits of its key."""


def varint(value: int) -> bytes:
    """Return a whole number in base 128, the lowest digits first; a negative one as its 64-bit complement."""
    value &= (1 << 64) - 1
    digits = bytearray()
    while value > 0x7F:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def integer(field: int, value: int) -> bytes:
    """Return a field that holds a whole number, a truth value or a member of an enum."""
    return varint(field << 3 | VARINT) + varint(value)


def integers(field: int, values: Iterable[int]) -> bytes:
    """Return one field for each of several whole numbers."""
    return b"".join(integer(field, value) for value in values)


def real(field: int, value: float) -> bytes:
    """Return a field that holds a float of 32 bits."""
    return varint(field << 3 | FIXED32) + struct.pack("<f", value)


def header(field: int, size: int) -> bytes:
    """Return what stands before `size` bytes of text, content or message."""
    return varint(field << 3 | LENGTH) + varint(size)


def block(field: int, content: Buffer | str) -> bytes:
    """Return a field that holds text, bytes or a message."""
    data = content.encode() if isinstance(content, str) else content
    return header(field, len(data)) + data


def read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """Return the number that begins at a position, and the position behind it.

    Raises:
        ValueError: The number does not end within ten bytes, or within the data.
    """
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("ends within a number")
        digit = data[at]
        value |= (digit & 0x7F) << shift
        at += 1
        if digit < 0x80:
            return value & ((1 << 64) - 1), at
    raise ValueError("has a number of more than ten bytes")


def read_fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number and the value of each field, in the order of the file; a view of the data where it is long.

    Raises:
        ValueError: A field is of no known kind, or longer than what is left.
    """
    at = 0
    while at < len(data):
        key, at = read_varint(data, at)
        field, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = read_varint(data, at)
            yield field, value
            continue
        if kind == LENGTH:
            size, at = read_varint(data, at)
        elif kind in (FIXED32, FIXED64):
            size = 4 if kind == FIXED32 else 8
        else:
            raise ValueError(f"has a field of the unknown kind {kind}")
        if size > len(data) - at:
            raise ValueError(f"ends within a field of {size:,} bytes")
        yield field, data[at : at + size]
        at += size


def signed(value: int) -> int:
    """Return a number as protobuf's int64 means it."""
    return value - (1 << 64) if value >> 63 else value
