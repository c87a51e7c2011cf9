"""What `torch.save`, `torch.jit.save` and `pickle.dump` have written, opened without torch and without running it."""

from __future__ import annotations

import io
import mmap
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.weights.digest import COMMENT
from vitrail.weights.formats.pickled import Pickle, UnreadablePickle

MAX_PICKLE = 256 * 2**20
"""Bytes of a description; that of a training's save has a few hundred thousand."""
LONGEST_COMMENT = 2**16 - 1
"""Bytes of the longest comment that a zip may end with."""
MAX_DIRECTORY = 16 * 2**20
"""Bytes of a zip's list of contents; that of 20,000 tensors has 3 million."""
MAGIC = 0x1950A86A20F9469CFC6C
"""What the first of the five pickles holds in the format before PyTorch 1.6."""
NOT_TORCH = "is an archive that torch.save did not write; give the weight file itself"
CUT_OFF = "is cut off: it ends before its tensors do; copy or download it again"


@dataclass(frozen=True)
class Content:
    """What a file holds."""

    value: Any
    """Plain values, `Held` tensors and `Inert` stand-ins."""
    classes: Mapping[str, int]
    """Names of the classes that were replaced by stand-ins, and how many objects of each."""


def read_torch(path: Path) -> Content:
    """Read what a file holds; its tensors stay in it until they are asked for.

    Raises:
        CheckpointError: It is cut off, damaged, or something other than weights; the reason is in
            the message.
    """
    try:
        with path.open("rb") as file:
            is_archive = file.read(4) == b"PK\x03\x04"
        return _read_archive(path) if is_archive else _read_pickles(lambda: _mapped(path))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: {explain_error(error)}") from error


def _mapped(path: Path) -> Any:
    """Return a file as memory, of which no more can be read than is there, however much a pickle asks for."""
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def explain_error(error: Exception) -> str:
    """Return the clause that says why a file cannot be read."""
    return (
        str(error)
        if isinstance(error, UnreadablePickle)
        else f"cannot be read ({error}); use the original"
    )


def _read_archive(path: Path) -> Content:
    if not _has_end(path):
        raise UnreadablePickle(
            "is cut off: its end, with the list of its contents, is missing; copy or download it "
            "again"
        )
    check_directory(path)
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    described = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(described) != 1:
        raise UnreadablePickle(_other_archive([*entries]))
    folder = described[0].removesuffix("data.pkl")
    # torch.save never compresses, so what would grow when it is read is not its
    stored = [entry for entry in entries.values() if not entry.compress_type]
    if (
        sum(entry.file_size for entry in stored) > path.stat().st_size
        or entries[described[0]].compress_type
        or not _has_one_directory(path)
    ):
        raise UnreadablePickle(NOT_TORCH)
    for entry in stored:
        if not entry.CRC:
            entry.CRC = None  # type: ignore[assignment]  # torch writes 0 where it was told to compute none
    if entries[described[0]].file_size > MAX_PICKLE:
        raise UnreadablePickle(
            f"has a description of more than {MAX_PICKLE:,} bytes; save its state_dict() alone"
        )
    swap = f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") == b"big"
    known: dict[str, bytearray] = {}

    def source(key: str, dtype: torch.dtype) -> Tensor:
        name = f"{folder}data/{key}"
        if name not in entries or entries[name].compress_type:
            reason = NOT_TORCH if name in entries else CUT_OFF
            raise UnreadablePickle(reason)
        if key not in known:
            known[key] = bytearray(archive.read(entries[name]))
        return _tensor(known[key], dtype, swap)

    pickle = Pickle(source, _read_nested)
    return Content(pickle.load(archive.read(described[0])), pickle.names)


def _tensor(data: bytearray, dtype: torch.dtype, swap: bool = False) -> Tensor:
    whole = len(data) // dtype.itemsize
    if not whole:
        return torch.empty(0, dtype=dtype)
    tensor = torch.frombuffer(data, dtype=dtype, count=whole)
    if swap:
        tensor = tensor.clone()
        tensor.untyped_storage().byteswap(dtype)
    return tensor


def _other_archive(names: list[str]) -> str:
    """Return why a zip archive holds no weights that can be read, by the names in it."""
    endings = (".pth", ".pt", ".ckpt", ".safetensors", ".tar", ".bin")
    inside = [name for name in names if name.endswith(endings)]
    if any(name.endswith((".weights.h5", "model.weights.h5")) for name in names):
        return "is a model of Keras; only weights of PyTorch and MindSpore are read, in .pth, .safetensors or .ckpt"
    if names and all(name.endswith(".npy") for name in names):
        return (
            "is an archive of NumPy arrays (.npz); save them by name as tensors instead: "
            "torch.save({name: torch.from_numpy(array) for name, array in "
            "numpy.load(FILE).items()}, 'weights.pth')"
        )
    if any("archive_format" in name or "/models/" in name for name in names):
        return (
            "is an exported program of PyTorch (.pt2), not weights; evaluate, predict, bench and "
            "serve run it where its name ends in .pt2"
        )
    if len(inside) == 1:
        return f"is a zip archive that holds {inside[0]}; unpack it and give that file"
    listed = ", ".join((inside or names)[:3]) or "nothing"
    return f"is a zip archive that torch.save did not write (it holds {listed}); give the weight file itself"


def _has_end(path: Path) -> bool:
    """Say whether a zip's end is there, with or without a comment behind it.

    `zipfile.is_zipfile` says from Python 3.14 on whether all before it is right too.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 22 - LONGEST_COMMENT, 0))
        return b"PK\x05\x06" in file.read()


def check_directory(path: Path) -> None:
    """Refuse a zip archive whose list of contents alone would fill the memory.

    Raises:
        UnreadablePickle: It has more entries than any file of weights or programs, or none are
            found where it ends.
    """
    length, _, end = _directory(path)
    if end < 0:  # other readers search further, and so find what was not counted here
        raise UnreadablePickle(
            "is cut off at its end, or another program added to it; use the original"
        )
    if length > MAX_DIRECTORY:
        raise UnreadablePickle(
            f"has a list of contents of {length:,} bytes, and {MAX_DIRECTORY:,} at most are read"
        )


def _has_one_directory(path: Path) -> bool:
    """Say whether a zip's directory ends where the record of its end begins, so that all readers find the same one."""
    length, offset, end = _directory(path)
    return offset + length == end


def _directory(path: Path) -> tuple[int, int, int]:
    """Return the length of a zip's directory, where it begins, and where it ends; no length without one."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - 98 - COMMENT, 0))
        tail = file.read()
    # the digest of an exported file
    if tail[-COMMENT - 2 : -COMMENT] == COMMENT.to_bytes(2, "little"):
        size, tail = size - COMMENT, tail[:-COMMENT]
    tail = tail[-98:]
    end, wide = tail[-22:], tail[:56] if tail[:4] == b"PK\x06\x06" else b""
    length, offset = int.from_bytes(end[12:16], "little"), int.from_bytes(end[16:20], "little")
    if wide and 0xFFFFFFFF in (length, offset):
        length, offset = (
            int.from_bytes(wide[40:48], "little"),
            int.from_bytes(wide[48:56], "little"),
        )
    if end[:4] != b"PK\x05\x06":
        return 0, 0, -1
    return length, offset, size - (98 if wide else 22)


def _read_pickles(reopen: Callable[[], IO[bytes]], *, within: bool = False) -> Content:
    """Read the format before PyTorch 1.6, five pickles and the storages behind them, or else one plain pickle."""
    places: dict[str, tuple[int, int]] = {}
    known: dict[str, bytearray] = {}

    def source(key: str, dtype: torch.dtype) -> Tensor:
        if key not in places:
            raise UnreadablePickle(CUT_OFF)
        if key not in known:
            start, size = places[key]
            with reopen() as file:
                file.seek(start)
                known[key] = bytearray(file.read(size))
        return _tensor(known[key], dtype)

    read_nested = _refuse_nested if within else _read_nested
    pickle = Pickle(source, read_nested)
    with reopen() as file:
        first = pickle.load(file)
        if first != MAGIC:
            return Content(first, pickle.names)
        _, machine, value, keys = (pickle.load(file) for _ in range(4))
        if not isinstance(machine, dict) or not isinstance(keys, list):
            raise UnreadablePickle(
                "cannot be read (its parts are in no order of torch.save's); use the original"
            )
        if not machine.get("little_endian", True):
            raise UnreadablePickle(
                "was written on a machine of another byte order; save it again on a usual one"
            )
        places |= _places(file, keys, pickle.storages)
    return Content(value, pickle.names)


def _places(
    file: IO[bytes], keys: list[Any], types: Mapping[str, torch.dtype]
) -> dict[str, tuple[int, int]]:
    """Return where each storage begins, and its bytes."""
    spans = {}
    at = file.tell()
    file.seek(0, 2)
    end = file.tell()
    for key in keys:
        file.seek(at)
        head = file.read(8)
        size = int.from_bytes(head, "little") * types.get(key, torch.uint8).itemsize
        at += 8
        if len(head) < 8 or at + size > end:
            raise UnreadablePickle(CUT_OFF)
        spans[key] = (at, size)
        at += size
    return spans


def _read_nested(data: Any) -> Any:
    """Read a storage that was pickled by itself: plain pickles of tensors hold each in a file of its own."""
    if not isinstance(data, bytes):
        raise UnreadablePickle("has a tensor without values; save its state_dict() alone")
    return _read_pickles(lambda: io.BytesIO(data), within=True).value


def _refuse_nested(_: Any) -> Any:
    raise UnreadablePickle("has files within files without end; save its state_dict() alone")
