"""Data sets of the Hugging Face Hub and Parquet files, through `datasets`: mapped from its cache, or read in place.

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
from vitrail.data.sources import count_classes
from vitrail.data.tables.columns import (
    are_numbers,
    class_names,
    find_columns,
    item_type,
    pointed_label,
    read_label_lists,
    read_labels,
)
from vitrail.data.tables.parquet import ParquetTable, compute, read_schema
from vitrail.data.tables.rows import RowSource, Table
from vitrail.errors import ConfigError, DataError, MissingExtra, VitrailError, few
from vitrail.images.pixels import UnreadableImage

HF = "hf:"
"""What the names of such sets begin with."""
PATHS = ("/", "./", "../", "~")
"""What a path begins with; anything else is a name on the Hub."""
CACHE = "cache"
"""What `datasets` turns to, whatever the revision, where the Hub gives no answer."""
COMMIT = re.compile("[0-9a-f]{40}")
SILENT = 60
"""Above all levels of logging: what goes wrong comes as an exception, and is told once."""


@dataclass(frozen=True)
class ArrowTable:
    """A split of a data set in the cache of `datasets`, mapped and never read whole."""

    dataset: Any

    def column(self, name: str, field: str | None = None) -> Any:
        """Read a column of few bytes."""
        column = self.dataset.data.column(name)
        return column if field is None else compute().struct_field(column, field)

    def cell(self, column: str, row: int) -> Any:
        """Read what one row has in a column."""
        return self.dataset.data.column(column)[row].as_py()

    def groups(self, rows: NDArray[np.int64]) -> None:
        """Return None: all rows are equally near."""


@dataclass(frozen=True)
class _Opened:
    """The splits of a data set, of which only those that are wanted are looked into."""

    splits: list[str]
    table: Callable[[str], Table]
    features: Mapping[str, Any]
    """Type of each column, as `datasets` has it."""
    notes: tuple[str, ...] = ()


def is_hf(name: str | None) -> bool:
    """Say whether a data set is one of these."""
    return isinstance(name, str) and name.startswith(HF)


def is_on_hub(name: str | None) -> bool:
    """Say whether a data set is one of the Hub, and not of files here."""
    return name is not None and is_hf(name) and not name.removeprefix(HF).startswith(PATHS)


def pin_revision(section: DataSection) -> DataSection:
    """Return the settings with the commit that a data set of the Hub is at, so that all processes read the same.

    Raises: As `open_hf` does.
    """
    with _told(section.name):
        if not is_hf(section.name) or isinstance(_place(section), Path) or COMMIT.fullmatch(section.revision or ""):
            return section
        return replace(section, revision=_builder(section).hash)


def open_hf(section: DataSection, needs_train: bool = True) -> tuple[RowSource | None, RowSource | None]:
    """Return the training and the validation part, None for what there is not.

    Args:
        section: Which set, splits and columns.
        needs_train: Whether a validation part alone will not do.

    Raises:
        ConfigError: The settings do not fit the set.
        DataError: It is not there, or not as it should be.
        MissingExtra: `datasets` is not installed.
    """
    with _told(section.name):
        opened, where = _open(section), section.name or ""
        splits = _choose_splits(section, opened.splits, needs_train)
        image, label = find_columns(
            opened.features, where, section.image_column, section.label_column, section.labels_column
        )
        items = item_type(opened.features[label])
        feature = opened.features[label] if items is None else items
        tables = {split: opened.table(split) for split in splits if split is not None}
        values = {split: table.column(label) for split, table in tables.items()}
        first = next(iter(values.values()))
        flat = first if items is None else compute().list_flatten(first)
        classes = class_names(feature, flat, f"{where}, column {label}", section.class_order)
        if len(classes) < 2:
            raise DataError(f"{where}: column {label} has {len(classes)} classes; a classifier needs at least two")
        notes = opened.notes
        if section.root is not None:
            notes += (f"data.root {section.root}: is not looked at, as data.name is {where}",)
        if are_numbers(feature):
            names = ", ".join(classes[:3]) + (f" and {len(classes) - 3} more" if len(classes) > 3 else "")
            notes += (f"{where}: the labels are numbers without names; the classes are called {names}",)
        if pointed := pointed_label(feature, flat, classes):
            notes += (f"{where}: the labels are whole numbers written with a point, such as {pointed}",)

        def source(split: str | None) -> RowSource | None:
            if split is None:
                return None
            column, sets = f"{where} {split}, column {label}", None
            if items is None:
                labels = read_labels(feature, values[split], classes, column)
            else:
                flat, lengths = compute().list_flatten(values[split]), compute().list_value_length(values[split])
                lengths = compute().fill_null(lengths, -1).to_numpy()
                labels, sets = read_label_lists(feature, flat, lengths, classes, column)
            found = opened.features[image]
            return _source(tables[split], found, image, f"{where} {split}", labels, sets, classes, notes)

        train, val = map(source, splits)
        return train, val


def _source(
    table: Table,
    feature: Any,
    image: str,
    split: str,
    labels: NDArray[np.int32],
    sets: NDArray[np.bool_] | None,
    classes: tuple[str, ...],
    notes: tuple[str, ...],
) -> RowSource:
    if not len(labels):
        raise DataError(f"{split}: has no rows")
    absent = [classes[label] for label in np.flatnonzero(count_classes(labels, sets, len(classes)) == 0)]
    if absent:
        notes += (f"{split}: {len(absent)} of {len(classes)} classes have no image: {few(absent)}",)
    paths, distinct = _paths(table, feature, image, len(labels))
    source = RowSource(
        table=table, column=image, split=split, rows=np.arange(len(labels)), paths=paths, distinct=distinct,
        labels=labels, label_sets=sets, classes=classes, description=split, notes=notes,
    )  # fmt: skip
    try:
        source.encoded(0)
    except UnreadableImage:
        pass  # a row without an image is for data.bad_files to decide on
    except OSError as error:
        raise DataError(
            f"{source.name(0)}: the row has the path of an image and not its bytes, and there is no such file; write "
            "the set with the bytes in it, as push_to_hub and save_to_disk do"
        ) from error
    return source


def _paths(table: Table, feature: Any, image: str, rows: int) -> tuple[Paths, bool]:
    """Return what the rows call their images, the path beside the bytes, and whether it tells them apart."""
    import pyarrow as pa

    if not (type(feature).__name__ == "Image" or (isinstance(feature, Mapping) and "path" in feature)):
        return Paths(np.zeros(0, np.uint8), np.zeros(rows, np.int64)), False
    pc = compute()
    column = pc.fill_null(table.column(image, "path").cast(pa.large_string()), "")  # of no type where all are null
    first, last = (str(edge.as_py()) for edge in pc.min_max(column).values())
    if first.startswith("/"):  # below a cache, perhaps: what all have in common is where they lie, not what they are
        shared = os.path.commonpath([Path(first).parent, Path(last).parent])
        column = pc.utf8_slice_codeunits(column, len(shared.rstrip("/")) + 1)
    names = column.cast(pa.large_binary()).combine_chunks()
    _, offsets, text = names.buffers()  # by the million they must not become objects
    bounds = np.frombuffer(offsets, np.int64)[names.offset : names.offset + rows + 1]
    whole = np.frombuffer(text or b"", np.uint8)[bounds[0] : bounds[-1]]
    return Paths(whole, bounds[1:] - bounds[0]), pc.count_distinct(column).as_py() == rows


def _choose_splits(section: DataSection, splits: list[str], needs_train: bool) -> tuple[str | None, str | None]:
    """Return the split to train on and the one to validate with; None holds a part of the first out."""
    where, known, wanted = section.name, ", ".join(splits), section.val_split
    train = section.train_split if section.train_split in splits else None
    val = wanted if wanted in splits else None
    if val is None and wanted == "val" and "validation" in splits:
        val = "validation"  # what `datasets` itself calls it, also where the file's name has val
    if val is None and wanted is not None and not (wanted == "val" and splits == [train]):
        others = [split for split in splits if split != train]
        raise DataError(
            f"{where}: has no split {wanted}; its splits: {known}; set "
            + (f"data.val_split={others[0]}, or " if others else "")
            + f"data.val_split=null to hold out data.val_fraction of {section.train_split}"
        )
    if train is None and (needs_train or val is None):
        raise DataError(
            f"{where}: has no split {section.train_split} to train on; its splits: {known}; set data.train_split"
        )
    if train == val:
        raise ConfigError(f"data.val_split {val}: is the split that is trained on; its splits: {known}")
    return train, val


def _open(section: DataSection) -> _Opened:
    """Find the splits and the types of the columns."""
    place = _place(section)
    if isinstance(place, Path) and any((place / name).is_file() for name in ("dataset_dict.json", "state.json")):
        if section.streaming:
            raise ConfigError(
                f"data.streaming: {section.name} was saved by datasets, which maps it as it is; drop this setting"
            )
        datasets = _import_datasets()
        saved = datasets.load_from_disk(str(place))
        splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
        return _mapped(splits, ())
    builder = _builder(section)
    notes: tuple[str, ...] = ()
    if builder.name == CACHE:
        notes = (f"{section.name}: the Hub cannot be reached; commit {builder.hash} is taken from the cache",)
    if section.streaming:
        return _in_place(section, builder)
    builder.download_and_prepare()
    return _mapped(builder.as_dataset(), notes)


def _mapped(splits: Mapping[Any, Any], notes: tuple[str, ...]) -> _Opened:
    """Return splits from the cache of `datasets`."""
    features = next(iter(splits.values())).features
    return _Opened(list(map(str, splits)), lambda name: ArrowTable(splits[name]), features, notes)


def _in_place(section: DataSection, builder: Any) -> _Opened:
    """Return splits of Parquet files that stay where they are."""
    if builder.name == CACHE:
        raise DataError(f"{section.name}: the Hub cannot be reached, which data.streaming reads from")
    if builder.name != "parquet":
        raise ConfigError(
            f"data.streaming: {section.name} is not in Parquet files but found by datasets as {builder.name}; set "
            "data.streaming=false"
        )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    limit, buffer = int(section.cache_gb * 1e9), section.shuffle_buffer
    files = {str(split): list(map(str, files)) for split, files in builder.config.data_files.items()}

    def table(split: str) -> ParquetTable:
        opened = ParquetTable.open(files[split], home / "vitrail" / "parquet", limit)
        if (needed := opened.window_bytes(buffer)) > limit:
            raise ConfigError(
                f"data.cache_gb {section.cache_gb:g}: is too small to shuffle {buffer:,} images of {section.name} "
                f"{split}, which take {needed / 1e9:.3g}; raise it, or lower data.shuffle_buffer"
            )
        return opened

    features = builder.info.features
    if features is None:
        features = _import_datasets().Features.from_arrow_schema(read_schema(next(iter(files.values()))[0]))
    return _Opened(list(files), table, features)


def _builder(section: DataSection) -> Any:
    """Find a data set on the Hub, in the cache of `datasets` or in a folder."""
    datasets = _import_datasets()
    place, subset = _place(section), section.subset
    if not isinstance(place, Path):
        # without the scheme, a folder that happens to have the name would be taken
        builder = datasets.load_dataset_builder(f"hf://datasets/{place}", subset, revision=section.revision)
        if builder.name == CACHE and section.revision not in (None, builder.hash):
            raise DataError(
                f"{section.name}: the Hub cannot be reached, and the newest commit in the cache is {builder.hash}, not "
                f"{section.revision}"
            )
        return builder
    if place.is_file():
        return datasets.load_dataset_builder("parquet", data_files={section.train_split: str(place.resolve())})
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
            f"data.name {section.name}: write hf:OWNER/NAME for a data set of the Hub, and hf:/FOLDER, hf:./FOLDER or "
            "hf:~/FOLDER for Parquet files here"
        )
    path = Path(where).expanduser()
    if section.revision is not None:
        raise ConfigError(f"data.revision {section.revision}: is for data sets of the Hub; {section.name} is a path")
    if not path.exists():
        raise DataError(f"data.name {section.name}: there is no such folder or file")
    if path.is_file() and path.suffix != ".parquet":
        raise DataError(f"data.name {section.name}: is no .parquet file; give one, or the folder with all of them")
    return path


def _import_datasets() -> Any:
    if find_spec("datasets") is None:
        pip = "uv pip" if "UV" in os.environ else "pip"
        raise MissingExtra(
            f"data.name begins with hf:, which needs a package that is missing; run: {pip} install datasets"
        )
    import datasets  # takes seconds

    return datasets


@contextmanager
def _told(name: str | None) -> Iterator[None]:
    """Turn whatever `datasets` and what it stands on raise into one line, and keep them from telling it otherwise."""
    try:
        datasets = _import_datasets() if is_hf(name) else None
        if datasets is not None:
            datasets.logging.set_verbosity(SILENT)
            if not sys.stderr.isatty():
                datasets.disable_progress_bars()
        yield
    except VitrailError:
        raise
    except Exception as error:  # of pyarrow, httpx, fsspec, the Hub's client, the disk and a dozen of their own
        cause = error.__cause__ if type(error).__name__ == "DatasetGenerationError" else None
        reason = " ".join(str(cause or error).split()) or type(error).__name__
        here = (name or "").removeprefix(HF)
        hint = f"; for the folder here write hf:./{here}" if not here.startswith(PATHS) and Path(here).exists() else ""
        raise DataError(f"data.name {name}: cannot be opened ({reason}){hint}") from error
