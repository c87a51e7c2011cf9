"""Find images: in files, folders, globs, text files of paths, and lists with columns."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

from vitrail.data.folders import (
    IN_A_CIRCLE,
    Ignored,
    is_hidden,
    is_image,
    is_unread_image,
    lies_in_a_circle,
    walk,
)
from vitrail.data.list_files import is_table, read_lines
from vitrail.data.list_paths import Spelling, read_paths
from vitrail.errors import DataError, printable
from vitrail.files import no_file

LIST_SUFFIXES = (".txt", ".lst", ".list")
GIVE = "give an image, a folder, a quoted glob, a .txt list of paths, or a .csv, .tsv or .jsonl list with their column"


def find_images(
    inputs: Iterable[str],
    note: Callable[[str], None],
    *,
    root: str | None = None,
    path_column: str = "path",
) -> Iterator[str]:
    """Yield image paths from files, folders (searched deeply), globs, text files with one path a line, and lists.

    Memory does not grow with their number, but for the paths of lists with columns. A path in a
    text file is yielded as it stands, so a missing one becomes a row.

    Args:
        inputs: Files, folders, globs and lists as the user gave them.
        note: Told of files that are passed over, or read otherwise than they are written.
        root: Folder that the paths of lists with columns begin in, as `data.root`; None is each
            list's own.
        path_column: Column of paths in such lists, as `data.path_column`.

    Raises:
        DataError: An input that does not exist, or holds no image; a list that is wrong.
    """
    for given in inputs:
        paths = _in_input(given, note, root, path_column)
        first = next(paths, None)
        if first is None:
            raise DataError(f"{printable(given)}: holds no image; {GIVE}")
        yield first
        yield from paths


def _in_input(
    given: str, note: Callable[[str], None], root: str | None, path_column: str
) -> Iterator[str]:
    """Yield the image paths of one input.

    Raises:
        DataError: The input does not exist.
    """
    if not given:  # a shell's variable that is not set; as a path it would be the folder here
        raise DataError(f"'' names no image; {GIVE}, or write . for the folder here")
    path = Path(given)
    if path.is_dir():
        return _in_folder(path, note)
    if path.is_file():
        if path.suffix.lower() in LIST_SUFFIXES:
            return _in_text(path, note)
        if is_table(path):
            return _in_table(path, root, path_column, note)
        return iter((given,))
    if glob.has_magic(given):
        return _in_glob(given, note)
    if os.path.lexists(given):
        raise DataError(f"{printable(given)}: is {no_file(path)}; {GIVE}")
    raise DataError(f"{printable(given)}: no such file or folder; {GIVE}")


def _in_folder(folder: Path, note: Callable[[str], None]) -> Iterator[str]:
    ignored = Ignored()
    try:
        # an image of a format that is not read becomes a row with the reason
        for path in walk(
            folder, "", ignored, takes=lambda name: is_image(name) or is_unread_image(name)
        ):
            yield os.path.join(folder, path)
    except OSError as error:
        raise DataError(
            f"{printable(error.filename or folder)}: cannot be read ({error.strerror})"
        ) from error
    for remark in ignored.notes(folder):
        note(remark)


def _in_glob(pattern: str, note: Callable[[str], None]) -> Iterator[str]:
    """Yield the files that match, but for hidden and system files, unless the pattern names them."""
    ignored, named = Ignored(), Path(pattern).parts
    # a pattern with ** goes round a circle of links until the system stops it; folders are asked
    # for once each
    is_circle = cache(lies_in_a_circle)
    for match in sorted(glob.iglob(pattern, recursive=True)):  # as a disk's own order is chance
        path = Path(match)
        if any(is_hidden(part) and part not in named for part in path.parts):
            ignored.hidden.append(match)
        elif not path.is_file():
            if odd := no_file(path):
                ignored.odd.append(f"{match} ({odd})")
        elif is_circle(path.parent):
            ignored.odd.append(f"{match} (behind {IN_A_CIRCLE})")
        else:
            yield match
    for remark in ignored.notes(Path(pattern)):
        note(remark)


def _in_text(path: Path, note: Callable[[str], None]) -> Iterator[str]:
    notes: list[str] = []
    spelling = Spelling(path, "")
    for line in read_lines(path, printable(path), notes, any_bytes=True):
        if text := line.strip():
            yield spelling.correct(text)
    for remark in (*notes, *spelling.notes()):
        note(remark)


def _in_table(
    path: Path, root: str | None, column: str, note: Callable[[str], None]
) -> Iterator[str]:
    before, paths, notes = read_paths(path, root, column)
    for remark in notes:
        note(remark)
    for index in range(len(paths)):
        yield before + paths.name(index)
