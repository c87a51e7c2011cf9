"""Lists of labelled images, as CSV or JSON lines: splits, single-label and multi-label columns, class names."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.classes.names import (
    BETWEEN,
    are_whole_numbers,
    canonical,
    check_name,
    explain_look_alikes,
    find_decimal_comma,
    sort_classes,
    strip_points,
)
from vitrail.config.sections import DataSection
from vitrail.data.folders import SPLIT_WORDS, Listing
from vitrail.data.list_files import (
    CSV,
    JSON_LINES,
    Row,
    is_table,
    read_cell,
    read_rows,
    require_column,
)
from vitrail.data.list_paths import GatheredPaths, Spelling, find_top, refuse_missing
from vitrail.data.paths import Paths
from vitrail.data.sources import TRAIN, UNLABELLED, VAL, FileSource, count_by_class
from vitrail.errors import DataError, format_choices, list_some, printable, tell_count

SPLIT = "split"
"""Column that names the split of an image."""
LABEL = "label"
LABELS = "labels"
"""Columns of one class and of several, where the settings name none."""


@dataclass(frozen=True)
class Listed:
    """The images of a list by their split; all are `train` where it names no splits."""

    train: FileSource | None
    val: FileSource | None
    is_divided: bool
    """Whether the list has a column that names the splits."""
    others: tuple[str, ...]
    """Names of splits that are left out."""


@dataclass(frozen=True)
class _Columns:
    """The columns of a list that hold the labels."""

    kind: Literal["one", "several", "table", "none"]
    """One class an image, several in a cell, a column of 0 and 1 for each class, or labels that are
    not read."""
    names: tuple[str, ...]
    """Name of the column, or of the classes."""


class _Labels:
    """Labels of images, gathered one by one; a label of multi-label data is the number of its set of classes."""

    def __init__(self, columns: _Columns) -> None:
        self._is_single = columns.kind in ("one", "none")
        self._numbers = array("i")
        self._codes: dict[str, int] = {}
        self._sets: dict[tuple[int, ...], int] = {}
        if columns.kind == "table":
            self._codes = {name: code for code, name in enumerate(columns.names)}

    def __len__(self) -> int:
        return len(self._numbers)

    @property
    def names(self) -> list[str]:
        """Names of the classes, in the order in which they came."""
        return list(self._codes)

    def add(self, names: Sequence[str]) -> None:
        """Append the label of an image that has these classes."""
        codes = [self._codes.setdefault(name, len(self._codes)) for name in names]
        if self._is_single:
            self._numbers.append(codes[0])
        else:
            self._numbers.append(self._sets.setdefault(tuple(sorted(codes)), len(self._sets)))

    def finish(
        self, places: NDArray[np.int64], num_classes: int
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None]:
        """Return the labels and, for multi-label data, which classes each label stands for: (m, k).

        Args:
            places: Final index of each class, in the order in which they came.
            num_classes: Number k of classes.
        """
        numbers = np.array(self._numbers, np.int32)
        if self._is_single:
            return places.astype(np.int32)[numbers], None
        label_sets = np.zeros((len(self._sets), num_classes), np.bool_)
        for codes, number in self._sets.items():
            label_sets[number, places[list(codes)]] = True
        return numbers, label_sets


class _Images:
    """Images of a list, gathered row by row."""

    def __init__(self, columns: _Columns) -> None:
        self.paths = GatheredPaths()
        self.labels = _Labels(columns)
        self.splits = bytearray()
        """Split of each image, TRAIN or VAL."""
        self.left_out = Counter[str]()
        """Number of rows of other splits, by their names."""


def read_list(section: DataSection) -> Listed:
    """Read `data.list`.

    Raises:
        DataError: The file cannot be read, or a line of it is wrong; or images are not there.
    """
    section = _canonical_columns(section)
    assert section.list is not None
    path = Path(section.list).expanduser()
    if not is_table(path):
        raise DataError(
            f"data.list {path}: must end in {', '.join((*CSV, *JSON_LINES))}, by which it is known"
        )
    root, top = find_top(path, section.root)
    notes: list[str] = []
    spelling = Spelling(path, top)
    first, rows = read_rows(path, f"data.list {path}", section.path_column, notes)
    columns = _find_columns(path, first, section)
    is_divided = SPLIT in first[1]
    notes += _note_unread(path, first, {section.path_column, SPLIT, *columns.names})

    images = _gather_images(path, chain([first], rows), columns, section, spelling, is_divided)
    notes += spelling.notes()
    if images.left_out:
        numbers = ", ".join(
            f"{count:,} of {name!r}" for name, count in sorted(images.left_out.items())
        )
        notes.append(f"{path}: leaves out its rows of other parts: {numbers}")
    _refuse_empty(path, images)
    paths = images.paths.finish()
    _refuse_twice(path, paths, images.paths)
    refuse_missing(path, root, top, paths, images.paths.lines)

    # classes: their names in order, and the labels by it
    classes, places = _order_classes(path, images.labels.names, columns, section, notes)
    labels, label_sets = images.labels.finish(places, len(classes))
    split_of = np.frombuffer(bytes(images.splits), np.uint8)

    def source(split: int) -> FileSource | None:
        chosen = split_of == split
        if not chosen.any():
            return None
        description = printable(path)
        if is_divided:
            description += f", split {(section.train_split, section.val_split)[split]}"
        return FileSource(
            folder=Path(root),
            paths=paths.take(chosen),
            labels=labels[chosen],
            classes=classes,
            description=description,
            notes=tuple(notes),
            label_sets=label_sets,
        )

    return Listed(source(TRAIN), source(VAL), is_divided, tuple(sorted(images.left_out)))


def _gather_images(
    path: Path,
    rows: Iterable[Row],
    columns: _Columns,
    section: DataSection,
    spelling: Spelling,
    is_divided: bool,
) -> _Images:
    """Read the path, split and label of each image.

    Args:
        path: The list.
        rows: Rows of the list.
        columns: The columns of labels.
        section: The settings.
        spelling: Resolves paths.
        is_divided: Whether the list has a column that names the splits.
    """
    images = _Images(columns)
    for line, cells in rows:
        where = f"{path} line {line}"
        if SPLIT in cells and not is_divided:
            raise DataError(
                f"{where}: has a {SPLIT!r}, which the first line has not; give all lines one, or "
                "none"
            )
        split = _read_split(cells, section, where) if is_divided else TRAIN
        if isinstance(split, str):
            images.left_out[split] += 1
            continue
        images.paths.add(
            spelling.resolve(read_cell(cells, section.path_column, where), where), line
        )
        images.labels.add(_read_classes(cells, columns, where))
        images.splits.append(split)
    return images


def _canonical_columns(section: DataSection) -> DataSection:
    """Return the settings with the names of columns in one form of Unicode."""
    changes = {}
    for key in ("path_column", "label_column", "labels_column"):
        name = getattr(section, key)
        if name is not None:
            changes[key] = canonical(name)
    return replace(section, **changes)


def _note_unread(path: Path, first: Row, needed: set[str]) -> list[str]:
    """Return a note about columns that are not read."""
    unread = [repr(name) for name in first[1] if name not in needed]
    return [f"{path}: has columns that are not read: {list_some(unread, 10)}"] if unread else []


def _refuse_empty(path: Path, images: _Images) -> None:
    """Refuse a list without an image, or without a label."""
    labels = images.labels
    if not len(labels):
        raise DataError(
            f"data.list {path}: has rows of {list_some([*images.left_out])} only; set "
            "data.train_split or data.val_split to one of them"
        )
    if not labels.names:
        raise DataError(f"data.list {path}: none of its {len(labels):,} images has a label")


def _order_classes(
    path: Path, names: list[str], columns: _Columns, section: DataSection, notes: list[str]
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the classes in their order, and the place in it of each name.

    Args:
        path: The list.
        names: Names of classes, in the order in which they came.
        columns: The columns of labels.
        section: The settings.
        notes: Collects messages about the names.
    """
    merged = np.arange(len(names))
    whole_numbers = strip_points(names)
    if whole_numbers:
        # 1.0 and 1 are one class
        pointed = next(name for name in names if "." in name)
        notes.append(
            f"{path}: its labels are whole numbers written with a point, such as {pointed}, which "
            f"is read as {whole_numbers[pointed]}"
        )
        written = names
        names = list(dict.fromkeys(whole_numbers.values()))
        merged = np.array([names.index(whole_numbers[name]) for name in written])
    comma = find_decimal_comma(names)
    if comma:
        notes.append(
            f"{path}: its labels are numbers written with a decimal comma, such as {comma!r}; each "
            "is the name of a "
            "class as it stands; write whole numbers without a fraction if they are meant"
        )
    joined = [name for name in names if "," in name or ";" in name]
    if columns.kind == "several" and joined:
        notes.append(
            f"{path}: {len(joined)} of its {len(names)} classes hold a comma or semicolon, such as "
            f"{joined[0]!r}; each is one class, as {BETWEEN!r} stands between classes"
        )
    sequence = sort_classes(names, section.class_order)
    if section.class_order is None and are_whole_numbers(names):
        notes.append(f"{path}: its {len(names)} classes are numbers, and in the order of numbers")
    classes = tuple(names[index] for index in sequence)
    return classes, np.argsort(sequence)[merged]


def list_rows(section: DataSection) -> Listing:
    """Return the listing of `data.list`, with problems that forbid to train on it.

    Raises:
        DataError: As `read_list` does; or there are no images to train on, or none of the
            validation split.
    """
    listed = read_list(section)
    where = f"data.list {section.list}"
    train, val = listed.train, listed.val
    rest = f", only {list_some(listed.others)}" if listed.others else ""
    if train is None:
        raise DataError(
            f"{where}: has no row whose split is data.train_split {section.train_split!r}{rest}"
        )
    if listed.is_divided and val is None and section.val_split is not None:
        raise DataError(
            f"{where}: has no row whose split is data.val_split {section.val_split!r}{rest}; set "
            "data.val_split to "
            "another, or to null to hold out data.val_fraction of the training rows"
        )
    problems = []
    counts = count_by_class(train)
    if train.label_sets is None and (counts > 0).sum() == 1 and not section.unlabelled:
        only = train.classes[int(counts.argmax())]
        problems.append(f"{where}: has only one class, {only!r}; a classifier needs at least two")
    if val is not None:
        trained = [train.classes[index] for index in np.flatnonzero(counts > 0)]
        only_validated = np.flatnonzero((counts == 0) & (count_by_class(val) > 0))
        extra = [train.classes[index] for index in only_validated]
        if extra:
            problems.append(
                f"{where}: {tell_count(len(extra), 'class has', 'classes have')} validation rows but no training row: "
                f"{list_some(extra)}{explain_look_alikes(extra, trained)}; add some"
            )
    return Listing(train.folder, train, val, tuple(problems), is_list=True)


def _find_columns(path: Path, first: Row, section: DataSection) -> _Columns:
    """Return the columns of labels, by the settings or by their names; else columns of 0 and 1 are classes.

    Of images without labels there are none.

    Raises:
        DataError: There are none, or in two ways.
    """
    cells = first[1]
    require_column(f"data.list {path}", section.path_column, "path_column", cells)
    if section.unlabelled:
        return _Columns("none", ())
    if section.label_column is not None:
        require_column(f"data.list {path}", section.label_column, "label_column", cells)
        return _Columns("one", (section.label_column,))
    if section.labels_column is not None:
        require_column(f"data.list {path}", section.labels_column, "labels_column", cells)
        return _Columns("several", (section.labels_column,))
    if LABEL in cells and LABELS in cells:
        raise DataError(
            f"data.list {path}: has a column {LABEL!r} and a column {LABELS!r}; choose with "
            f"data.label_column={LABEL} "
            f"(one class an image) or data.labels_column={LABELS} (several)"
        )
    if LABEL in cells:
        return _Columns("one", (LABEL,))
    if LABELS in cells:
        return _Columns("several", (LABELS,))
    return _find_class_columns(path, first, section)


def _find_class_columns(path: Path, first: Row, section: DataSection) -> _Columns:
    """Return columns of 0 and 1, one a class, which are all that are left."""
    line, cells = first
    others = [name for name in cells if name not in (section.path_column, SPLIT)]
    odd = [name for name in others if _bit(cells[name]) is None]
    if len(others) < 2 or odd:
        why = f", and {odd[0]!r} is {cells[odd[0]]!r} in line {line}" if odd else ""
        raise DataError(
            f"data.list {path}: has no column {LABEL!r} or "
            f"{LABELS!r}{format_choices(LABEL, list(cells), 'its columns are')}; name it with "
            "data.label_column=COLUMN (one class an image) or data.labels_column=COLUMN (several); "
            f"without it, two or more other columns must hold 0 or 1, each for a class{why}"
        )
    for name in others:
        check_name(name, f"{path} line 1")
    return _Columns("table", tuple(others))


def _read_split(cells: dict[str, Any], section: DataSection, where: str) -> int | str:
    """Return TRAIN or VAL, or the name of another split."""
    value = read_cell(cells, SPLIT, where)
    name = value.strip() if isinstance(value, str) else value
    if name == section.train_split:
        return TRAIN
    if name == section.val_split:
        return VAL
    if not isinstance(name, str) or name.lower() not in SPLIT_WORDS:
        known = [section.train_split]
        if section.val_split:
            known.append(section.val_split)
        raise DataError(
            f"{where}: its split is {name!r}{format_choices(str(name), known, 'known are')} "
            "(data.train_split, data.val_split), and words such as 'test', whose rows are left out"
        )
    return name


def _read_classes(cells: dict[str, Any], columns: _Columns, where: str) -> Sequence[str]:
    """Return the classes of an image."""
    if columns.kind == "none":
        return UNLABELLED
    if columns.kind == "table":
        return _read_bits(cells, columns, where)
    column = columns.names[0]
    value = read_cell(cells, column, where)
    if columns.kind == "several":
        return _read_class_list(value, column, where)
    if isinstance(value, list):
        raise DataError(
            f"{where}: {column!r} is a list; for several classes an image, set "
            f"data.labels_column={column}"
        )
    return [check_name(value, where)]


def _read_class_list(value: Any, column: str, where: str) -> Sequence[str]:
    """Return the classes in a cell: a JSON list, or text with a bar between them."""
    if isinstance(value, str):
        value = value.split(BETWEEN) if value.strip() else []
    if not isinstance(value, list):
        raise DataError(
            f"{where}: {column!r} is {value!r}; it must be a list of classes, which may be empty"
        )
    names = [check_name(name, where) for name in value]
    if len(set(names)) < len(names):
        raise DataError(f"{where}: names a class twice: {BETWEEN.join(names)}")
    return names


def _read_bits(cells: dict[str, Any], columns: _Columns, where: str) -> Sequence[str]:
    """Return the classes whose columns hold 1."""
    classes = []
    for name in columns.names:
        bit = _bit(read_cell(cells, name, where))
        if bit is None:
            raise DataError(f"{where}: {name!r} is {cells[name]!r}; it must be 0 or 1")
        if bit:
            classes.append(name)
    extra = [name for name in cells if name not in columns.names and _bit(cells[name]) is not None]
    if extra:
        raise DataError(
            f"{where}: has {extra[0]!r}, which the first line has not; name all classes there"
        )
    return classes


def _bit(value: Any) -> int | None:
    """Return 0 or 1, as number or as text; None for anything else."""
    if isinstance(value, str):
        value = value.strip()
    if isinstance(value, float) or value not in ("0", "1", 0, 1):
        return None
    return int(value)


def _refuse_twice(path: Path, paths: Paths, gathered: GatheredPaths) -> None:
    """Refuse a list that names an image twice."""
    # compared by hashes first, so that millions of paths do not become objects at the same time
    hashes = np.array(gathered.hashes, np.int64)
    lines = gathered.lines
    order = np.argsort(hashes, kind="stable")
    equal = np.flatnonzero(hashes[order][1:] == hashes[order][:-1])
    pairs = sorted((int(order[index]), int(order[index + 1])) for index in equal)
    for first, second in pairs:
        if paths[first] == paths[second]:
            raise DataError(
                f"{path} line {lines[second]}: {printable(paths.name(second))} stands in line "
                f"{lines[first]} already; each image has one row, several classes go into a column "
                f"{LABELS!r}, with {BETWEEN!r} between them"
            )
