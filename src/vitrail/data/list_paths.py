"""Paths of images in a list: found below a folder, corrected where they are spelt otherwise, and checked."""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vitrail.data.list_files import read_cell, read_rows, require_column
from vitrail.data.paths import Paths
from vitrail.errors import DataError, list_some, printable
from vitrail.files import no_file


def read_paths(path: Path, root: str | None, column: str) -> tuple[str, Paths, tuple[str, ...]]:
    """Read the paths of the images in a list, and nothing else of it.

    Returns:
        The folder that the paths begin in, the paths, and messages for the user.

    Raises:
        DataError: The file cannot be read, or a line of it is wrong; or images are not there.
    """
    folder, top = find_top(path, root)
    notes: list[str] = []
    first, rows = read_rows(path, printable(path), column, notes)
    require_column(printable(path), column, "path_column", first[1])
    gathered = GatheredPaths()
    spelling = Spelling(path, top)
    for line, cells in chain([first], rows):
        where = f"{path} line {line}"
        gathered.add(spelling.resolve(read_cell(cells, column, where), where), line)
    paths = gathered.finish()
    refuse_missing(path, folder, top, paths, gathered.lines)
    notes += spelling.notes()
    unread = [repr(name) for name in first[1] if name != column]
    if unread:
        notes.append(f"{path}: has columns that are not read: {list_some(unread, 10)}")
    return os.path.join(folder, ""), paths, tuple(notes)


def find_top(path: Path, given: str | None) -> tuple[Path, str]:
    """Return the folder that the paths of a list begin in, and its absolute path with a slash at the end."""
    root = path.parent if given is None else Path(given).expanduser()
    if not root.is_dir():
        raise DataError(
            f"data.root {printable(root)}: is no folder; give the one that the paths of {path} "
            "begin in, or null for its own"
        )
    return root, os.path.join(os.path.normpath(root.absolute()), "")


class GatheredPaths:
    """Paths by the million, gathered one by one in few bytes, each with its line and its hash."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q")
        self.lines = array("q")
        """Number of each path's line."""
        self.hashes = array("q")
        """Hash of each path, by which duplicates are found."""

    def add(self, path: bytes, line: int) -> None:
        """Append a path."""
        self._text += path
        self._ends.append(len(self._text))
        self.lines.append(line)
        self.hashes.append(hash(path))

    def finish(self) -> Paths:
        """Return all paths."""
        return Paths(np.frombuffer(bytes(self._text), np.uint8), np.array(self._ends, np.int64))


class Spelling:
    """Turns the paths of a list into those of the file system, and keeps count of those that are written otherwise.

    Args:
        path: The list.
        top: Folder that its paths begin in, with a slash; empty for the current one.
    """

    def __init__(self, path: Path, top: str) -> None:
        self._path = path
        self._top = top
        self._changed = 0
        self._example = ("", "")

    def correct(self, given: str) -> str:
        """Return a path as the file is spelt, where it is written with Windows' backslashes or blanks around it."""
        stripped = given.strip()
        spellings = dict.fromkeys((given, stripped, stripped.replace("\\", "/")))
        if len(spellings) == 1:
            return given
        for spelt in spellings:
            if os.path.lexists(os.path.join(self._top, spelt)):
                break
        else:
            return given
        if spelt != given:
            if not self._changed:
                self._example = (given, spelt)
            self._changed += 1
        return spelt

    def resolve(self, given: Any, where: str) -> bytes:
        """Return a path relative to the top.

        Raises:
            DataError: It is no path, or leads outside.
        """
        if not isinstance(given, str) or not given.strip() or "\0" in given:
            raise DataError(f"{where}: its path is {given!r}; it must be that of an image")
        spelt = self.correct(given)
        full = os.path.normpath(os.path.join(self._top, spelt))
        if not full.startswith(self._top):
            raise DataError(
                f"{where}: {printable(spelt)} lies outside {printable(self._top)}; set data.root "
                "to a folder that holds them all"
            )
        try:
            return os.fsencode(full[len(self._top) :])
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: its path {given!a} is no text") from error

    def notes(self) -> list[str]:
        """Return a note about the paths that were corrected."""
        if not self._changed:
            return []
        given, spelt = map(printable, self._example)
        return [
            f"{self._path}: {self._changed:,} paths are not spelt as the files are; {given} is "
            f"read as {spelt}"
        ]


def refuse_missing(path: Path, root: Path, top: str, paths: Paths, lines: Sequence[int]) -> None:
    """Refuse a list whose images are not there, or are no files.

    Args:
        path: The list.
        root: Folder that the paths begin in.
        top: Its absolute path, with a slash at the end.
        paths: Paths of the images below it.
        lines: Number of each path's line.
    """
    before = os.fsencode(top)
    no_files = [index for index, name in enumerate(paths) if not os.path.isfile(before + name)]
    missing = [index for index in no_files if not os.access(before + paths[index], os.F_OK)]
    if missing:
        name = paths.name(missing[0])
        advice = "set data.root to the folder that the paths begin in, or correct them"
        if "\\" in name:
            advice += (
                "; they are written as on Windows: write them as they are below data.root, with /"
            )
        raise DataError(
            f"{path}: {len(missing):,} of its {len(paths):,} images are not below "
            f"{printable(root)}, the first is "
            f"{printable(name)} in line {lines[missing[0]]}; {advice}"
        )
    if no_files:
        name = paths.name(no_files[0])
        raise DataError(
            f"{path} line {lines[no_files[0]]}: {printable(name)} is "
            f"{no_file(top + name) or 'a folder'}, no image file; remove the row"
        )
