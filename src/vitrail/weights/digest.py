"""Digests by which a file is known to be as it was written, from its first bit to its last.

A weight file keeps one of its tensors and its description, so that a program that only orders the
file otherwise, or adds texts of its own, does no harm. An exported file keeps one of all its bytes,
as its runtime reads more of it than we do. Either stands in the file twice: damage to the name of
one must not make a file that has none.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vitrail.errors import CheckpointError
from vitrail.files import Buffer

DIGESTS = ("vitrail_digest", "vitrail_digest_again")
"""Names of the texts that hold the digest of a file, which are the same."""
MARK = "vitrail-digest:"
"""What stands before the digest of an exported file, wherever its format keeps texts."""
DIGITS = 64
BLANK = MARK + "0" * DIGITS
"""Stands in an exported file until its digest is known."""
COMMENT = len(BLANK) * len(DIGESTS)
"""Bytes of the comment that holds the digest of a zip archive."""
MARKS = 16
"""Digests that are looked at in an exported file; each takes memory, and no file is written with
more than two."""
CHUNK = 16 * 2**20
"""Bytes that a thread takes at once."""
GROWTH = 32
"""Times its size that an archive may hold: TorchScript's keeps weights as they are and packs only
its code."""
_MARKED = re.compile(MARK.encode() + rb"([0-9a-f]{%d})" % DIGITS)
_DAMAGED = "is damaged: it is not what its digest was made of; copy it again, or make it anew"
_CHANGED = f"{_DAMAGED} (a program that changes weights on purpose has to leave out {' and '.join(DIGESTS)})"
_CHANGED_EXPORT = f"{_DAMAGED} (docs/export.md says how to change one on purpose)"


def digest_weights(tensors: Mapping[str, Tensor], texts: Mapping[str, str]) -> str:
    """Return 64 hexadecimal digits that change with any name, type, shape or value of tensors, and with any text.

    Their order does not matter.
    """
    names = sorted(tensors)
    about = [(name, str(tensors[name].dtype), tuple(tensors[name].shape)) for name in names]
    said = repr((about, sorted(texts.items()))).encode("utf-8", "surrogatepass")
    return _joined([_bytes_of(tensors[name]) for name in names], said)


def check_weights(
    path: Path | str, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], described: str
) -> bool:
    """Compare a weight file with its digest, and say whether it has one.

    Args:
        path: The file, for messages.
        tensors: All of them.
        metadata: Its texts; those of other programs are passed over.
        described: Name of the text that describes the model.

    Raises:
        CheckpointError: It is damaged.
    """
    kept = [metadata[name] for name in DIGESTS if name in metadata]
    if not kept:
        return False
    ours = {name: metadata[name] for name in (described, "format") if name in metadata}
    if len(kept) < len(DIGESTS) or {*kept} != {digest_weights(tensors, ours)}:
        raise CheckpointError(f"{path}: {_CHANGED}")
    return True


def seal(parts: Iterable[Buffer]) -> Buffer:
    """Return the file that parts make, with each BLANK in it replaced by the digest of all of it."""
    data = bytearray().join(parts)
    digest = _joined([memoryview(data)], b"").encode()
    for mark in list(re.finditer(BLANK.encode(), data)):
        data[mark.end() - DIGITS : mark.end()] = digest
    return data


def seal_archive(archive: bytes) -> Buffer:
    """Return a zip archive without a comment, sealed by one."""
    assert archive[-22:-18] == b"PK\x05\x06", "the archive has a comment"
    return seal([archive[:-2], COMMENT.to_bytes(2, "little"), BLANK.encode() * len(DIGESTS)])


def check_sealed(path: Path) -> bool:
    """Compare an exported file with its digest, and say whether it has one.

    Raises:
        CheckpointError: It is damaged.
        OSError: It cannot be read.
    """
    if not path.stat().st_size:
        return False
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data:
        begun = sum(1 for _ in islice(re.finditer(MARK.encode(), data), MARKS + 1))
        if not begun:
            return False
        if begun > MARKS:
            raise CheckpointError(f"{path}: {_CHANGED_EXPORT}")
        kept = [(mark.span(1), mark[1].decode()) for mark in _MARKED.finditer(data)]
        for (begin, end), _ in kept:  # in this process alone
            data[begin:end] = b"0" * DIGITS
        with memoryview(data) as whole:
            digest = _joined([whole], b"")
    if [digest] * begun != [one for _, one in kept]:
        raise CheckpointError(f"{path}: {_CHANGED_EXPORT}")
    return True


def check_archive(path: Path) -> int:
    """Compare every entry of a zip archive of PyTorch with its checksum, and return how many have one.

    Raises:
        CheckpointError: One is damaged.
        OSError: It cannot be read.
        zipfile.BadZipFile: It is no such archive.
    """
    with path.open("rb") as file:
        file.seek(max(file.seek(0, 2) - 22 - 0xFFFF, 0))
        end = file.read().rpartition(b"PK\x05\x06")[2]
    if int.from_bytes(end[16:18], "little") != len(end) - 18:  # which no reader of archives minds
        raise CheckpointError(
            f"{path}: is damaged: it is cut off within its end; copy it again, or make it anew"
        )
    with zipfile.ZipFile(path) as archive:
        grown = sum(entry.file_size for entry in archive.infolist())
        if grown > max(GROWTH * path.stat().st_size, CHUNK):
            raise CheckpointError(
                f"{path}: is packed so that it grows to {grown:,} bytes, as PyTorch writes none; "
                "use the original"
            )
        # torch may be told to compute none
        entries = [entry for entry in archive.infolist() if entry.CRC]
        for entry in entries:
            try:
                with archive.open(entry) as file:
                    while file.read(CHUNK):
                        pass
            except Exception as error:  # zlib and zipfile raise several kinds for damaged bytes
                raise CheckpointError(
                    f"{path}: is damaged: {entry.filename} does not have its checksum; copy it "
                    "again, or make it anew"
                ) from error
    return len(entries)


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _joined(parts: list[memoryview], said: bytes) -> str:
    """Return the BLAKE2b digest of the digests of all chunks, which threads compute side by side."""
    chunks = [part[at : at + CHUNK] for part in parts for at in range(0, len(part), CHUNK)]
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:
        digests = b"".join(
            pool.map(lambda chunk: hashlib.blake2b(chunk, digest_size=32).digest(), chunks)
        )
    for chunk in chunks:
        chunk.release()
    return hashlib.blake2b(digests + said, digest_size=32).hexdigest()
