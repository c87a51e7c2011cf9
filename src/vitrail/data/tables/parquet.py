"""Parquet files, here or on the Hub, read in place through a bounded cache on the disk.

Row groups are read whole, each by the first process of a machine that needs one of its images, and
kept as Arrow files, which the other processes map. So any row can be read at any time, and a
machine fetches each group once for as long as it is kept: an order of images that stays within a
window (`sampling.shuffle_in_windows`) reads the set once an epoch.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

BATCH = 16
"""Rows that are in memory at a time while a row group is fetched."""
AT_ONCE = 2**23
"""Bytes of one request to the Hub."""
THREADS = 16
"""Files that are opened at the same time."""
ABANDONED_S = 3600
"""Age in seconds at which an unfinished file of the cache is taken to be abandoned."""

T = TypeVar("T")
_MAPPED: dict[Path, Any] = {}
"""Tables that this process has mapped; they take addresses, not memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ParquetTable:
    """The rows of several Parquet files, one file after the other."""

    files: tuple[str, ...]
    """Paths, or hf:// addresses that name a commit."""
    versions: tuple[str, ...]
    """Version of each file, which changes with its content."""
    places: NDArray[np.int64]
    """(groups, 2): index of each row group's file, and its number in the file."""
    starts: NDArray[np.int64]
    """First row of each row group, and the end of the last."""
    sizes: NDArray[np.int64]
    """Bytes of each row group."""
    cache: Path
    """Folder of the cache."""
    limit: int
    """Most bytes of the cache."""

    @classmethod
    def open(cls, files: Sequence[str], cache: Path, limit: int) -> ParquetTable:
        """Read the files' footers.

        Raises:
            DataError: One of them cannot be read.
        """
        groups_of_files = _read_each(files, _read_row_groups)
        places = []
        sizes_of_groups = []
        for file, groups in enumerate(groups_of_files):
            places += [(file, number) for number in range(len(groups))]
            sizes_of_groups += groups
        rows, sizes = np.array(sizes_of_groups, np.int64).reshape(-1, 2).T
        return cls(
            files=tuple(files),
            versions=tuple(map(_version, files)),
            places=np.array(places, np.int64).reshape(-1, 2),
            starts=np.concatenate([[0], np.cumsum(rows)]),
            sizes=sizes,
            cache=cache,
            limit=limit,
        )

    def __len__(self) -> int:
        return int(self.starts[-1])

    def window_bytes(self, images: int) -> int:
        """Return the bytes of cache that are needed to shuffle in a window of so many images."""
        whole = int(self.sizes.sum())
        return min(whole, images * whole // max(len(self), 1) + int(self.sizes.max(initial=0)))

    def column(self, name: str, field: str | None = None) -> Any:
        """Read a whole column of small values, or one field of a struct, from every file."""
        import pyarrow as pa

        def read(opened: Any) -> Any:
            if field is None:
                return opened.read(columns=[name]).column(0)
            column = opened.read(columns=[f"{name}.{field}"]).column(0)
            return import_compute().struct_field(column, field)

        columns = _read_each(self.files, read)
        kind = columns[0].type
        chunks = [
            chunk.cast(kind) for chunk in chain.from_iterable(column.chunks for column in columns)
        ]
        return pa.chunked_array(chunks, kind)

    def cell(self, column: str, row: int) -> Any:
        """Read the value of one row in a column.

        Raises:
            DataError: Its row group cannot be fetched or kept.
        """
        group = int(self.groups(np.array([row]))[0])
        return self._group(column, group).column(0)[row - int(self.starts[group])].as_py()

    def groups(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row group of each row."""
        return np.searchsorted(self.starts, rows, side="right") - 1

    def _group(self, column: str, group: int) -> Any:
        """Return one column of a row group, mapped from the cache."""
        file, number = self.places[group].tolist()
        identity = "\0".join((self.files[file], self.versions[file], str(number), column))
        place = (
            self.cache / f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.arrow"
        )
        if place not in _MAPPED:
            # files that the cache has deleted are unmapped, so that the disk takes them back
            for gone in [other for other in _MAPPED if not other.exists()]:
                del _MAPPED[gone]
            table = _map(place)
            if table is None:
                table = self._fetch_group(self.files[file], number, column, place)
            _MAPPED[place] = table
        return _MAPPED[place]

    def _fetch_group(self, file: str, number: int, column: str, place: Path) -> Any:
        """Fetch one column of a row group into the cache, unless another process did so meanwhile, and map it."""
        from filelock import FileLock

        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            with FileLock(self.cache / f"{place.name[:2]}.lock"):  # few files, however many groups
                table = _map(place)
                if table is None:
                    unfinished = place.with_suffix(".tmp")
                    _fetch(file, number, column, unfinished)
                    table = _map(unfinished)
                    unfinished.replace(place)
                    self._make_room(place)
            return table
        # pyarrow, fsspec, the Hub's client and the disk raise many kinds; no image is to be blamed
        # for it
        except Exception as error:
            raise DataError(
                f"{file}: its row group {number} could not be read and kept in {self.cache} "
                f"({' '.join(str(error).split()) or type(error).__name__})"
            ) from error

    def _make_room(self, newest: Path) -> None:
        """Delete the oldest files until the cache is within its limit; processes that have mapped them keep them."""
        kept = []
        for entry in os.scandir(self.cache):
            try:
                status = entry.stat()
            except FileNotFoundError:
                continue  # another process makes room, too
            is_abandoned = status.st_mtime < time.time() - ABANDONED_S
            if entry.name.endswith(".arrow") or is_abandoned:
                kept.append((status.st_mtime_ns, status.st_size, Path(entry.path)))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self.limit:
                break
            if path != newest and path.suffix != ".lock":
                path.unlink(missing_ok=True)
                total -= size


def read_schema(file: str) -> Any:
    """Return the Arrow schema of a file.

    Raises:
        DataError: It cannot be read.
    """
    return _read_each([file], lambda opened: opened.schema_arrow)[0]


def import_compute() -> Any:
    """Import the module of Arrow's functions, which are made only when it is imported."""
    import pyarrow.compute

    return pyarrow.compute


def _fetch(file: str, number: int, column: str, place: Path) -> None:
    """Write one column of a row group to an Arrow file, however large, a few rows at a time."""
    import pyarrow as pa

    with _open(file) as opened, pa.OSFile(str(place), "wb") as sink:
        writer = None
        for batch in opened.iter_batches(
            BATCH, row_groups=[number], columns=[column], use_threads=False
        ):
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch)
        assert writer is not None
        writer.close()


def _map(place: Path) -> Any:
    """Return an Arrow file's table without reading it; None if it is not there, or cut off by a crash."""
    import pyarrow as pa

    try:
        return pa.ipc.open_file(pa.memory_map(str(place))).read_all()
    except (OSError, pa.ArrowInvalid):
        return None


def _read_each(files: Sequence[str], read: Callable[[Any], T]) -> list[T]:
    """Call `read` on each opened file, many files at the same time, as most of it is waiting; return the results."""

    def read_one(file: str) -> T:
        try:
            with _open(file) as opened:
                return read(opened)
        # pyarrow, fsspec and the Hub's client raise many kinds
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{file}: cannot be read as Parquet ({reason})") from error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read_one, files))


@contextmanager
def _open(file: str) -> Iterator[Any]:
    """Open a Parquet file, of which only the columns that are asked for are read, a few megabytes at a time."""
    import fsspec
    import pyarrow.parquet as pq

    if "://" not in file:
        with pq.ParquetFile(file, memory_map=True) as opened:
            yield opened
    else:
        filesystem, path = fsspec.core.url_to_fs(file)
        # left to itself, it reads 5 MB for a label of one byte
        with (
            filesystem.open(path, "rb", cache_type="none") as remote,
            pq.ParquetFile(remote, buffer_size=AT_ONCE) as opened,
        ):
            yield opened


def _read_row_groups(opened: Any) -> list[tuple[int, int]]:
    """Return rows and bytes of each row group of a file."""
    footer = opened.metadata
    sizes = []
    for group in map(footer.row_group, range(footer.num_row_groups)):
        sizes.append((group.num_rows, group.total_byte_size))
    return sizes


def _version(file: str) -> str:
    """Return a text that changes with the content of a file; an address on the Hub names a commit already."""
    if "://" in file:
        return ""
    status = Path(file).stat()
    return f"{status.st_size} {status.st_mtime_ns}"
