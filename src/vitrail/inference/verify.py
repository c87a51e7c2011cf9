"""Is a file as it was written? By its digest, its checksums, its name or its structure, and nothing in it is run."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.data.manifest import load_manifest
from vitrail.data.shards import INDEX
from vitrail.errors import CheckpointError, VitrailError
from vitrail.files import read_regular
from vitrail.inference.exported import READERS, check_beside, check_whole, describe, read_texts
from vitrail.weights.checkpoint import KEY, hash_file
from vitrail.weights.digest import check_archive
from vitrail.weights.formats.weight_file import open_weights
from vitrail.weights.loading import check_digest

PARTS = ".index.json"
"""How the name of a list ends that says in which file each weight of a large model is."""
MOST_PARTS = 16 * 2**20
"""Bytes of such a list."""
NAMED = re.compile(r".*[-.]([0-9a-f]{8,64})\.\w+(\.tar)?")
"""How a name ends that holds the beginning of its file's SHA-256: PyTorch's, mmpretrain's, and our saves'."""

NAMES = ("its name holds another hash than its SHA-256", "the SHA-256 in its name")
"""What is said of a hash in a name that is not the file's, and of one that is."""


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What can be said of a file."""

    path: str
    kind: str
    by: str
    """What it was compared with, or what is wrong with it."""
    is_whole: bool | None
    """None where nothing tells whether its values are those that were written."""

    @property
    def verdict(self) -> str:
        """Return that in a word."""
        return {True: "as written", None: "cannot be told", False: "refused"}[self.is_whole]


def verify(path: Path) -> Verified:
    """Compare a file with all that it and its name say of its content.

    Args:
        path: A weight file, an exported file, a list of the parts of a model, a save of a run, or the index of shards.
    """
    kind, look = _kind(path)
    try:
        by, named = look(path), _hash_in_name(path)
        fits = named is not None and hash_file(path).startswith(named)
        if named is not None and not fits and not by:
            raise CheckpointError(
                f"{path}: its SHA-256 does not begin with {named}, as its name says; copy or download it again"
            )
    except VitrailError as error:
        wrong = str(error).removeprefix(f"{path}: ")
        return Verified(path=str(path), kind=kind, by=wrong, is_whole=False)
    except OSError as error:
        wrong = f"cannot be read ({error.strerror})"
        return Verified(path=str(path), kind=kind, by=wrong, is_whole=False)
    if not by and not fits:
        by = "its structure is whole, and it has neither digest nor checksums"
        return Verified(path=str(path), kind=kind, by=by, is_whole=None)
    # a name may hold digits of something else, such as a commit
    said = "" if named is None else NAMES[fits]
    return Verified(path=str(path), kind=kind, by="; ".join(filter(None, (by, said))), is_whole=True)


def _kind(path: Path) -> tuple[str, Callable[[Path], str]]:
    """Return what a file is by its name, and what looks at it."""
    if path.name == INDEX:
        return "shards", _by_shards
    if path.name.endswith(PARTS):
        return "parts", _by_parts
    if path.suffix in READERS:
        return path.suffix[1:], _by_export
    return "weights", _by_weights


def _hash_in_name(path: Path) -> str | None:
    """Return what a name says of the file's SHA-256, or that in the hub's cache which it is a link to."""
    target = Path(os.path.realpath(path))
    if target.parent.name == "blobs" and re.fullmatch("[0-9a-f]{64}", target.name):
        return target.name
    found = NAMED.fullmatch(path.name)
    is_date = found is not None and len(found[1]) == 8 and found[1].isdecimal()
    return None if found is None or is_date or not path.is_file() else found[1]


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
        raise CheckpointError(f"{path}: lists images in folders, not in shards; pack the folder anew")
    if wrong := list(packed.verify(path.parent, lambda: None)):
        raise CheckpointError(f"{path}: {len(wrong)} of {len(packed.shards)} shards, such as {wrong[0]}")
    return f"the SHA-256 of {len(packed.shards)} shards"


def _by_parts(path: Path) -> str:
    """Look whether the parts of a model are there, whole, and hold the weights that their list says, each once."""
    parts: dict[str, list[str]] = {}
    for name, part in read_parts(path).items():
        parts.setdefault(part, []).append(name)
    means = []
    for part, claimed in sorted(parts.items()):
        if not (path.parent / part).is_file():
            raise CheckpointError(f"{path}: its part {part} is not beside it; copy it there")
        held = open_weights(path.parent / part).tensors.keys()
        if missing := [name for name in claimed if name not in held]:
            raise CheckpointError(f"{path}: {part} lacks {len(missing)} of its weights, such as {missing[0]}")
        if more := [name for name in held if name not in claimed]:
            raise CheckpointError(
                f"{path}: {part} holds {len(more)} weights that are said to be elsewhere, such as {more[0]}"
            )
        means.append(verify(path.parent / part))
    if wrong := [one for one in means if one.is_whole is False]:
        raise CheckpointError(f"{path}: its part {Path(wrong[0].path).name} {wrong[0].by}")
    return f"{len(parts)} parts, each by what it says" * all(one.is_whole for one in means)


def read_parts(path: Path) -> Mapping[str, str]:
    """Return the file that holds each weight of a model that was cut into parts.

    Raises:
        CheckpointError: The list is damaged, names a weight twice, or a file that is not beside it.
    """
    try:
        content = json.loads(read_regular(path, MOST_PARTS), object_pairs_hook=_each_once)
        found = content["weight_map"]
        if not isinstance(found, dict) or not found:
            raise ValueError("weight_map names no weight")
        for name, part in found.items():
            if not isinstance(part, str) or part in ("", ".", "..") or Path(part).name != part or "\\" in part:
                raise ValueError(f"{name} is in {str(part)[:80]!r}, which is no name of a file beside the list")
            if not part.isprintable():
                raise ValueError(f"{name} is in {part[:80]!a}, which no file is called")
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        raise CheckpointError(
            f"{path}: is no list of the parts of a model ({reason[:200]}); use the original"
        ) from error
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it names {twice[:80]!r} twice")
    return found


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _counted(count: int, what: str) -> str:
    return f"the checksums of its {count} {what}" if count else ""
