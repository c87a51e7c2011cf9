"""A source of labelled images in the rows of a table."""

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
    """A table whose rows any process can read in any order."""

    def column(self, name: str, field: str | None = None) -> Any:
        """Read a whole column of small values, or one field of a struct, as an Arrow array in chunks."""
        ...

    def cell(self, column: str, row: int) -> Any:
        """Read the value of one row in a column."""
        ...

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Return the storage group of each row, such as its row group; None where rows can be read in any order."""
        ...


@dataclass(frozen=True, eq=False, kw_only=True)
class RowSource:
    """Images in a column: encoded bytes, or a struct of bytes and a path. All processes share the table's pages."""

    table: Table
    column: str
    """Name of the column of images."""
    split: str
    """Data set and split, for the names of images."""
    rows: NDArray[np.int64]
    """Numbers of the images' rows in the table."""
    paths: Paths
    """Path that each row gives for its image, empty where it gives none."""
    distinct: bool
    """Whether all paths of the split are different."""
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = ()
    label_sets: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """Return the split, row and path of an image, such as hf:owner/pets train[17] cat.jpg."""
        return f"{self.split}[{self.rows[index]}] {printable(self.paths.name(index))}".rstrip()

    def encoded(self, index: int) -> bytes:
        """Return the bytes of an image file, from where its path says if the row has none."""
        cell = self.table.cell(self.column, int(self.rows[index]))
        data = cell
        path = None
        if isinstance(cell, dict):
            data = cell.get("bytes")
            path = cell.get("path")
        if data is not None:
            return data
        if not path:
            raise UnreadableImage("the row has no image")
        return read_image(path)

    def image(self, index: int, wanted: PixelFormat) -> Pixels:
        """Read and decode an image."""
        return decode_quietly(self.encoded(index), wanted)

    def identities(self) -> Iterator[bytes]:
        """Yield the path of each image, with the row's number where paths are not different."""
        if self.distinct:
            return iter(self.paths)
        return (
            b"%s#%d" % (path, row) for path, row in zip(self.paths, self.rows.tolist(), strict=True)
        )

    def take(
        self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]
    ) -> RowSource:
        """Return the chosen images as a source of their own."""
        return replace(
            self,
            rows=self.rows[chosen],
            paths=self.paths.take(chosen),
            labels=self.labels[chosen],
            description=description,
            notes=notes,
        )

    def example(self, folder: Path) -> str:
        """Write the first image as a file, and return its path."""
        data = self.encoded(0)
        try:
            ending = read_header(data).format.lower()
        except UnreadableImage:
            ending = "bin"
        path = folder / f"row-{self.rows[0]:05d}.{ending}"
        path.write_bytes(data)
        return str(path)


def find_storage_groups(source: Source) -> NDArray[np.int64] | None:
    """Return the storage group of each image, such as its row group; None where images can be read in any order."""
    if isinstance(source, RowSource):
        return source.table.groups(source.rows)
    return None
