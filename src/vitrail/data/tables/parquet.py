"""Parquet files, here or on the Hub, read in place through a cache on the disk that never outgrows its limit.

What is read is a row group, by the first process of a machine that needs one of its images; it is kept as an Arrow
file, which the others map. So any row can be had at any time, and a machine reads each group once for as long as it is
kept: an order of images that stays within a window of groups (`sampling.window_order`) reads the set once an epoch.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

BATCH = 16
"""Rows that are in memory at once where a row group is fetched."""
AT_ONCE = 2**23
"""Bytes of one request."""
THREADS = 16
"""Files that are opened at once."""
ABANDONED_S = 3600
"""Age of a file that nobody is writing any more."""

T = TypeVar("T")
_MAPPED: dict[Path, Any] = {}
"""Tables that this process has mapped; they take addresses, not memory."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ParquetTable:
    """The rows of some files, one file after the other."""

    files: tuple[str, ...]
    """Paths, or hf:// addresses that name a commit."""
    versions: tuple[str, ...]
    """Of each file, what changes with its content."""
    places: NDArray[np.int64]
    """(groups, 2): file of each row group, and its number there."""
    starts: NDArray[np.int64]
    """First row of each group, and the end of the last."""
    sizes: NDArray[np.int64]
    """Bytes of each group."""
    cache: Path
    limit: int
    """Bytes that the cache may have."""

    @classmethod
    def open(cls, files: Sequence[str], cache: Path, limit: int) -> ParquetTable:
        """Read the files' footers.

        Raises:
            DataError: One of them cannot be read.
        """
        found = _each(files, _row_groups)
        places = [(number, group) for number, groups in enumerate(found) for group in range(len(groups))]
        rows, sizes = np.array([size for groups in found for size in groups], np.int64).reshape(-1, 2).T
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
        """Return how much of the cache so many images take that are shuffled together."""
        whole = int(self.sizes.sum())
        return min(whole, images * whole // max(len(self), 1) + int(self.sizes.max(initial=0)))

    def column(self, name: str, field: str | None = None) -> Any:
        """Read a column of few bytes from every file."""
        import pyarrow as pa

        def read(opened: Any) -> Any:
            column = opened.read(columns=[name if field is None else f"{name}.{field}"]).column(0)
            return column if field is None else compute().struct_field(column, field)

        parts = _each(self.files, read)
        return pa.chunked_array([chunk.cast(parts[0].type) for part in parts for chunk in part.chunks], parts[0].type)

    def cell(self, column: str, row: int) -> Any:
        """Read what one row has in a column.

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
        place = self.cache / f"{hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()}.arrow"
        if place not in _MAPPED:
            for gone in [other for other in _MAPPED if not other.exists()]:
                del _MAPPED[gone]  # or the disk could not take back what the cache has given up
            table = _map(place)
            _MAPPED[place] = table if table is not None else self._fetched(self.files[file], number, column, place)
        return _MAPPED[place]

    def _fetched(self, file: str, number: int, column: str, place: Path) -> Any:
        """Bring one column of a row group into the cache, unless another process is quicker."""
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
        except Exception as error:  # of pyarrow, fsspec, the Hub's client or the disk; no image is to be blamed for it
            raise DataError(
                f"{file}: its row group {number} could not be read and kept in {self.cache} "
                f"({' '.join(str(error).split()) or type(error).__name__})"
            ) from error

    def _make_room(self, newest: Path) -> None:
        """Delete what was fetched first; who has mapped it keeps it."""
        kept = []
        for entry in os.scandir(self.cache):
            try:
                status = entry.stat()
            except FileNotFoundError:  # another process makes room, too
                continue
            if entry.name.endswith(".arrow") or status.st_mtime < time.time() - ABANDONED_S:
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
    return _each([file], lambda opened: opened.schema_arrow)[0]


def compute() -> Any:
    """Return Arrow's functions, which it makes only when it is imported."""
    import pyarrow.compute

    return pyarrow.compute


def _fetch(file: str, number: int, column: str, place: Path) -> None:
    """Write one column of a row group to an Arrow file, however large, a few rows at a time."""
    import pyarrow as pa

    with _open(file) as opened, pa.OSFile(str(place), "wb") as sink:
        writer = None
        for batch in opened.iter_batches(BATCH, row_groups=[number], columns=[column], use_threads=False):
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


def _each(files: Sequence[str], read: Callable[[Any], T]) -> list[T]:
    """Return what is read from each file, many at once, as most of the time is waiting."""

    def one(file: str) -> T:
        try:
            with _open(file) as opened:
                return read(opened)
        except Exception as error:  # of pyarrow, fsspec or the Hub's client
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{file}: cannot be read as Parquet ({reason})") from error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, files))


@contextmanager
def _open(file: str) -> Iterator[Any]:
    """Open a file of which only what is asked for is read, and of that a few megabytes at once."""
    import fsspec
    import pyarrow.parquet as pq

    if "://" not in file:
        with pq.ParquetFile(file, memory_map=True) as opened:
            yield opened
    else:
        files, path = fsspec.core.url_to_fs(file)
        # left to itself, it reads 5 MB for a label of one byte
        with files.open(path, "rb", cache_type="none") as remote, pq.ParquetFile(remote, buffer_size=AT_ONCE) as opened:
            yield opened


def _row_groups(opened: Any) -> list[tuple[int, int]]:
    footer = opened.metadata
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    return [(group.num_rows, group.total_byte_size) for group in groups]


def _version(file: str) -> str:
    if "://" in file:
        return ""  # the address names a commit
    status = Path(file).stat()
    return f"{status.st_size} {status.st_mtime_ns}"
