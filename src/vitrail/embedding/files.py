"""Files of features: .npy with an index and a description beside it, or Parquet; whole or not there at all."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.cells import write_rows
from vitrail.embedding.images import Part
from vitrail.embedding.store import Features
from vitrail.errors import ConfigError, MissingExtra, write_option
from vitrail.files import refusal_told, refuse_output, staging, write_whole

COLUMNS = ("path", "class", "split", "error")
"""Columns of the index, a row for each row of features."""
KINDS = (".npy", ".parquet")
CHUNK = 4096
"""Rows that are copied at a time, and rows of a row group of Parquet."""


def _advise() -> str:
    """Return what to do where a file cannot be written."""
    return f"choose another file with {write_option('output')}"


def check_output(output: Path) -> None:
    """Refuse a file that cannot become one of features, before any work is done for it.

    Raises:
        ConfigError: Its kind is unknown, it is there already, or it cannot be written.
        MissingExtra: It needs a library that is not installed.
    """
    if output.suffix.lower() not in KINDS:
        raise ConfigError(
            f"{write_option('output', output)}: is of an unknown kind; let it end in "
            f"{' or '.join(KINDS)}"
        )
    refuse_output("output", output)
    for file in files_of(output):
        if os.path.lexists(file):
            raise ConfigError(
                f"{write_option('output', output)}: {file} is there already; remove it, or choose "
                "another name"
            )
        refuse_output("output", file)
    if output.suffix.lower() == ".parquet":
        _import_parquet(output)


def files_of(output: Path) -> list[Path]:
    """Return the files that features are written to."""
    if output.suffix.lower() == ".parquet":
        return [output]
    return [output.with_suffix(".csv"), output.with_suffix(".json"), output]


def write_features(
    output: Path,
    parts: Sequence[Part],
    features: Sequence[Features],
    description: dict[str, Any],
    *,
    guard_csv: bool,
) -> None:
    """Write the features of all parts, one after the other, in memory that does not grow with them.

    Args:
        output: The file, of one of KINDS.
        parts: The images.
        features: Their features.
        description: What the features are, as plain values for JSON.
        guard_csv: Put an apostrophe before texts in CSV that a spreadsheet would compute.

    Raises:
        CheckpointError: The disk is full, or the folder cannot be written.
    """
    text = json.dumps(description, indent=1) + "\n"
    if output.suffix.lower() == ".parquet":
        _write_parquet(output, parts, features, text)
        return
    index, about, _ = files_of(output)
    write_whole(index, _csv_lines(parts, features, guard_csv), _advise())
    write_whole(about, text.encode(), _advise())
    # its name says that all of them are there
    shape = (sum(len(one.values) for one in features), features[0].values.shape[1])
    head = io.BytesIO()
    layout = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, layout)
    write_whole(output, _joined(head.getvalue(), features), _advise())


def _joined(head: bytes, features: Sequence[Features]) -> Iterator[bytes]:
    yield head
    for one in features:
        yield from (rows.tobytes() for rows in _chunks(one.values))


def _chunks(values: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    return (values[begin : begin + CHUNK] for begin in range(0, len(values), CHUNK))


def _rows(
    parts: Sequence[Part], features: Sequence[Features]
) -> Iterator[tuple[str, str, str, str]]:
    for part, one in zip(parts, features, strict=True):
        for index in range(len(part.source)):
            yield (
                part.source.name(index),
                part.class_name(index),
                part.split,
                one.bad.get(index, ""),
            )


def _csv_lines(
    parts: Sequence[Part], features: Sequence[Features], guarded: bool
) -> Iterator[bytes]:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerow(COLUMNS)
    for row in _rows(parts, features):
        write_rows(stream, [row], guarded=guarded)
        if stream.tell() > 2**16:
            yield stream.getvalue().encode()
            stream = io.StringIO(newline="")
    yield stream.getvalue().encode()


def _write_parquet(
    output: Path, parts: Sequence[Part], features: Sequence[Features], description: str
) -> None:
    """Write row groups of the columns of the index and `features`; the description is in the file's metadata."""
    pyarrow, parquet = _import_parquet(output)
    width = features[0].values.shape[1]
    fields = [pyarrow.field(name, pyarrow.string()) for name in COLUMNS]
    fields.append(pyarrow.field("features", pyarrow.list_(pyarrow.float32(), width)))
    schema = pyarrow.schema(fields, metadata={"vitrail": description})
    target, temporary = staging(output)
    rows = _rows(parts, features)
    with refusal_told(output, temporary, _advise()):
        with parquet.ParquetWriter(temporary, schema) as writer:
            for one in features:
                for values in _chunks(one.values):
                    texts = list(zip(*(next(rows) for _ in range(len(values))), strict=True))
                    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
                    columns = [
                        *map(pyarrow.array, texts),
                        pyarrow.FixedSizeListArray.from_arrays(flat, width),
                    ]
                    writer.write_table(pyarrow.table(columns, schema=schema), row_group_size=CHUNK)
        if temporary != target:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(target)


def _import_parquet(output: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        where = write_option("output", output)
        raise MissingExtra(
            f"{where}: Parquet needs pyarrow, which is not installed; run: pip install "
            "'vitrail[datasets]', or let it end in .npy"
        ) from error
    return pyarrow, pyarrow.parquet
