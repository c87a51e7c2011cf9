"""MindSpore's .ckpt file, read and written without MindSpore.

A file is one protobuf message, a list of values: a name and a tensor (its sizes, type and raw
little-endian content), or a name and a hash table, which none of these models has. A tensor of more
than SLICE bytes is cut into values that follow one another under the same name, each with the sizes
of the whole. A checksum, where one was asked for, ends it.
"""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.files import Buffer
from vitrail.weights.formats.protobuf import block, header, integer, integers, read_fields, signed

SLICE = 512 * 2**20
MAX_VALUES = 200_000
"""Values of a file; the states of an optimizer are among them."""
MAX_DIMS = 16
CHECKSUM = b"crc_num"
CHECKSUM_DIGITS = 10
CIPHERS = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}
"""Ciphers by the first four bytes of an encrypted file."""
TYPES = {
    "Bool": torch.bool,
    "Int8": torch.int8,
    "Int16": torch.int16,
    "Int32": torch.int32,
    "Int64": torch.int64,
    "UInt8": torch.uint8,
    "UInt16": torch.uint16,
    "UInt32": torch.uint32,
    "UInt64": torch.uint64,
    "Float16": torch.float16,
    "Float32": torch.float32,
    "Float64": torch.float64,
    "BFloat16": torch.bfloat16,
}


@dataclass
class _Slices:
    """One value of a file: a tensor or text, in one or several slices."""

    name: str
    shape: tuple[int, ...]
    kind: str
    parts: list[memoryview]


def read_ckpt(path: Path) -> dict[str, Tensor | str]:
    """Read all values of a file, in its order; each tensor is copied once, out of the mapped file.

    Raises:
        CheckpointError: Not such a file, cut, changed, encrypted, or with a hash table.
    """
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ValueError("is empty")
            # not closed by hand: where reading fails, the traceback still holds views of it
            return _read(memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        advice = "" if ";" in str(error) else "; use the original"
        raise CheckpointError(
            f"{path}: cannot be read as a MindSpore checkpoint: it {error}{advice}"
        ) from None


def encode_ckpt(values: Mapping[str, Tensor | str], checksum: bool = False) -> Iterator[Buffer]:
    """Yield the parts of a file that holds these values, the same bytes that MindSpore writes.

    Args:
        values: By MindSpore's names.
        checksum: End the file with one, which MindSpore 2.0 cannot read.

    Raises:
        CheckpointError: MindSpore has no name for a tensor's type.
    """
    crc = 0
    for part in _encode(values):
        crc = zlib.crc32(part, crc)
        yield part
    if checksum:
        yield CHECKSUM + crc.to_bytes(CHECKSUM_DIGITS, "big")


def _read(data: memoryview) -> dict[str, Tensor | str]:
    if cipher := CIPHERS.get(int.from_bytes(data[:4], "little")):
        raise ValueError(
            f"is encrypted ({cipher}); decrypt it with MindSpore (load_checkpoint with dec_key) "
            "and save it"
        )
    end = len(data) - len(CHECKSUM) - CHECKSUM_DIGITS
    if end >= 0 and data[end : end + len(CHECKSUM)] == CHECKSUM:
        if zlib.crc32(data[:end]) != int.from_bytes(data[end + len(CHECKSUM) :], "big"):
            raise ValueError("does not match its checksum")
        data = data[:end]
    values: dict[str, Tensor | str] = {}
    pending: _Slices | None = None
    for field, value in read_fields(data):
        if field != 1 or not isinstance(value, memoryview):
            raise ValueError(f"has an unknown field {field}")
        first = _read_value(value)
        if pending and pending.name == first.name:
            if (pending.shape, pending.kind) != (first.shape, first.kind):
                raise ValueError(f"gives slices of {first.name} other sizes or types")
            pending.parts += first.parts
            continue
        if pending:
            values[pending.name] = _join(pending)
        if first.name in values:
            raise ValueError(f"has {first.name} twice")
        if len(values) > MAX_VALUES:
            raise ValueError(f"has more than {MAX_VALUES:,} values")
        pending = first
    if pending:
        values[pending.name] = _join(pending)
    return values


def _read_value(data: memoryview) -> _Slices:
    name = tensor = None
    for field, value in read_fields(data):
        if not isinstance(value, memoryview):
            raise ValueError(f"has an unknown field {field} in a value")
        if field == 1:
            name = _text(value)
        elif field == 2:
            tensor = value
        elif field == 3:
            raise ValueError("has a hash table (maptensor); save it without, no model here has one")
    if name is None or tensor is None:
        raise ValueError("has a value without a name or a tensor")
    shape, kind, content = [], None, None
    for field, value in read_fields(tensor):
        if field == 1 and isinstance(value, int):
            shape.append(signed(value))
        elif field == 2 and isinstance(value, memoryview):
            kind = _text(value)
        elif field == 3 and isinstance(value, memoryview):
            content = value
        else:
            raise ValueError(f"has an unknown field {field} in {name}")
    if kind is None or content is None:
        raise ValueError(f"has no type or no content for {name}")
    return _Slices(name, tuple(shape), kind, [content])


def _join(value: _Slices) -> Tensor | str:
    name, shape, kind, parts = value.name, value.shape, value.kind, value.parts
    size = sum(map(len, parts))
    if kind == "str":
        try:
            return b"".join(parts).decode("utf-32-le")
        except UnicodeDecodeError:
            raise ValueError(f"has text that is none for {name}") from None
    if kind not in TYPES:
        raise ValueError(f"has values of the unknown type {kind[:20]!r} for {name}")
    if shape == (0,) and size:
        shape = ()  # as MindSpore 2.0 writes a single number
    dtype = TYPES[kind]
    if len(shape) > MAX_DIMS:
        raise ValueError(f"has {len(shape):,} sizes for {name}; no weight has so many")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"has {size:,} bytes for {name} of {kind} {list(shape)}")
    tensor = torch.empty(shape, dtype=dtype)
    target = tensor.view(-1).view(torch.uint8).numpy()
    start = 0
    for part in parts:
        target[start : start + len(part)] = np.frombuffer(part, np.uint8)
        start += len(part)
    return tensor


def _encode(values: Mapping[str, Tensor | str]) -> Iterator[Buffer]:
    names = {dtype: name for name, dtype in TYPES.items()}
    for name, value in values.items():
        if isinstance(value, str):
            content, kind, sizes = memoryview(value.encode("utf-32-le")), "str", integer(1, 0)
        elif value.dtype not in names:
            raise CheckpointError(
                f"{name} is {value.dtype}, which MindSpore cannot hold; convert it first"
            )
        else:
            # a bool's bytes, or a bfloat16's, are not numpy's to see
            content = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data
            kind, sizes = names[value.dtype], integers(1, value.shape)
        for start in range(0, max(len(content), 1), SLICE):
            part = content[start : start + SLICE]
            before = sizes + block(2, kind) + header(3, len(part))
            tensor = block(1, name) + header(2, len(before) + len(part)) + before
            yield header(1, len(tensor) + len(part)) + tensor
            yield part


def _text(data: memoryview) -> str:
    try:
        return bytes(data).decode()
    except UnicodeDecodeError:
        raise ValueError("has a name that is not text") from None
