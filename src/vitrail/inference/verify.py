"""Verify that a file is as it was written: by its digest, checksums, name or structure, without running anything."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitrail.data.manifest import load_manifest
from vitrail.data.shards import INDEX
from vitrail.display import Display
from vitrail.errors import CheckpointError, VitrailError, tell_syntax
from vitrail.files import describe_absent, read_regular
from vitrail.inference.exported import READERS, check_beside, check_whole, describe, read_texts
from vitrail.weights.checkpoint import KEY, hash_file
from vitrail.weights.digest import check_archive
from vitrail.weights.formats.weight_file import FOLDER_FILES, open_weights
from vitrail.weights.loading import check_digest
from vitrail.weights.published.resolve import Located, locate_weights

PARTS = ".index.json"
"""Ending of a list that says in which file each weight of a large model is."""
MOST_PARTS = 16 * 2**20
"""Largest list of parts that is read, in bytes."""
NAMED = re.compile(r".*[-.]([0-9a-f]{8,64})\.\w+(\.tar)?")
"""A name that ends in the beginning of its file's SHA-256: PyTorch's, mmpretrain's, and our
saves'."""


ABSENT = "no file"
"""Kind of what is not there, or is a pipe, a device, a socket or a broken link."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """The outcome of verifying a file."""

    path: str
    kind: str
    """Kind of file: its ending without a dot, weights, shards or parts; or ABSENT."""
    by: str
    """The digest, checksums or name that it was compared with, or what is wrong with it."""
    is_whole: bool | None
    """None where nothing tells whether its values are those that were written."""

    @property
    def verdict(self) -> str:
        """The outcome in a word."""
        if self.is_whole is None:
            return "cannot be told"
        return "as written" if self.is_whole else "refused"


def verify(path: Path, display: Display | None = None) -> Verified:
    """Compare a file with every digest, checksum and hash that it and its name hold.

    Args:
        path: A weight file, an exported file, a list of the parts of a model, a save of a run, or
            the index of shards; or the name of published weights, which are fetched if they are not
            here.
        display: Where the progress of a download is shown.
    """
    try:
        located = locate_weights(path, display=display)
    except VitrailError as error:
        wrong = str(error).removeprefix(f"{path}: ")
        return Verified(path=str(path), kind="weights", by=wrong, is_whole=False)
    if located.origin:
        return _verify_published(located, str(path))
    if absent := describe_absent(path):
        return Verified(
            path=str(path), kind=ABSENT, by=f"{absent}; give the file itself", is_whole=False
        )
    kind, check = _kind(path)
    try:
        content, name = check(path), _check_name(path)
    except VitrailError as error:
        wrong = str(error).removeprefix(f"{path}: ")
        return Verified(path=str(path), kind=kind, by=wrong, is_whole=False)
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
        return Verified(path=str(path), kind=kind, by=wrong, is_whole=False)
    said = [content] if content else []
    if name is not None:
        if not name.fits and not content:
            wrong = f"its SHA-256 does not begin with {name.hash}, as its name says; copy or download it again"
            return Verified(path=str(path), kind=kind, by=wrong, is_whole=False)
        # a name may hold digits of something else, such as a commit
        said.append(
            "the SHA-256 in its name"
            if name.fits
            else "its name holds another hash than its SHA-256"
        )
    if not said:
        by = "its structure is whole, and it has neither digest nor checksums"
        return Verified(path=str(path), kind=kind, by=by, is_whole=None)
    return Verified(path=str(path), kind=kind, by="; ".join(said), is_whole=True)


def _verify_published(located: Located, word: str) -> Verified:
    """Compare a file of published weights with the hash that was recorded when it was fetched, or the Hub's own."""
    path = located.path
    if located.row is None:
        path = next(path / name for name in FOLDER_FILES if (path / name).is_file())
    outcome = verify(path)
    recorded = located.origin.get("sha256")
    if recorded is None or outcome.is_whole is False:
        return replace(outcome, path=word)
    if hash_file(path) != recorded:
        wrong = f"{path} has another SHA-256 than when it was fetched; delete it and fetch it again"
        return Verified(path=word, kind="weights", by=wrong, is_whole=False)
    said = "the SHA-256 that was recorded when it came here"
    if outcome.is_whole:
        said = f"{outcome.by}; {said}"
    return Verified(path=word, kind="weights", by=said, is_whole=True)


def _kind(path: Path) -> tuple[str, Callable[[Path], str]]:
    """Return the kind of a file by its name, and the function that checks its content."""
    if path.name == INDEX:
        return "shards", _by_shards
    if path.name.endswith(PARTS):
        return "parts", _by_parts
    if path.suffix in READERS:
        return path.suffix[1:], _by_export
    return "weights", _by_weights


@dataclass(frozen=True)
class _NamedHash:
    """The hash in the name of a file."""

    hash: str
    fits: bool
    """Whether the file's SHA-256 begins with it."""


def _check_name(path: Path) -> _NamedHash | None:
    """Compare a file with the hash in its name, if there is one."""
    named = _hash_in_name(path)
    return None if named is None else _NamedHash(named, hash_file(path).startswith(named))


def _hash_in_name(path: Path) -> str | None:
    """Return the beginning of the SHA-256 that a name holds, or that of the file in the hub's cache it is a link to."""
    target = Path(os.path.realpath(path))
    if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name
    match = NAMED.fullmatch(path.name)
    if match is None or not path.is_file():
        return None
    digits = match[1]
    # eight decimal digits are a date, as in tnt-20240131.pth
    is_date = len(digits) == 8 and digits.isdecimal()
    return None if is_date else digits


def _by_weights(path: Path) -> str:
    file = open_weights(path)
    if check_digest(file):
        return "its digest"
    file.check(file.tensors)
    if file.kind == "PyTorch" and _is_archive(file.path):
        return _counted(check_archive(file.path), "entries")
    for name in file.tensors:
        file.load(name)
    return ""


def _by_export(path: Path) -> str:
    by = check_whole(path)
    if KEY in read_texts(path) and path.suffix == ".xml":
        check_beside(path, describe(path).making)
        return f"{by or 'the digest of its weights'}, with {path.with_suffix('.bin').name}"
    return by


def _by_shards(path: Path) -> str:
    packed = load_manifest(path).packed
    if packed is None:
        raise CheckpointError(
            f"{path}: lists images in folders, not in shards; pack the folder anew"
        )
    if wrong := list(packed.verify(path.parent, lambda: None)):
        raise CheckpointError(
            f"{path}: {len(wrong)} of {len(packed.shards)} shards, such as {wrong[0]}"
        )
    return f"the SHA-256 of {len(packed.shards)} shards"


def _by_parts(path: Path) -> str:
    """Check that the parts of a model are there, whole, and hold the weights that their list says, each once."""
    parts: dict[str, list[str]] = {}
    for name, part in read_parts(path).items():
        parts.setdefault(part, []).append(name)
    verified = []
    for part, claimed in sorted(parts.items()):
        if not (path.parent / part).is_file():
            raise CheckpointError(f"{path}: its part {part} is not beside it; copy it there")
        held = open_weights(path.parent / part).tensors.keys()
        missing = [name for name in claimed if name not in held]
        if missing:
            raise CheckpointError(
                f"{path}: {part} lacks {len(missing)} of its weights, such as {missing[0]}"
            )
        more = [name for name in held if name not in claimed]
        if more:
            raise CheckpointError(
                f"{path}: {part} holds {len(more)} weights that are said to be elsewhere, such as "
                f"{more[0]}"
            )
        verified.append(verify(path.parent / part))
    for one in verified:
        if one.is_whole is False:
            raise CheckpointError(f"{path}: its part {Path(one.path).name} {one.by}")
    if not all(one.is_whole for one in verified):
        return ""
    return f"{len(parts)} parts, each by what it says"


def read_parts(path: Path) -> Mapping[str, str]:
    """Return the file that holds each weight of a model that was cut into parts.

    Raises:
        CheckpointError: The list is damaged, names a weight twice, or a file that is not beside it.
    """
    try:
        content = json.loads(read_regular(path, MOST_PARTS), object_pairs_hook=_each_once)
        parts = content["weight_map"]
        if not isinstance(parts, dict) or not parts:
            raise ValueError("weight_map names no weight")
        for name, part in parts.items():
            if (
                not isinstance(part, str)
                or part in ("", ".", "..")
                or Path(part).name != part
                or "\\" in part
            ):
                raise ValueError(
                    f"{name} is in {str(part)[:80]!r}, which is no name of a file beside the list"
                )
            if not part.isprintable():
                raise ValueError(f"{name} is in {part[:80]!a}, which no file is called")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else tell_syntax(error)
        raise CheckpointError(
            f"{path}: is no list of the parts of a model ({reason[:200]}); use the original"
        ) from error
    return parts


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it names {twice[:80]!r} twice")
    return values


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _counted(count: int, what: str) -> str:
    return f"the checksums of its {count} {what}" if count else ""
