"""Lists of images with their labels, as CSV or JSON lines: one class an image, or several."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.cells import unguard
from vitrail.classes.names import (
    BETWEEN,
    are_whole_numbers,
    canonical,
    check_name,
    order,
    why_apart,
    with_comma,
    without_points,
)
from vitrail.classes.names import LONGEST as LONGEST_NAME
from vitrail.config.sections import DataSection
from vitrail.data.folders import SPLIT_WORDS, Listing, is_image
from vitrail.data.paths import Paths
from vitrail.data.sources import FileSource, images_of_classes
from vitrail.errors import DataError, among, few, printable
from vitrail.files import no_file

CSV, JSON_LINES = (".csv", ".tsv"), (".jsonl", ".ndjson")
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
SPLIT = "split"
"""Column that says which part an image is of."""
LABEL, LABELS = "label", "labels"
"""Columns of one class and of several, where the settings name none."""
TRAIN, VAL = 0, 1
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
"""By the bytes that a text file may begin with, how it is written; the longer of two that begin alike comes first."""
NO_TEXT = {
    b"PK\3\4": "a workbook of Excel or LibreOffice, or another ZIP archive",
    b"\xd0\xcf\x11\xe0": "a workbook of an old Excel",
    b"\x1f\x8b": "packed by gzip", b"PAR1": "Parquet", b"SQLi": "a database of SQLite",
}  # fmt: skip
"""What is often given a name that ends in .csv, by the bytes that it begins with."""
NO_TEXT_ADVICE = "save it as CSV in UTF-8, or unpack it"
LONGEST = 2**20
"""Characters of a line; a file with longer ones is no list."""

Row = tuple[int, dict[str, Any]]
"""Line and cells by column."""


@dataclass(frozen=True)
class Listed:
    """The images of a list, by their part; all are `train` where it names no parts."""

    train: FileSource | None
    val: FileSource | None
    is_divided: bool
    """Whether it has a column that names the parts."""
    others: tuple[str, ...]
    """Parts that are left out."""


@dataclass(frozen=True)
class _Columns:
    """Where the labels of a list stand."""

    kind: Literal["one", "several", "table"]
    """One class an image, several in a cell, or a column of 0 and 1 for each class."""
    names: tuple[str, ...]
    """Of the column, or of the classes."""


def read_list(section: DataSection) -> Listed:
    """Read `data.list`.

    Raises:
        DataError: The file cannot be read, or a line of it is wrong; or images are not there.
    """
    columns_named = ("path_column", "label_column", "labels_column")
    section = replace(
        section, **{key: canonical(name) for key in columns_named if (name := getattr(section, key)) is not None}
    )
    assert section.list is not None
    path = Path(section.list).expanduser()
    if not is_table(path):
        raise DataError(f"data.list {path}: must end in {', '.join((*CSV, *JSON_LINES))}, by which it is known")
    root, top = _root(path, section.root)
    notes: list[str] = []
    spelling = Spelling(path, top)
    first, rows = _rows(path, f"data.list {path}", section.path_column, notes)
    columns = _find_columns(path, first, section)
    is_divided = SPLIT in first[1]
    needed = {section.path_column, SPLIT, *columns.names}
    if unread := [repr(name) for name in first[1] if name not in needed]:
        notes.append(f"{path}: has columns that are not read: {few(unread, 10)}")

    text, ends, lines, labels, parts = bytearray(), array("q"), array("q"), array("i"), bytearray()
    hashes, left_out = array("q"), Counter[str]()
    codes = {name: code for code, name in enumerate(columns.names)} if columns.kind == "table" else {}
    sets: dict[tuple[int, ...], int] = {}
    for line, cells in chain([first], rows):
        where = f"{path} line {line}"
        if SPLIT in cells and not is_divided:
            raise DataError(f"{where}: has a {SPLIT!r}, which the first line has not; give all lines one, or none")
        part = _part(cells, section, where) if is_divided else TRAIN
        if isinstance(part, str):
            left_out[part] += 1
            continue
        name = spelling.below(_cell(cells, section.path_column, where), where)
        found = [codes.setdefault(label, len(codes)) for label in _labels(cells, columns, where)]
        text += name
        ends.append(len(text))
        hashes.append(hash(name))
        lines.append(line)
        parts.append(part)
        labels.append(found[0] if columns.kind == "one" else sets.setdefault(tuple(sorted(found)), len(sets)))
    notes += spelling.notes()
    if left_out:
        counted = ", ".join(f"{count:,} of {name!r}" for name, count in sorted(left_out.items()))
        notes.append(f"{path}: leaves out its rows of other parts: {counted}")
    if not labels:
        raise DataError(
            f"data.list {path}: has rows of {few([*left_out])} only; set data.train_split or data.val_split to one of "
            "them"
        )
    if not codes:
        raise DataError(f"data.list {path}: none of its {len(labels):,} images has a label")

    paths = Paths(np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64))
    numbers = np.array(labels, np.int32)
    _refuse_twice(path, paths, np.array(hashes, np.int64), lines)
    _refuse_missing(path, root, top, paths, lines)
    names, merged = list(codes), np.arange(len(codes))
    if whole := without_points(names):
        pointed = next(name for name in names if "." in name)
        notes.append(
            f"{path}: its labels are whole numbers written with a point, such as {pointed}, which is read as "
            f"{whole[pointed]}"
        )
        names = list(dict.fromkeys(whole.values()))
        merged = np.array([names.index(whole[name]) for name in codes])
    if comma := with_comma(names):
        notes.append(
            f"{path}: its labels are numbers written with a decimal comma, such as {comma!r}; each is the name of a "
            "class as it stands; write whole numbers without a fraction if they are meant"
        )
    if columns.kind == "several" and (joined := [name for name in names if "," in name or ";" in name]):
        notes.append(
            f"{path}: {len(joined)} of its {len(names)} classes hold a comma or semicolon, such as {joined[0]!r}; each "
            f"is one class, as {BETWEEN!r} stands between classes"
        )
    sequence = order(names, section.class_order)
    if section.class_order is None and are_whole_numbers(names):
        notes.append(f"{path}: its {len(names)} classes are numbers, and in the order of numbers")
    label_sets = None
    if columns.kind == "one":
        numbers = np.argsort(sequence).astype(np.int32)[merged[numbers]]
    else:
        label_sets = np.zeros((len(sets), len(names)), np.bool_)
        for members, number in sets.items():
            label_sets[number, merged[list(members)]] = True
        label_sets = np.ascontiguousarray(label_sets[:, sequence])

    def source(part: int) -> FileSource | None:
        chosen = np.frombuffer(bytes(parts), np.uint8) == part
        if not chosen.any():
            return None
        part_name = f", split {(section.train_split, section.val_split)[part]}" if is_divided else ""
        return FileSource(
            Path(root), paths.take(chosen), numbers[chosen], tuple(names[i] for i in sequence),
            f"{printable(path)}{part_name}", tuple(notes), label_sets,
        )  # fmt: skip

    return Listed(source(TRAIN), source(VAL), is_divided, tuple(sorted(left_out)))


def list_rows(section: DataSection) -> Listing:
    """Return the images of `data.list` as those of a folder are listed.

    Raises:
        DataError: As `read_list` does; or it has none to train on, or none of the part to validate with.
    """
    listed, where = read_list(section), f"data.list {section.list}"
    train, val = listed.train, listed.val
    rest = f", only {few(listed.others)}" if listed.others else ""
    if train is None:
        raise DataError(f"{where}: has no row whose split is data.train_split {section.train_split!r}{rest}")
    if listed.is_divided and val is None and section.val_split is not None:
        raise DataError(
            f"{where}: has no row whose split is data.val_split {section.val_split!r}{rest}; set data.val_split to "
            "another, or to null to hold out data.val_fraction of the training rows"
        )
    problems = []
    counts = images_of_classes(train)
    if train.label_sets is None and (counts > 0).sum() == 1:
        only = train.classes[int(counts.argmax())]
        problems.append(f"{where}: has only one class, {only!r}; a classifier needs at least two")
    if val is not None and len(extra := np.flatnonzero((counts == 0) & (images_of_classes(val) > 0))):
        only = [train.classes[i] for i in extra]
        alike = why_apart(only, [train.classes[i] for i in np.flatnonzero(counts > 0)])
        problems.append(
            f"{where}: {len(extra)} classes have validation rows but no training row: {few(only)}{alike}; add some"
        )
    return Listing(train.folder, train, val, tuple(problems), is_list=True)


def is_table(path: Path) -> bool:
    """Say whether a file's name ends as lists of images with columns do."""
    return path.suffix.lower() in (*CSV, *JSON_LINES)


def read_paths(path: Path, root: str | None, column: str) -> tuple[str, Paths, tuple[str, ...]]:
    """Read where the images of a list are, and nothing else of it.

    Returns:
        The folder that the paths begin in, the paths, and what the user should know.

    Raises:
        DataError: The file cannot be read, or a line of it is wrong; or images are not there.
    """
    folder, top = _root(path, root)
    notes: list[str] = []
    first, rows = _rows(path, printable(path), column, notes)
    _require_column(printable(path), column, "path_column", first[1])
    text, ends, lines, spelling = bytearray(), array("q"), array("q"), Spelling(path, top)
    for line, cells in chain([first], rows):
        where = f"{path} line {line}"
        text += spelling.below(_cell(cells, column, where), where)
        ends.append(len(text))
        lines.append(line)
    paths = Paths(np.frombuffer(bytes(text), np.uint8), np.array(ends, np.int64))
    _refuse_missing(path, folder, top, paths, lines)
    notes += spelling.notes()
    if unread := [repr(name) for name in first[1] if name != column]:
        notes.append(f"{path}: has columns that are not read: {few(unread, 10)}")
    return os.path.join(folder, ""), paths, tuple(notes)


def read_lines(path: Path, called: str, notes: list[str], *, any_bytes: bool = False) -> Iterator[str]:
    """Yield the lines of a text file with their ends, whatever system has written it.

    Args:
        path: The file.
        called: What to call it where it cannot be read.
        notes: Takes a word about how it is written, unless that is UTF-8.
        any_bytes: Let bytes that are no text stand, escaped as file names are.

    Raises:
        DataError: It cannot be read, or is no text.
    """
    number, encoding = 1, "utf-8"
    try:
        if odd := no_file(path):  # which might block whoever opens it
            raise DataError(f"{called}: is {odd}, no regular file; write the list to a file")
        with path.open("rb") as file:
            start = file.read(4)
        if told := next((what for begin, what in NO_TEXT.items() if start.startswith(begin)), None):
            raise DataError(f"{called}: is {told}, whatever its name ends in; {NO_TEXT_ADVICE}")
        encoding = next((name for mark, name in MARKS.items() if start.startswith(mark)), encoding)
        if "8" not in encoding:
            notes.append(f"{path}: is written in {encoding.upper()}")
        # with newline="", lines end as on any system, and those in quoted cells stay as they are
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
            while line := file.readline(LONGEST):
                _check_line(line, f"{path} line {number}", encoding, any_bytes)
                yield line
                number += 1
    except UnicodeError as error:
        raise DataError(f"{path} line {number}: is damaged {encoding.upper()}; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{called}: cannot be read ({error.strerror})") from error


def _check_line(line: str, where: str, encoding: str, any_bytes: bool) -> None:
    if "\0" in line:
        raise DataError(f"{where}: holds a zero byte, as UTF-16 without its mark does; save the file as UTF-8")
    if len(line) >= LONGEST:
        raise DataError(f"{where}: has over {LONGEST:,} characters; this is no list of images")
    if not any_bytes and not line.isascii() and (wrong := re.search("[\udc80-\udcff]", line)):
        name = encoding.upper().removesuffix("-SIG")
        raise DataError(f"{where}: is not {name} (byte 0x{ord(wrong[0]) - 0xDC00:02x}); save the file as UTF-8")


def _root(path: Path, given: str | None) -> tuple[Path, str]:
    """Return the folder that the paths of a list begin in, also as what stands before them."""
    root = path.parent if given is None else Path(given).expanduser()
    if not root.is_dir():
        raise DataError(
            f"data.root {printable(root)}: is no folder; give the one that the paths of {path} begin in, or null for "
            "its own"
        )
    return root, os.path.join(os.path.normpath(root.absolute()), "")


def _rows(path: Path, called: str, path_column: str, notes: list[str]) -> tuple[Row, Iterator[Row]]:
    """Return the first row of a list, and the others."""
    lines = read_lines(path, called, notes)
    is_json = path.suffix.lower() in JSON_LINES
    rows = _json_rows(path, lines) if is_json else _csv_rows(path, called, lines, path_column, notes)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{called}: lists no image")
    return first, rows


def _csv_rows(path: Path, called: str, lines: Iterator[str], path_column: str, notes: list[str]) -> Iterator[Row]:
    before, by, guarded = 0, None, 0
    for header in lines:
        if told := re.fullmatch(r'"?sep=(.)"?', header.strip("\r\n"), re.IGNORECASE):  # as Excel writes and reads
            by = told[1]
        elif header.strip():
            break
        before += 1
    else:
        raise DataError(f"{called}: is empty; its first line must name the columns, such as path,label")
    _refuse_image(f"{path} line {before + 1}", header, path_column)
    if by is None:
        by = next(
            (one for one in DELIMITERS if path_column in [canonical(c.strip(' "\r\n')) for c in header.split(one)]), ","
        )
    if by != ",":
        notes.append(f"{path}: its columns are separated by {DELIMITERS.get(by, repr(by))}")
    reader = csv.reader(chain([header], lines), delimiter=by, strict=True)
    try:
        names = [canonical(name.strip()) for name in next(reader)]
        while names and not names[-1]:
            names.pop()
        if twice := [name for name, count in Counter(filter(None, names)).items() if count > 1]:
            raise DataError(f"{path} line {before + 1}: names the column {twice[0]!r} twice; rename one")
        is_named = [bool(name) for name in names]
        for cells in reader:
            where = f"{path} line {before + reader.line_num}"
            while len(cells) > len(names) and not cells[-1].strip():  # of columns without a name
                cells.pop()
            if not any(cell.strip() for cell in cells):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{where}: has {len(cells)} cells, the header {len(names)}; a cell that holds {by!r} is quoted"
                )
            plain = [unguard(cell) for cell in cells]
            guarded += plain != cells
            yield before + reader.line_num, {name: cell for name, cell in zip(names, plain, strict=True) if name}
    except csv.Error as error:
        raise DataError(f"{path} line {before + reader.line_num}: is no CSV ({error})") from error
    if guarded:
        notes.append(
            f"{path}: {guarded:,} lines have an apostrophe before = + - or @, as vitrail writes them for spreadsheets; "
            "they are read without it"
        )
    if not all(is_named):
        notes.append(f"{path}: {is_named.count(False)} columns without a name are not read")


def _refuse_image(where: str, header: str, path_column: str) -> None:
    """Refuse a list whose first line names no columns, but the first image."""
    cells = [cell.strip('"') for cell in re.split(r"[,;\t ]", header.strip())]
    if path_column not in cells and (images := list(filter(is_image, cells))):
        raise DataError(
            f"{where}: names an image, {printable(images[0])}, and no columns; put a line above it that names them, "
            "such as path,label"
        )


def _json_rows(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_each_once, parse_int=_whole_number)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number}: is no JSON ({error})") from error
        if not isinstance(cells, dict):
            raise DataError(f'{path} line {number}: is no JSON object such as {{"path": "a.jpg", "label": "cat"}}')
        named = {canonical(name): value for name, value in cells.items()}
        if len(named) < len(cells):
            raise DataError(f"{path} line {number}: has a key twice, in two forms of Unicode; rename one")
        yield number, named


def _whole_number(digits: str) -> int | str:
    """Return a number, or as text one of more digits than int() takes, so that whoever asks for it refuses it."""
    return int(digits) if len(digits) <= LONGEST_NAME else digits


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    cells = dict(pairs)
    if len(cells) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it names {twice!r} twice")
    return cells


def _require_column(called: str, name: str, setting: str, cells: dict[str, Any]) -> None:
    if name not in cells:
        raise DataError(
            f"{called}: has no column {name!r}{among(name, list(cells), 'its columns are')}; name it with "
            f"data.{setting}=COLUMN"
        )


def _find_columns(path: Path, first: Row, section: DataSection) -> _Columns:
    """Tell by the names of the columns where the labels stand; what is in them decides nothing else.

    Raises:
        DataError: There are none, or in two ways.
    """
    line, cells = first
    names = list(cells)

    _require_column(f"data.list {path}", section.path_column, "path_column", cells)
    if section.label_column is not None:
        _require_column(f"data.list {path}", section.label_column, "label_column", cells)
        return _Columns("one", (section.label_column,))
    if section.labels_column is not None:
        _require_column(f"data.list {path}", section.labels_column, "labels_column", cells)
        return _Columns("several", (section.labels_column,))
    if LABEL in cells and LABELS in cells:
        raise DataError(
            f"data.list {path}: has a column {LABEL!r} and a column {LABELS!r}; choose with data.label_column={LABEL} "
            f"(one class an image) or data.labels_column={LABELS} (several)"
        )
    if LABEL in cells:
        return _Columns("one", (LABEL,))
    if LABELS in cells:
        return _Columns("several", (LABELS,))
    others = [name for name in names if name not in (section.path_column, SPLIT)]
    odd = [name for name in others if _bit(cells[name]) is None]
    if len(others) < 2 or odd:
        why = f", and {odd[0]!r} is {cells[odd[0]]!r} in line {line}" if odd else ""
        raise DataError(
            f"data.list {path}: has no column {LABEL!r} or {LABELS!r}{among(LABEL, names, 'its columns are')}; name it "
            f"with data.label_column=COLUMN (one class an image) or data.labels_column=COLUMN (several); without "
            f"it, two or more other columns must hold 0 or 1, each for a class{why}"
        )
    for name in others:
        check_name(name, f"{path} line 1")
    return _Columns("table", tuple(others))


def _cell(cells: dict[str, Any], name: str, where: str) -> Any:
    if name not in cells:  # of a JSON object
        raise DataError(f"{where}: has no {name!r}")
    return cells[name]


def _part(cells: dict[str, Any], section: DataSection, where: str) -> int | str:
    """Return TRAIN or VAL, or the name of another part."""
    value = _cell(cells, SPLIT, where)
    name = value.strip() if isinstance(value, str) else value
    if name == section.train_split:
        return TRAIN
    if name == section.val_split:
        return VAL
    if not isinstance(name, str) or name.lower() not in SPLIT_WORDS:
        known = [section.train_split, *([section.val_split] if section.val_split else [])]
        raise DataError(
            f"{where}: its split is {name!r}{among(str(name), known, 'known are')} (data.train_split, data.val_split), "
            "and words such as 'test', whose rows are left out"
        )
    return name


class Spelling:
    """Turns the paths of a list into those of the file system, and keeps count of those that are written otherwise.

    Args:
        path: The list.
        top: Folder that its paths begin in, with a slash; nothing for the current one.
    """

    def __init__(self, path: Path, top: str) -> None:
        self._path, self._top = path, top
        self._changed, self._example = 0, ("", "")

    def of(self, given: str) -> str:
        """Return a path as the file is spelt, where it is written with Windows' backslashes or blanks around it."""
        spellings = dict.fromkeys((given, given.strip(), given.strip().replace("\\", "/")))
        if len(spellings) == 1:
            return given
        spelt = next((one for one in spellings if os.path.lexists(os.path.join(self._top, one))), given)
        if spelt != given:
            self._example = self._example if self._changed else (given, spelt)
            self._changed += 1
        return spelt

    def below(self, given: Any, where: str) -> bytes:
        """Return a path below the top.

        Raises:
            DataError: It is none.
        """
        if not isinstance(given, str) or not given.strip() or "\0" in given:
            raise DataError(f"{where}: its path is {given!r}; it must be that of an image")
        spelt = self.of(given)
        full = os.path.normpath(os.path.join(self._top, spelt))
        if not full.startswith(self._top):
            raise DataError(
                f"{where}: {printable(spelt)} lies outside {printable(self._top)}; set data.root to a folder that "
                "holds them all"
            )
        try:
            return os.fsencode(full[len(self._top) :])
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: its path {given!a} is no text") from error

    def notes(self) -> list[str]:
        """Say which paths were read otherwise than they are written."""
        given, spelt = map(printable, self._example)
        told = f"{self._path}: {self._changed:,} paths are not spelt as the files are; {given} is read as {spelt}"
        return [told] if self._changed else []


def _labels(cells: dict[str, Any], columns: _Columns, where: str) -> Sequence[str]:
    """Return the classes of an image."""
    if columns.kind == "table":
        bits = [_bit(_cell(cells, name, where)) for name in columns.names]
        if None in bits:
            name = columns.names[bits.index(None)]
            raise DataError(f"{where}: {name!r} is {cells[name]!r}; it must be 0 or 1")
        if extra := [name for name in cells if name not in columns.names and _bit(cells[name]) is not None]:
            raise DataError(f"{where}: has {extra[0]!r}, which the first line has not; name all classes there")
        return [name for name, bit in zip(columns.names, bits, strict=True) if bit]
    column = columns.names[0]
    value = _cell(cells, column, where)
    if columns.kind == "one":
        if isinstance(value, list):
            raise DataError(
                f"{where}: {column!r} is a list; for several classes an image, set data.labels_column={column}"
            )
        return [check_name(value, where)]
    if isinstance(value, str):
        value = value.split(BETWEEN) if value.strip() else []
    if not isinstance(value, list):
        raise DataError(f"{where}: {column!r} is {value!r}; it must be a list of classes, which may be empty")
    names = [check_name(name, where) for name in value]
    if len(set(names)) < len(names):
        raise DataError(f"{where}: names a class twice: {BETWEEN.join(names)}")
    return names


def _bit(value: Any) -> int | None:
    text = value.strip() if isinstance(value, str) else value
    return int(text) if text in ("0", "1", 0, 1) and not isinstance(text, float) else None


def _refuse_twice(path: Path, paths: Paths, hashes: NDArray[np.int64], lines: Sequence[int]) -> None:
    order = np.argsort(hashes, kind="stable")
    same = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    for first, second in sorted((int(order[i]), int(order[i + 1])) for i in same):
        if paths[first] == paths[second]:
            raise DataError(
                f"{path} line {lines[second]}: {printable(paths.name(second))} stands in line {lines[first]} already; "
                f"each image has one row, several classes go into a column {LABELS!r}, with {BETWEEN!r} between them"
            )


def _refuse_missing(path: Path, root: Path, top: str, paths: Paths, lines: Sequence[int]) -> None:
    before = os.fsencode(top)
    odd = [index for index, name in enumerate(paths) if not os.path.isfile(before + name)]
    missing = [index for index in odd if not os.access(before + paths[index], os.F_OK)]
    if missing:
        name = paths.name(missing[0])
        windows = "; they are written as on Windows: write them as they are below data.root, with /" * ("\\" in name)
        raise DataError(
            f"{path}: {len(missing):,} of its {len(paths):,} images are not below {printable(root)}, the first is "
            f"{printable(name)} in line {lines[missing[0]]}; set data.root to the folder that the paths begin in, or "
            f"correct them{windows}"
        )
    if odd:
        name = paths.name(odd[0])
        raise DataError(
            f"{path} line {lines[odd[0]]}: {printable(name)} is {no_file(top + name) or 'a folder'}, no image file; "
            "remove the row"
        )
