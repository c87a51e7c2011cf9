"""The cache of published weights: where each file lies, whether it is the one that was fetched, and who may write.

Files of the Hugging Face Hub are in its own cache (HF_HOME); all others in that of torch.hub
(TORCH_HOME), which timm, mmpretrain and torchvision use too. What was fetched is recorded beside
them, in a hidden folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from vitrail.display import Display
from vitrail.errors import CheckpointError, command
from vitrail.files import refusal_told, write_whole
from vitrail.weights.checkpoint import hash_file
from vitrail.weights.published.catalogue import Published
from vitrail.weights.published.hub_files import find_in_cache

OWN = ".vitrail"
"""Folder in the cache with what is recorded of its files, parts of files, and locks."""
FULL = "free space, or point TORCH_HOME to another disk"


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What is recorded of a file in the cache: its hash, and where it came from."""

    sha256: str
    size: int
    changed_ns: int
    """When the file was last written, by which a later change is seen without reading it."""
    source: str
    """The address that it was fetched from, or the file that it was added from; empty where it was
    found here."""
    revision: str | None = None
    """Commit on the Hugging Face Hub, which later fetches keep to; None for files from
    elsewhere."""


def folder() -> Path:
    """Return the folder of all files but those of the Hugging Face Hub."""
    return Path(torch.hub.get_dir(), "checkpoints")


def place_of(row: Published) -> Path:
    """Return where a file lies that was fetched from an address, or added by hand."""
    return folder() / row.file


def part_of(row: Published) -> Path:
    """Return where a file is written to until it is whole."""
    return folder() / OWN / f"{row.file}.part"


def find_here(row: Published) -> Path | None:
    """Return the file of published weights where it is on this machine already; asks no network."""
    place = place_of(row)
    if place.is_file():
        return place
    if row.repository is None:
        return None
    known = read_record(row)
    return find_in_cache(row.repository, None if known is None else known.revision)


def examine(
    row: Published,
    path: Path,
    *,
    source: str = "",
    revision: str | None = None,
    is_kept: bool = True,
) -> Fetched:
    """Compare a file with the hash that its project or the Hub gives it, and return what is to be recorded of it.

    Args:
        row: What it is to be.
        path: The file.
        source: Where it came from.
        revision: Commit on the Hugging Face Hub.
        is_kept: Whether it stays where it is, if it is another; what was only just fetched does
            not.

    Raises:
        CheckpointError: It is another file, or damaged.
    """
    status = path.stat()
    sha256 = hash_file(path)
    blob = Path(os.path.realpath(path)).name  # the Hub's cache names a file by its hash
    expected = blob if re.fullmatch("[0-9a-f]{64}", blob) else row.hash_prefix
    if not sha256.startswith(expected):
        where, advice = (
            (str(path), "delete it, and fetch it again") if is_kept else (source, "fetch it again")
        )
        raise CheckpointError(
            f"{row.name}: {where} is damaged or another file, as its SHA-256 begins with "
            f"{sha256[:8]} and not with "
            f"{expected[:8]}; {advice}: {command('weights', 'fetch', row.name)}"
        )
    return Fetched(
        sha256=sha256,
        size=status.st_size,
        changed_ns=status.st_mtime_ns,
        source=source,
        revision=revision,
    )


def check_unchanged(row: Published, path: Path) -> Fetched:
    """Return what is recorded of a file in the cache; one that is used for the first time is examined and recorded.

    Raises:
        CheckpointError: It is another file than was recorded, or damaged.
    """
    known, status = read_record(row), path.stat()
    if known is not None and (known.size, known.changed_ns) == (status.st_size, status.st_mtime_ns):
        return known
    revision = find_revision(row, path)
    found = examine(row, path, source="" if known is None else known.source, revision=revision)
    if known is not None and known.sha256 != found.sha256:
        raise CheckpointError(
            f"{row.name}: {path} was changed since it was fetched (its SHA-256 began with "
            f"{known.sha256[:8]}, and begins with {found.sha256[:8]} now); delete it and fetch it "
            f"again, or take it as it is: {command('weights', 'add', path, '--name', row.name)}"
        )
    with suppress(CheckpointError):  # a cache that many share may be for reading alone
        write_record(row, found)
    return found


def find_revision(row: Published, path: Path) -> str | None:
    """Return the commit that a file in the Hub's cache belongs to; None for files elsewhere."""
    in_hub = row.repository is not None and path.parent.parent.name == "snapshots"
    return path.parent.name if in_hub else None


def read_record(row: Published) -> Fetched | None:
    """Return what is recorded of a file; None where nothing is, or the record is damaged."""
    with suppress(OSError, ValueError, TypeError):
        content: Any = json.loads(_record_of(row).read_text(encoding="utf-8"))
        return Fetched(**content)
    return None


def write_record(row: Published, fetched: Fetched) -> None:
    """Record a file.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    path = _record_of(row)
    with refusal_told(path, None, FULL):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(asdict(fetched), indent=1) + "\n").encode(), FULL)


@contextmanager
def alone(row: Published, display: Display) -> Iterator[None]:
    """Let one process of this machine, or of all that share the cache, fetch a file; others wait for it.

    Raises:
        CheckpointError: The cache cannot be written.
    """
    path = folder() / OWN / f"{row.file}.lock"
    with refusal_told(path, None, FULL):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            display.note(f"{row.name}: another process fetches it; waiting for that")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _record_of(row: Published) -> Path:
    return folder() / OWN / f"{row.file}.json"
