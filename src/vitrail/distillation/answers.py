"""A teacher's answers, kept by view: what is stored of logits, and files of chunks that many processes append to.

Of the logits of k classes, the largest are kept in half precision, and of all others the one number
that each of them would have if they had their joint probability in equal shares. So probabilities
at any temperature can be made of them. What was just computed goes through the same rounding as
what was read, so that a run from the cache equals one without.

A file begins with a line that says what it is. Each chunk has a header with the number of the view,
the number of answers, a checksum of both and one of the answers; then the keys of all answers,
their numbers and their classes. Every process appends to a file of its own, so none waits.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitrail.errors import CheckpointError, ConfigError, shorten
from vitrail.files import is_temporary, refusal_told, write_whole

ABOUT = "about.json"
"""File of a folder of answers that says what they are of."""
SUFFIX = ".answers"
FIRST_LINE = b"vitrail answers 1\n"
MARK = b"\xf0ANSWER\n"
HEADER = struct.Struct("<8sqI8s")
"""Mark, number of the view, number of answers, and checksum of the answers; its own comes behind."""
CHECK = 8
"""Bytes of a checksum."""
SAVE_EVERY_S = 5.0
"""Seconds of the teacher's work that a kill may cost."""
MOST_WAITING = 4096
"""Answers that wait to be written together at most."""
LOWEST = -60000.0
"""Smallest logarithm that is kept; half precision ends at -65504."""


@dataclass(frozen=True)
class Layout:
    """How many numbers and classes are kept of an answer."""

    num_classes: int
    topk: int
    """Classes whose logits are kept, at most all."""
    num_features: int = 0
    """Numbers of the vector that is kept beside them."""

    @property
    def kept(self) -> int:
        """Classes whose logits are kept."""
        return min(self.topk, self.num_classes)

    @cached_property
    def row(self) -> np.dtype[Any]:
        """An answer as it lies in memory and in files: its key, numbers and classes."""
        number = "<u2" if self.num_classes <= 2**16 else "<u4"
        return np.dtype(
            [
                ("key", "<u8"),
                ("numbers", "<f2", (self.kept + 1 + self.num_features,)),
                ("classes", number, (self.kept,)),
            ]
        )

    def pack(
        self, keys: NDArray[np.uint64], logits: Float[Tensor, "b k"], features: Tensor | None
    ) -> NDArray[Any]:
        """Return what is kept of answers, a row each.

        Args:
            keys: Key of each view.
            logits: Logits, of one class an image as logarithms of their probabilities.
            features: A vector of each image, where such are kept.
        """
        logits = logits.float().cpu()
        largest, classes = logits.topk(self.kept)
        others = logits.scatter(1, classes, -torch.inf)
        count = max(self.num_classes - self.kept, 1)
        rest = others.logsumexp(1, keepdim=True) - float(np.log(count))
        parts = [largest, rest.clamp(min=LOWEST)]
        if features is not None:
            parts.append(features.float().cpu())
        rows = np.empty(len(keys), self.row)
        rows["key"] = keys
        limit = -LOWEST
        rows["numbers"] = torch.cat(parts, 1).clamp(LOWEST, limit).to(torch.float16).numpy()
        rows["classes"] = classes.numpy()
        return rows

    def unpack(
        self, rows: NDArray[Any], device: torch.device
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, "b d"]]:
        """Return the logits and the vectors of rows, on a device; classes that were not kept share what is left."""
        numbers = torch.from_numpy(rows["numbers"].astype(np.float32)).to(device)
        classes = torch.from_numpy(rows["classes"].astype(np.int64)).to(device)
        largest, rest = numbers[:, : self.kept], numbers[:, self.kept : self.kept + 1]
        logits = rest.expand(-1, self.num_classes).scatter(1, classes, largest)
        return logits, numbers[:, self.kept + 1 :]


@dataclass
class _File:
    """What is known of a file of answers that may still grow."""

    scanned: int = len(FIRST_LINE)
    """Bytes that were looked through."""
    chunks: dict[int, list[tuple[int, int, bytes]]] = field(default_factory=dict)
    """Of each view, where the answers of a chunk begin, how many they are, and their checksum."""


class AnswerFiles:
    """The files of answers in a folder, of one layout; this process appends to one of its own.

    Args:
        folder: The folder, which `open_folder` has made.
        layout: What is kept of an answer.
        warn: Told of damage.
    """

    def __init__(self, folder: Path, layout: Layout, warn: Callable[[str], None]) -> None:
        self.folder = folder
        self._layout, self._warn = layout, warn
        self._files: dict[Path, _File] = {}
        self._own: IO[bytes] | None = None
        self._waiting: list[NDArray[Any]] = []
        self._view = 0
        self._written = time.monotonic()

    def read(self, view: int) -> NDArray[Any]:
        """Return the answers to all images of a view, sorted by key; what comes from now on is of that view too."""
        self.write()
        self._view = view
        found = [np.empty(0, self._layout.row)]
        for path in sorted(self.folder.glob(f"*{SUFFIX}")):
            found += self._read_file(path, view)
        rows = np.concatenate(found)
        _, first = np.unique(rows["key"], return_index=True)
        return rows[first]

    def add(self, rows: NDArray[Any]) -> None:
        """Take answers of the view that was read last; they are written every few seconds."""
        if len(rows):
            self._waiting.append(rows)
        is_due = time.monotonic() - self._written >= SAVE_EVERY_S
        if is_due or sum(map(len, self._waiting)) >= MOST_WAITING:
            self.write()

    def write(self) -> None:
        """Write the answers that wait.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written.
        """
        self._written = time.monotonic()
        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        data = rows.tobytes()
        header = HEADER.pack(MARK, self._view, len(rows), _checksum(data))
        advice = "free space, or set distill.cache to another folder or to false"
        with refusal_told(self.folder, None, advice):
            if self._own is None:
                name = f"{os.getpid()}-{secrets.token_hex(6)}{SUFFIX}"
                self._own = (self.folder / name).open("xb")
                self._own.write(FIRST_LINE)
            self._own.write(header + _checksum(header) + data)
            self._own.flush()
        self._waiting.clear()

    def close(self) -> None:
        """Write what waits, and close the file of this process."""
        self.write()
        if self._own is not None:
            self._own.close()
            self._own = None

    def _read_file(self, path: Path, view: int) -> Iterator[NDArray[Any]]:
        """Yield the whole chunks of a view in a file."""
        known = self._files.setdefault(path, _File())
        try:
            with path.open("rb") as file:
                if file.read(len(FIRST_LINE)) != FIRST_LINE:
                    return  # another process is about to write it, or it is no file of answers
                self._scan(path, file, known)
                for place in list(known.chunks.get(view, [])):
                    begin, count, checksum = place
                    file.seek(begin)
                    data = file.read(count * self._layout.row.itemsize)
                    if _checksum(data) != checksum:
                        self._tell_damage(path, f"{count:,} answers")
                        known.chunks[view].remove(place)
                        continue
                    yield np.frombuffer(data, self._layout.row)
        except OSError as error:
            self._warn(
                f"{path}: cannot be read ({error.strerror}); its answers are left out and computed "
                "anew"
            )

    def _scan(self, path: Path, file: IO[bytes], known: _File) -> None:
        """Find the chunks that a file has got since it was looked through; a torn one at its end is passed over."""
        size = file.seek(0, os.SEEK_END)
        head = HEADER.size + CHECK
        while known.scanned + head <= size:
            file.seek(known.scanned)
            header, checksum = file.read(HEADER.size), file.read(CHECK)
            if _checksum(header) != checksum:
                following = _find_mark(file, known.scanned + 1)
                if following is None:
                    return
                self._tell_damage(path, "some of its answers")
                known.scanned = following
                continue
            _, view, count, of_answers = HEADER.unpack(header)
            begin = known.scanned + head
            end = begin + count * self._layout.row.itemsize
            if end > size:
                return
            known.chunks.setdefault(view, []).append((begin, count, of_answers))
            known.scanned = end

    def _tell_damage(self, path: Path, what: str) -> None:
        self._warn(f"{path}: is damaged: {what} are left out and computed anew")


def open_folder(folder: Path, about: Mapping[str, Any], *, is_given: bool) -> None:
    """Make a folder of answers, or see that one is of the same.

    Args:
        folder: The folder.
        about: All that decides the answers, as plain values for JSON.
        is_given: Whether somebody named it, which may be that of others.

    Raises:
        CheckpointError: It cannot be written or read.
        ConfigError: It is of other views or of another teacher, or holds something else.
    """
    path = folder / ABOUT
    advice = "free space, or set distill.cache to another folder or to false"
    with refusal_told(folder, None, advice):
        folder.mkdir(parents=True, exist_ok=True)
        # another process may be about to write what it is of
        is_empty = all(map(is_temporary, folder.iterdir()))
    there = read_about(folder)
    if there is None:
        if is_given and not is_empty:
            raise ConfigError(
                f"distill.cache {folder}: holds no answers of a teacher, and is not empty; give a "
                "folder of its own"
            )
        write_whole(path, json.dumps(about, indent=1).encode(), advice)
        return
    if differing := describe_differences(there, json.loads(json.dumps(about))):
        raise ConfigError(
            f"distill.cache {folder}: holds other answers: {differing}; give another folder, or "
            "leave it out"
        )


def read_about(folder: Path) -> dict[str, Any] | None:
    """Return what the answers in a folder are of; None where it does not say.

    Raises:
        CheckpointError: The file that says it is damaged.
    """
    path = folder / ABOUT
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text())
        if isinstance(about, dict):
            return about
    except (OSError, ValueError):
        pass
    raise CheckpointError(f"{path}: is damaged; delete {folder}, and its answers are made anew")


CONTENTS = ("contents", "data.contents")
"""Keys of a hash of the images' files, which says nothing to a reader."""


def describe_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Say in words in what two descriptions differ; nothing where they are equal."""
    flat_there, flat_here = dict(_flatten(there)), dict(_flatten(here))
    names = [
        name for name in {**flat_there, **flat_here} if flat_there.get(name) != flat_here.get(name)
    ]
    shown = []
    for name in names[:4]:
        before, now = shorten(flat_there.get(name)), shorten(flat_here.get(name))
        meaning = " (a hash of sizes and times of files, or of pixels)" if name in CONTENTS else ""
        shown.append(f"{name} is {before} there and {now} here{meaning}")
    more = f" and {len(names) - 4} more differ" if len(names) > 4 else ""
    return ", ".join(shown) + more


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=CHECK).digest()


def _find_mark(file: IO[bytes], begin: int) -> int | None:
    """Return where the next chunk may begin; None where none does."""
    file.seek(begin)
    at = file.read().find(MARK)
    return None if at < 0 else begin + at
