"""Images in tar shards, read at random by their offsets, in the same order as from their folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources import FileSource
from vitrail.errors import DataError
from vitrail.files import number_of_regular, open_regular
from vitrail.images.pixels import UnreadableImage

INDEX = "vitrail-index.safetensors"
"""File name of the manifest that lies beside shards and makes them a data set."""
OPEN_FILES = 128
"""Most shards that a process keeps open: systems allow 256 files and more."""


def has_shards(root: Path) -> bool:
    """Say whether a folder holds shards rather than folders of images."""
    try:
        return (root / INDEX).is_file()
    except OSError:
        return False  # listing the folder will say why it cannot be read


class Shard(NamedTuple):
    """A tar file, as it was written."""

    name: str
    bytes: int
    """Size of the file."""
    sha256: str
    """SHA-256 of the file, in hexadecimal digits."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where images lie in shards, as columns that processes share."""

    shards: tuple[Shard, ...]
    shard: NDArray[np.int32]
    """Index of each image's shard."""
    offset: NDArray[np.int64]
    """Where each image begins in its shard."""
    bytes: NDArray[np.int64]
    """Size of each image's file."""

    def read(self, root: Path, index: int) -> bytes:
        """Read the bytes of an image's file, and no other part of its shard.

        Raises:
            UnreadableImage: Its shard is not there, or too short.
        """
        shard = self.shards[self.shard[index]]
        size = int(self.bytes[index])
        try:
            data = os.pread(
                _opened(root / shard.name, shard.sha256).number, size, int(self.offset[index])
            )
        except OSError as error:
            raise UnreadableImage(f"its shard {shard.name}: {error.strerror}") from error
        if len(data) < size:
            raise UnreadableImage(f"its shard {shard.name} is cut off")
        return data

    def take(self, chosen: NDArray[np.bool_]) -> Places:
        """Return the places of the chosen images."""
        return Places(self.shards, self.shard[chosen], self.offset[chosen], self.bytes[chosen])

    def check_sizes(self, root: Path) -> None:
        """Check that all shards are there, in full length.

        Raises:
            DataError: With the first that is not.
        """
        for shard in self.shards:
            try:
                size = (root / shard.name).stat().st_size
            except OSError as error:
                wrong = f"cannot be opened ({error.strerror})"
            else:
                if size == shard.bytes:
                    continue
                wrong = f"has {size:,} bytes, where {INDEX} says {shard.bytes:,}"
            raise DataError(
                f"{root / shard.name}: {wrong}; copy the shards again, or pack the folder anew"
            )

    def verify(self, root: Path, advance: Callable[[], None]) -> Iterator[str]:
        """Read all shards, and yield a line for each whose checksum is wrong; call `advance` after each."""

        def find_damage(shard: Shard) -> str:
            try:
                with open_regular(root / shard.name) as file:
                    sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                return f"cannot be read ({error.strerror})"
            return "" if sha256 == shard.sha256 else "is not as it was packed, by its SHA-256"

        with ThreadPoolExecutor() as pool:
            reasons = pool.map(find_damage, self.shards)
            for shard, reason in zip(self.shards, reasons, strict=True):
                advance()
                if reason:
                    yield f"{shard.name} {reason}; copy it again, or pack the folder anew"


class _File:
    """A file descriptor that is closed when nobody holds it any more."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.close(self.number)


@lru_cache(OPEN_FILES)
def _opened(path: Path, content: str) -> _File:
    """Open a shard; the checksum `content` tells it from another that was packed anew under the same name.

    Processes that fork may share it, as every read says where it begins.
    """
    return _File(number_of_regular(path))


@dataclass(frozen=True, eq=False, kw_only=True)
class ShardSource(FileSource):
    """The files of one folder, read from shards. They are named as if the folder lay among the shards."""

    root: Path
    """Folder of the shards."""
    places: Places
    """Where the images lie in the shards."""

    def encoded(self, index: int) -> bytes:
        """Read the bytes of an image's file."""
        return self.places.read(self.root, index)

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> Self:
        """Return the chosen images as a source of their own."""
        return replace(super().take(chosen, description, notes), places=self.places.take(chosen))

    def example(self, folder: Path) -> str:
        """Write the first image as a file, and return its path."""
        path = folder / self.path(0).name
        path.write_bytes(self.encoded(0))
        return str(path)
