"""Labelled images in the rows of a table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vitrail.data.paths import Paths
from vitrail.data.sources import Source
from vitrail.errors import printable
from vitrail.images.decoding import decode_quietly, read_header, read_image
from vitrail.images.pixels import PixelFormat, Pixels, UnreadableImage


class Table(Protocol):
    """Rows that any process can read in any order."""

    def column(self, name: str, field: str | None = None) -> Any:
        """Read a column of few bytes, or one field of a struct, as an Arrow array in chunks."""
        ...

    def cell(self, column: str, row: int) -> Any:
        """Read what one row has in a column."""
        ...

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the rows' groups, of which each is best read at once; None where all are equally near."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class RowSource:
    """Images in a column: encoded bytes, or a struct of bytes and a path. All processes share the table's pages."""

    table: Table
    column: str
    split: str
    """Data set and split."""
    rows: NDArray[np.int64]
    """Of the table."""
    paths: Paths
    """What the rows call their images; empty names where they do not."""
    distinct: bool
    """Whether the paths tell the images of the split apart."""
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = ()
    label_sets: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """Return split, row and path, such as hf:owner/pets train[17] cat.jpg."""
        return f"{self.split}[{self.rows[index]}] {printable(self.paths.name(index))}".rstrip()

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image file, from where its path says if the row has none."""
        cell = self.table.cell(self.column, int(self.rows[index]))
        data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if data is not None:
            return data
        if not path:
            raise UnreadableImage("the row has no image")
        return read_image(path)

    def image(self, index: int, wanted: PixelFormat) -> Pixels:
        """Read and decode an image."""
        return decode_quietly(self.encoded(index), wanted)

    def identities(self) -> Iterator[bytes]:
        """Yield the paths, with the row's number where they alone do not tell the images apart."""
        if self.distinct:
            return iter(self.paths)
        return (b"%s#%d" % (path, row) for path, row in zip(self.paths, self.rows.tolist(), strict=True))

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> RowSource:
        """Return a part of the images."""
        return replace(
            self, rows=self.rows[chosen], paths=self.paths.take(chosen), labels=self.labels[chosen],
            description=description, notes=notes,
        )  # fmt: skip

    def example(self, folder: Path) -> str:
        """Write the first image as a file."""
        data = self.encoded(0)
        try:
            ending = read_header(data).format.lower()
        except UnreadableImage:
            ending = "bin"
        path = folder / f"row-{self.rows[0]:05d}.{ending}"
        path.write_bytes(data)
        return str(path)


def groups_of(source: Source) -> NDArray[np.int64] | None:
    """Return which images are stored together and best read so; None where all are equally near."""
    return source.table.groups(source.rows) if isinstance(source, RowSource) else None
