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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from vitrail.display import Display
from vitrail.errors import CheckpointError, command
from vitrail.files import refusal_told, write_whole
from vitrail.weights.checkpoint import hash_file
from vitrail.weights.formats.file_kinds import HEAD, explain_other_kind, is_safetensors, is_torch
from vitrail.weights.formats.weight_file import open_weights
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
    called: str = "",
    advice: str = "",
) -> Fetched:
    """Compare a file with the hash that its project or the Hub gives it, see that it is whole, and return its record.

    Args:
        row: What it is to be.
        path: The file.
        source: Where it came from.
        revision: Commit on the Hugging Face Hub.
        called: What a message calls the file; empty is its path.
        advice: What to do where it is another file; empty is to fetch it again, for one in the
            cache.

    Raises:
        CheckpointError: It is another file, or damaged.
    """
    status = path.stat()
    sha256 = hash_file(path)
    expected = _named_hash(path) or row.hash_prefix
    fault = ""
    if not sha256.startswith(expected):
        fault = f"its SHA-256 begins with {sha256[:8]} and not with {expected[:8]}"
    elif not is_structured(path):
        fault = "it breaks off, or its parts do not fit together"
    if fault:
        raise CheckpointError(
            f"{row.name}: {called or path} is damaged or another file, as {fault}; "
            f"{advice or advise_again(row)}"
        )
    return Fetched(
        sha256=sha256,
        size=status.st_size,
        changed_ns=status.st_mtime_ns,
        source=source,
        revision=revision,
    )


def advise_again(row: Published) -> str:
    """Return how a file of the cache that is damaged is replaced."""
    if row.is_by_hand:
        add = command("weights", "add", "FILE", "--name", row.name)
        return f"download it again with a browser, from {row.page}: {add}"
    return f"fetch it again: {command('weights', 'fetch', row.name)}"


def is_structured(path: Path) -> bool:
    """Say whether a weight file can be opened, which one that breaks off cannot; what is something else passes.

    What that is instead is for others to say.
    """
    with path.open("rb") as file:
        head = file.read(HEAD)
    if not (is_safetensors(head) or is_torch(head)) and explain_other_kind(path, head):
        return True
    try:
        open_weights(path)
    except CheckpointError:
        return False
    return True


def is_damaged_blob(path: Path) -> bool:
    """Say whether a file of the Hub's cache has another hash than that cache names it by."""
    named = _named_hash(path)
    return bool(named) and hash_file(path) != named


def _named_hash(path: Path) -> str:
    """Return the SHA-256 by which the Hub's cache names a file; empty for other files."""
    blob = Path(os.path.realpath(path)).name
    return blob if re.fullmatch("[0-9a-f]{64}", blob) else ""


def check_unchanged(row: Published, path: Path, *, is_read: bool = False) -> Fetched:
    """Return what is recorded of a file in the cache; one that is used for the first time is examined and recorded.

    Args:
        row: What it is to be.
        path: The file.
        is_read: Whether all of it is read and compared, also where its size and time are those
            that were recorded.

    Raises:
        CheckpointError: It is another file than was recorded, or damaged.
    """
    known, status = read_record(row), path.stat()
    is_same = known is not None and (known.size, known.changed_ns) == (
        status.st_size,
        status.st_mtime_ns,
    )
    if known is not None and is_same and not is_read:
        return known
    if known is None:
        found = examine(row, path, revision=find_revision(row, path))
    elif (sha256 := hash_file(path)) != known.sha256:
        raise CheckpointError(
            f"{row.name}: {path} was changed since it was fetched (its SHA-256 began with "
            f"{known.sha256[:8]}, and begins with {sha256[:8]} now); {advise_again(row)}, or take "
            f"it as it is: {command('weights', 'add', path, '--name', row.name)}"
        )
    else:
        found = replace(known, size=status.st_size, changed_ns=status.st_mtime_ns)
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
    _refuse_obstacles(row)
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


def _refuse_obstacles(row: Published) -> None:
    """Refuse to write where a file is in the place of a folder, or a folder in that of the file.

    Raises:
        CheckpointError: With what to remove.
    """
    advice = "remove it, or point TORCH_HOME to another folder"
    for place in (folder() / OWN, *(folder() / OWN).parents):
        if place.exists() and not place.is_dir():
            raise CheckpointError(
                f"{place}: is a file, and the folder of published weights has to be there; {advice}"
            )
    if place_of(row).is_dir():
        raise CheckpointError(
            f"{place_of(row)}: is a folder, and the file of {row.name} has to be there; {advice}"
        )


def _record_of(row: Published) -> Path:
    return folder() / OWN / f"{row.file}.json"
