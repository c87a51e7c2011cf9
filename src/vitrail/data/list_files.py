"""Rows of CSV and JSON-lines files, as any program writes them: encodings, separators, headers and their errors."""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from vitrail.cells import unguard
from vitrail.classes.names import LONGEST as LONGEST_NAME
from vitrail.classes.names import canonical
from vitrail.data.folders import is_image
from vitrail.errors import DataError, format_choices, printable, tell_syntax
from vitrail.files import no_file

CSV = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".ndjson")
"""File extensions by which the format is known."""
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs"}
"""Separators of columns, and their names."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Encoding of a text file by its first bytes; the longer of two marks that begin alike comes
first."""
NO_TEXT = {
    b"PK\3\4": "a workbook of Excel or LibreOffice, or another ZIP archive",
    b"\xd0\xcf\x11\xe0": "a workbook of an old Excel",
    b"\x1f\x8b": "packed by gzip",
    b"PAR1": "Parquet",
    b"SQLi": "a database of SQLite",
}
"""Kinds of files that are often given a name that ends in .csv, by their first bytes."""
NO_TEXT_ADVICE = "save it as CSV in UTF-8, or unpack it"
LONGEST = 2**20
"""Most characters of a line; a file with longer ones is no list."""

Row = tuple[int, dict[str, Any]]
"""Number of a line, and its cells by column."""


def is_table(path: Path) -> bool:
    """Say whether a file has the extension of a list with columns."""
    return path.suffix.lower() in (*CSV, *JSON_LINES)


def read_rows(
    path: Path, called: str, path_column: str, notes: list[str]
) -> tuple[Row, Iterator[Row]]:
    """Return the first row of a list, and an iterator over the others.

    Args:
        path: The list.
        called: Name of the list in errors.
        path_column: Column of the paths, by which the separator of a CSV file is found.
        notes: Collects messages about how the file is written.

    Raises:
        DataError: The file cannot be read, a line of it is wrong, or it has no row.
    """
    lines = read_lines(path, called, notes)
    if path.suffix.lower() in JSON_LINES:
        rows = _read_json_rows(path, lines)
    else:
        rows = _read_csv_rows(path, called, lines, path_column, notes)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{called}: lists no image")
    return first, rows


def require_column(called: str, name: str, setting: str, cells: dict[str, Any]) -> None:
    """Refuse a list without a column that a setting names."""
    if name not in cells:
        raise DataError(
            f"{called}: has no column "
            f"{name!r}{format_choices(name, list(cells), 'its columns are')}; name it with "
            f"data.{setting}=COLUMN"
        )


def read_cell(cells: dict[str, Any], name: str, where: str) -> Any:
    """Return a cell of a row; in JSON lines, a row may lack it."""
    if name not in cells:
        raise DataError(f"{where}: has no {name!r}")
    return cells[name]


def read_lines(
    path: Path, called: str, notes: list[str], *, any_bytes: bool = False
) -> Iterator[str]:
    """Yield the lines of a text file with their ends, in whatever encoding it is written.

    Args:
        path: The file.
        called: Name of the file in errors.
        notes: Collects a message about the encoding, unless it is UTF-8.
        any_bytes: Let bytes that are no text stand, escaped as file names are.

    Raises:
        DataError: It cannot be read, or is no text.
    """
    number = 1
    encoding = "utf-8"
    try:
        kind = no_file(path)  # which might block whoever opens it
        if kind:
            raise DataError(f"{called}: is {kind}, no regular file; write the list to a file")
        encoding = _find_encoding(path, called)
        if "8" not in encoding:
            notes.append(f"{path}: is written in {encoding.upper()}")
        # with newline="", lines end as on any system, and those in quoted cells stay as they are
        with path.open(encoding=encoding, errors="surrogateescape", newline="") as file:
            while line := file.readline(LONGEST):
                _check_line(line, f"{path} line {number}", encoding, any_bytes)
                yield line
                number += 1
    except UnicodeError as error:
        raise DataError(
            f"{path} line {number}: is damaged {encoding.upper()}; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise DataError(f"{called}: cannot be read ({error.strerror})") from error


def _find_encoding(path: Path, called: str) -> str:
    """Return the encoding of a text file by its first bytes, and refuse a file of another kind."""
    with path.open("rb") as file:
        start = file.read(4)
    for beginning, kind in NO_TEXT.items():
        if start.startswith(beginning):
            raise DataError(f"{called}: is {kind}, whatever its name ends in; {NO_TEXT_ADVICE}")
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return encoding
    return "utf-8"


def _check_line(line: str, where: str, encoding: str, any_bytes: bool) -> None:
    if "\0" in line:
        raise DataError(
            f"{where}: holds a zero byte, as UTF-16 without its mark does; save the file as UTF-8"
        )
    if len(line) >= LONGEST:
        raise DataError(f"{where}: has over {LONGEST:,} characters; this is no list of images")
    if any_bytes or line.isascii():
        return
    wrong = re.search("[\udc80-\udcff]", line)
    if wrong:
        name = encoding.upper().removesuffix("-SIG")
        raise DataError(
            f"{where}: is not {name} (byte 0x{ord(wrong[0]) - 0xDC00:02x}); save the file as UTF-8"
        )


def _read_csv_rows(
    path: Path, called: str, lines: Iterator[str], path_column: str, notes: list[str]
) -> Iterator[Row]:
    """Yield the rows of a CSV file; its header may have empty lines, or Excel's sep=, above it."""
    before, header, delimiter = _find_header(called, lines)
    _refuse_image(f"{path} line {before + 1}", header, path_column)
    if delimiter is None:
        delimiter = _find_delimiter(header, path_column)
    if delimiter != ",":
        notes.append(
            f"{path}: its columns are separated by {DELIMITERS.get(delimiter, repr(delimiter))}"
        )
    reader = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    guarded = 0
    try:
        names = _read_names(next(reader), f"{path} line {before + 1}")
        for cells in reader:
            line = before + reader.line_num
            # cells of columns without a name
            while len(cells) > len(names) and not cells[-1].strip():
                cells.pop()
            if not any(map(str.strip, cells)):
                continue
            if len(cells) != len(names):
                raise DataError(
                    f"{path} line {line}: has {len(cells)} cells, the header {len(names)}; a cell "
                    f"that holds {delimiter!r} is quoted"
                )
            plain = list(map(unguard, cells))
            guarded += plain != cells
            row = dict(zip(names, plain, strict=True))
            row.pop("", None)  # columns without a name
            yield line, row
    except csv.Error as error:
        raise DataError(f"{path} line {before + reader.line_num}: is no CSV ({error})") from error
    if guarded:
        notes.append(
            f"{path}: {guarded:,} lines have an apostrophe before = + - or @, as vitrail writes "
            "them for spreadsheets; they are read without it"
        )
    if not all(names):
        notes.append(f"{path}: {names.count('')} columns without a name are not read")


def _find_header(called: str, lines: Iterator[str]) -> tuple[int, str, str | None]:
    """Return the number of lines above the header, the header, and the separator where a line above names it."""
    delimiter = None
    for before, line in enumerate(lines):
        # as Excel writes and reads
        declared = re.fullmatch(r'"?sep=(.)"?', line.strip("\r\n"), re.IGNORECASE)
        if declared:
            delimiter = declared[1]
        elif line.strip():
            return before, line, delimiter
    raise DataError(f"{called}: is empty; its first line must name the columns, such as path,label")


def _find_delimiter(header: str, path_column: str) -> str:
    """Return the separator by which a header has the column of paths; a comma where none does."""
    for delimiter in DELIMITERS:
        names = [canonical(name.strip(' "\r\n')) for name in header.split(delimiter)]
        if path_column in names:
            return delimiter
    return ","


def _read_names(cells: list[str], where: str) -> list[str]:
    """Return the names of the columns, empty for those without one, but none of these at the end."""
    names = [canonical(name.strip()) for name in cells]
    while names and not names[-1]:
        names.pop()
    twice = [name for name, count in Counter(filter(None, names)).items() if count > 1]
    if twice:
        raise DataError(f"{where}: names the column {twice[0]!r} twice; rename one")
    return names


def _refuse_image(where: str, header: str, path_column: str) -> None:
    """Refuse a list whose first line names no columns, but the first image."""
    cells = [cell.strip('"') for cell in re.split(r"[,;\t ]", header.strip())]
    images = list(filter(is_image, cells))
    if path_column not in cells and images:
        raise DataError(
            f"{where}: names an image, {printable(images[0])}, and no columns; put a line above it "
            "that names them, such as path,label"
        )


def _read_json_rows(path: Path, lines: Iterator[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line, object_pairs_hook=_make_object, parse_int=_read_whole_number)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} line {number}: is no JSON ({tell_syntax(error)})") from error
        if not isinstance(cells, dict):
            raise DataError(
                f'{path} line {number}: is no JSON object such as {{"path": "a.jpg", "label": "cat"}}'
            )
        named = {canonical(name): value for name, value in cells.items()}
        if len(named) < len(cells):
            raise DataError(
                f"{path} line {number}: has a key twice, in two forms of Unicode; rename one"
            )
        yield number, named


def _read_whole_number(digits: str) -> int | str:
    """Return a number, or as text one of more digits than int() takes, so that whoever asks for it refuses it."""
    return int(digits) if len(digits) <= LONGEST_NAME else digits


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object as a dict, and refuse a key that comes twice."""
    cells = dict(pairs)
    if len(cells) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"it names {twice!r} twice")
    return cells
