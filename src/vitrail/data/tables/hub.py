"""Data sets of the Hugging Face Hub and local Parquet files, by the library `datasets`: cached, or streamed in place.

No code of a data set is ever run: `datasets` has had none since its version 4.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.config.sections import DataSection
from vitrail.data.paths import Paths
from vitrail.data.sources import count_labels
from vitrail.data.tables.columns import (
    are_numbers,
    find_columns,
    find_pointed_label,
    item_type,
    read_class_names,
    read_label_lists,
    read_labels,
)
from vitrail.data.tables.parquet import ParquetTable, import_compute, read_schema
from vitrail.data.tables.rows import RowSource, Table
from vitrail.errors import ConfigError, DataError, MissingExtra, VitrailError, list_some
from vitrail.images.pixels import UnreadableImage

HF = "hf:"
"""Prefix of the names of such sets."""
PATHS = ("/", "./", "../", "~")
"""Beginnings of a path; anything else is a name on the Hub."""
CACHE_BUILDER = "cache"
"""Name of the builder that `datasets` falls back to, whatever the revision, where the Hub gives no
answer."""
COMMIT = re.compile("[0-9a-f]{40}")
SILENT = 60
"""A level above all levels of logging, as errors come as exceptions, and are told once."""


@dataclass(frozen=True)
class ArrowTable:
    """A split of a data set in the cache of `datasets`, mapped and never read whole."""

    dataset: Any

    def column(self, name: str, field: str | None = None) -> Any:
        """Read a whole column of small values, or one field of a struct."""
        column = self.dataset.data.column(name)
        if field is None:
            return column
        return import_compute().struct_field(column, field)

    def cell(self, column: str, row: int) -> Any:
        """Read the value of one row in a column."""
        return self.dataset.data.column(column)[row].as_py()

    def groups(self, rows: NDArray[np.int64]) -> None:
        """Return None, as rows can be read in any order."""


@dataclass(frozen=True)
class _Opened:
    """The splits of a data set, whose tables are opened when they are needed."""

    splits: list[str]
    """Names of the splits."""
    table: Callable[[str], Table]
    """Opens the table of a split."""
    features: Mapping[str, Any]
    """Type of each column, as `datasets` has it."""
    notes: tuple[str, ...] = ()
    """Messages for the user."""


def is_hf(name: str | None) -> bool:
    """Say whether the name of a data set is one of the Hub, or of Parquet files."""
    return isinstance(name, str) and name.startswith(HF)


def is_on_hub(name: str | None) -> bool:
    """Say whether a data set is one of the Hub, and not of local files."""
    return name is not None and is_hf(name) and not name.removeprefix(HF).startswith(PATHS)


def pin_revision(section: DataSection) -> DataSection:
    """Return the settings with the current commit of a data set on the Hub, so that all ranks read the same.

    Raises: As `open_hf` does.
    """
    with _one_line_errors(section.name):
        if not is_hf(section.name) or isinstance(_place(section), Path):
            return section
        if COMMIT.fullmatch(section.revision or ""):
            return section
        return replace(section, revision=_make_builder(section).hash)


def open_hf(
    section: DataSection, needs_train: bool = True
) -> tuple[RowSource | None, RowSource | None]:
    """Return the training and the validation split, None for one that there is not.

    Args:
        section: Which set, splits and columns.
        needs_train: Whether a training split is required.

    Raises:
        ConfigError: The settings do not fit the set.
        DataError: It is not there, or not as it should be.
        MissingExtra: `datasets` is not installed.
    """
    with _one_line_errors(section.name):
        opened = _open(section)
        where = section.name or ""
        train, val = _choose_splits(section, opened.splits, needs_train)
        image, label = find_columns(
            opened.features,
            where,
            section.image_column,
            section.label_column,
            section.labels_column,
        )
        tables, columns = {}, {}
        for split in (train, val):
            if split is not None:
                tables[split] = opened.table(split)
                columns[split] = tables[split].column(label)

        # classes are those of the first split, which is the training split where there is one
        items = item_type(opened.features[label])
        feature = opened.features[label] if items is None else items
        first = next(iter(columns.values()))
        if items is not None:
            first = import_compute().list_flatten(first)
        classes = read_class_names(feature, first, f"{where}, column {label}", section.class_order)
        if len(classes) < 2:
            raise DataError(
                f"{where}: column {label} has {len(classes)} classes; a classifier needs at least "
                "two"
            )
        notes = (*opened.notes, *_note_labels(section, feature, first, classes))

        sources = {}
        for split, table in tables.items():
            name = f"{where} {split}"
            labels, sets = _read_labels(
                feature, columns[split], classes, f"{name}, column {label}", items is not None
            )
            if not len(labels):
                raise DataError(f"{name}: has no rows")
            paths, distinct = _read_paths(table, opened.features[image], image, len(labels))
            source = RowSource(
                table=table,
                column=image,
                split=name,
                rows=np.arange(len(labels)),
                paths=paths,
                distinct=distinct,
                labels=labels,
                label_sets=sets,
                classes=classes,
                description=name,
                notes=notes,
            )
            sources[split] = _check_source(source)
        return sources.get(train), sources.get(val)


def _note_labels(
    section: DataSection, feature: Any, values: Any, classes: tuple[str, ...]
) -> Iterator[str]:
    """Yield notes about settings that are ignored, and labels that are numbers."""
    where = section.name
    if section.root is not None:
        yield f"data.root {section.root}: is not looked at, as data.name is {where}"
    if are_numbers(feature):
        names = ", ".join(classes[:3])
        if len(classes) > 3:
            names += f" and {len(classes) - 3} more"
        yield f"{where}: the labels are numbers without names; the classes are called {names}"
    pointed = find_pointed_label(feature, values, classes)
    if pointed:
        yield f"{where}: the labels are whole numbers written with a point, such as {pointed}"


def _read_labels(
    feature: Any, column: Any, classes: tuple[str, ...], where: str, are_lists: bool
) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None]:
    """Return each row's label and, of a column of lists, which classes each label stands for."""
    if not are_lists:
        return read_labels(feature, column, classes, where), None
    compute = import_compute()
    values = compute.list_flatten(column)
    lengths = compute.fill_null(compute.list_value_length(column), -1).to_numpy()
    return read_label_lists(feature, values, lengths, classes, where)


def _check_source(source: RowSource) -> RowSource:
    """Return the images of a split, with a note about classes without images.

    Raises:
        DataError: The rows have paths of images that are not there.
    """
    split = source.split
    counts = count_labels(source.labels, source.label_sets, len(source.classes))
    absent = [source.classes[label] for label in np.flatnonzero(counts == 0)]
    if absent:
        note = f"{split}: {len(absent)} of {len(source.classes)} classes have no image: {list_some(absent)}"
        source = replace(source, notes=(*source.notes, note))
    try:
        source.encoded(0)
    except UnreadableImage:
        pass  # a row without an image is for data.bad_files to decide on
    except OSError as error:
        raise DataError(
            f"{source.name(0)}: the row has the path of an image and not its bytes, and there is "
            "no such file; write the set with the bytes in it, as push_to_hub and save_to_disk do"
        ) from error
    return source


def _read_paths(table: Table, feature: Any, image: str, rows: int) -> tuple[Paths, bool]:
    """Return the path that each row gives for its image, beside the bytes, and whether all paths are different."""
    import pyarrow as pa

    has_paths = type(feature).__name__ == "Image" or (
        isinstance(feature, Mapping) and "path" in feature
    )
    if not has_paths:
        return Paths(np.zeros(0, np.uint8), np.zeros(rows, np.int64)), False
    pc = import_compute()
    # the column has no type where all paths are null
    column = pc.fill_null(table.column(image, "path").cast(pa.large_string()), "")
    first, last = (str(edge.as_py()) for edge in pc.min_max(column).values())
    if first.startswith("/"):
        # below a cache, perhaps: what all have in common is where they lie, not what they are
        shared = os.path.commonpath([Path(first).parent, Path(last).parent])
        column = pc.utf8_slice_codeunits(column, len(shared.rstrip("/")) + 1)
    # paths by the million must not become objects
    names = column.cast(pa.large_binary()).combine_chunks()
    _, offsets, text = names.buffers()
    bounds = np.frombuffer(offsets, np.int64)[names.offset : names.offset + rows + 1]
    whole = np.frombuffer(text or b"", np.uint8)[bounds[0] : bounds[-1]]
    return Paths(whole, bounds[1:] - bounds[0]), pc.count_distinct(column).as_py() == rows


def _choose_splits(
    section: DataSection, splits: list[str], needs_train: bool
) -> tuple[str | None, str | None]:
    """Return the training and the validation split; no validation split holds out a part of the training split."""
    where = section.name
    known = ", ".join(splits)
    wanted = section.val_split
    train = section.train_split if section.train_split in splits else None
    val = wanted if wanted in splits else None
    if val is None and wanted == "val" and "validation" in splits:
        val = "validation"  # what `datasets` itself calls it, also where the file's name has val
    is_only_train = wanted == "val" and splits == [train]
    if val is None and wanted is not None and not is_only_train:
        others = [split for split in splits if split != train]
        instead = f"data.val_split={others[0]}, or " if others else ""
        raise DataError(
            f"{where}: has no split {wanted}; its splits: {known}; set "
            f"{instead}data.val_split=null to hold out data.val_fraction of {section.train_split}"
        )
    if train is None and (needs_train or val is None):
        raise DataError(
            f"{where}: has no split {section.train_split} to train on; its splits: {known}; set "
            "data.train_split"
        )
    if train == val:
        raise ConfigError(
            f"data.val_split {val}: is the split that is trained on; its splits: {known}"
        )
    return train, val


def _open(section: DataSection) -> _Opened:
    """Find the splits and the types of the columns."""
    place = _place(section)
    is_saved = isinstance(place, Path) and any(
        (place / name).is_file() for name in ("dataset_dict.json", "state.json")
    )
    if is_saved:
        if section.streaming:
            raise ConfigError(
                f"data.streaming: {section.name} was saved by datasets, which maps it as it is; "
                "drop this setting"
            )
        datasets = _import_datasets()
        saved = datasets.load_from_disk(str(place))
        if not isinstance(saved, datasets.DatasetDict):
            saved = {str(saved.split or "train"): saved}
        return _open_mapped(saved, ())
    builder = _make_builder(section)
    notes: tuple[str, ...] = ()
    if builder.name == CACHE_BUILDER:
        notes = (
            f"{section.name}: the Hub cannot be reached; commit {builder.hash} is taken from the "
            "cache",
        )
    if section.streaming:
        return _open_in_place(section, builder)
    builder.download_and_prepare()
    return _open_mapped(builder.as_dataset(), notes)


def _open_mapped(splits: Mapping[Any, Any], notes: tuple[str, ...]) -> _Opened:
    """Return splits from the cache of `datasets`."""
    features = next(iter(splits.values())).features
    return _Opened(list(map(str, splits)), lambda name: ArrowTable(splits[name]), features, notes)


def _open_in_place(section: DataSection, builder: Any) -> _Opened:
    """Return splits of Parquet files that stay where they are."""
    if builder.name == CACHE_BUILDER:
        raise DataError(
            f"{section.name}: the Hub cannot be reached, which data.streaming reads from"
        )
    if builder.name != "parquet":
        raise ConfigError(
            f"data.streaming: {section.name} is not in Parquet files but found by datasets as "
            f"{builder.name}; set data.streaming=false"
        )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    limit = int(section.cache_gb * 1e9)
    buffer = section.shuffle_buffer
    files = {}
    for split, names in builder.config.data_files.items():
        files[str(split)] = list(map(str, names))

    def open_table(split: str) -> ParquetTable:
        opened = ParquetTable.open(files[split], home / "vitrail" / "parquet", limit)
        needed = opened.window_bytes(buffer)
        if needed > limit:
            raise ConfigError(
                f"data.cache_gb {section.cache_gb:g}: is too small to shuffle {buffer:,} images of "
                f"{section.name} "
                f"{split}, which take {needed / 1e9:.3g}; raise it, or lower data.shuffle_buffer"
            )
        return opened

    features = builder.info.features
    if features is None:
        first = next(iter(files.values()))[0]
        features = _import_datasets().Features.from_arrow_schema(read_schema(first))
    return _Opened(list(files), open_table, features)


def _make_builder(section: DataSection) -> Any:
    """Return the builder of a data set on the Hub, in the cache of `datasets` or in a folder."""
    datasets = _import_datasets()
    place = _place(section)
    subset = section.subset
    if not isinstance(place, Path):
        # without the scheme, a folder that happens to have the name would be taken
        builder = datasets.load_dataset_builder(
            f"hf://datasets/{place}", subset, revision=section.revision
        )
        if builder.name == CACHE_BUILDER and section.revision not in (None, builder.hash):
            raise DataError(
                f"{section.name}: the Hub cannot be reached, and the newest commit in the cache is "
                f"{builder.hash}, not {section.revision}"
            )
        return builder
    if place.is_file():
        return datasets.load_dataset_builder(
            "parquet", data_files={section.train_split: str(place.resolve())}
        )
    return datasets.load_dataset_builder(str(place.resolve()), subset)


def _place(section: DataSection) -> Path | str:
    """Return the folder or file, or the name on the Hub.

    Raises:
        ConfigError: It is neither, or a setting goes with the other.
        DataError: There is no such folder or file.
    """
    where = (section.name or "").removeprefix(HF)
    if re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", where):
        return where
    if not where.startswith(PATHS):
        raise ConfigError(
            f"data.name {section.name}: write hf:OWNER/NAME for a data set of the Hub, and "
            "hf:/FOLDER, hf:./FOLDER or hf:~/FOLDER for Parquet files here"
        )
    path = Path(where).expanduser()
    if section.revision is not None:
        raise ConfigError(
            f"data.revision {section.revision}: is for data sets of the Hub; {section.name} is a "
            "path"
        )
    if not path.exists():
        raise DataError(f"data.name {section.name}: there is no such folder or file")
    if path.is_file() and path.suffix != ".parquet":
        raise DataError(
            f"data.name {section.name}: is no .parquet file; give one, or the folder with all of "
            "them"
        )
    return path


def _import_datasets() -> Any:
    if find_spec("datasets") is None:
        pip = "uv pip" if "UV" in os.environ else "pip"
        raise MissingExtra(
            f"data.name begins with hf:, which needs a package that is missing; run: {pip} install "
            "datasets"
        )
    import datasets  # takes seconds

    return datasets


@contextmanager
def _one_line_errors(name: str | None) -> Iterator[None]:
    """Turn whatever `datasets` and its dependencies raise into one line, and keep them from logging it too."""
    try:
        if is_hf(name):
            datasets = _import_datasets()
            datasets.logging.set_verbosity(SILENT)
            if not sys.stderr.isatty():
                datasets.disable_progress_bars()
        yield
    except VitrailError:
        raise
    # pyarrow, httpx, fsspec, the Hub's client and the disk raise many kinds
    except Exception as error:
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        reason = " ".join(str(cause or error).split()) or type(error).__name__
        here = (name or "").removeprefix(HF)
        hint = ""
        if not here.startswith(PATHS) and Path(here).exists():
            hint = f"; for the folder here write hf:./{here}"
        raise DataError(f"data.name {name}: cannot be opened ({reason}){hint}") from error
