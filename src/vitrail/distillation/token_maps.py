"""Token labels on the disk: for each image of a data set, what a teacher says of every token of its map.

Of each token the logits of the likeliest classes are kept in half precision, as logarithms of
probabilities, and the one number that each other class would have if all shared what is left.

A file has a first line that says what it is, then a record for each of `SHARD` images that follow
each other in their source: whether the image could be read, numbers, classes, and a checksum. All
records are equally long, so an image is found by its index. Files are equal for any number of
processes, each of which writes whole ones, and for any number of times that they were killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from vitrail.distillation.answers import ABOUT, Layout, describe_differences
from vitrail.distillation.teacher import PLACES
from vitrail.errors import CheckpointError, ConfigError, DataError, command
from vitrail.files import is_temporary, refusal_told, write_whole

SHARD = 8 * PLACES
"""Images of a file."""
SUFFIX = ".maps"
FIRST_LINE = b"vitrail token labels 1\n"
LOCK = "lock"
"""File that the process which writes has locked."""
ADVICE = "free space, or choose another folder"


@dataclass(frozen=True)
class MapLayout:
    """What is kept of the map of an image."""

    num_classes: int
    topk: int
    """Classes whose logits are kept of a token, at most all."""
    grid: tuple[int, int]
    """Tokens along height and width."""

    @cached_property
    def of_token(self) -> Layout:
        """What is kept of a token."""
        return Layout(self.num_classes, self.topk)

    @property
    def tokens(self) -> int:
        """Tokens of a map."""
        return self.grid[0] * self.grid[1]

    @cached_property
    def record(self) -> np.dtype[Any]:
        """A map as it lies in a file."""
        token = self.of_token
        return np.dtype(
            [
                ("is_known", "u1"),
                ("numbers", "<f2", (self.tokens, token.kept + 1)),
                ("classes", token.row["classes"].base, (self.tokens, token.kept)),
                ("checksum", "<u8"),
            ]
        )

    def pack(self, indices: Sequence[int], logits: Float[Tensor, "b n k"]) -> NDArray[Any]:
        """Return the records of images that could be read, by their indices in the source."""
        flat = logits.log_softmax(2).flatten(0, 1)
        rows = self.of_token.pack(np.zeros(len(flat), np.uint64), flat, None)
        records = np.zeros(len(indices), self.record)
        records["is_known"] = 1
        for name in ("numbers", "classes"):
            records[name] = rows[name].reshape(len(indices), self.tokens, -1)
        return self.seal(indices, records)

    def seal(self, indices: Sequence[int], records: NDArray[Any]) -> NDArray[Any]:
        """Give records their checksums, and return them."""
        for index, record in zip(indices, records, strict=True):
            record["checksum"] = self._checksum(index, record)
        return records

    def is_whole(self, index: int, record: Any) -> bool:
        """Say whether a record is that of an image, to the last bit."""
        return int(record["checksum"]) == self._checksum(index, record)

    def unpack(
        self, records: NDArray[Any], device: torch.device
    ) -> Float[Tensor, "b k grid_h grid_w"]:
        """Return maps of logits on a device; classes that were not kept share what is left of each token."""
        rows = np.zeros(len(records) * self.tokens, self.of_token.row)
        for name in ("numbers", "classes"):
            rows[name] = records[name].reshape(len(rows), -1)
        logits, _ = self.of_token.unpack(rows, device)
        maps = logits.reshape(len(records), *self.grid, self.num_classes)
        return maps.permute(0, 3, 1, 2)

    def _checksum(self, index: int, record: Any) -> int:
        data = index.to_bytes(8, "little") + record.tobytes()[:-8]
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


class MapFiles:
    """The files of token labels in a folder.

    Args:
        folder: The folder.
        layout: What is kept of a map.
        images: Images of the data set.
    """

    def __init__(self, folder: Path, layout: MapLayout, images: int) -> None:
        self.folder, self.layout, self.images = folder, layout, images
        self._open: dict[int, NDArray[Any]] = {}

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.images // SHARD)

    def path(self, shard: int) -> Path:
        """Return a file by its number."""
        return self.folder / f"{shard:05d}{SUFFIX}"

    def places(self, shard: int) -> range:
        """Return the indices of the images of a file."""
        return range(shard * SHARD, min((shard + 1) * SHARD, self.images))

    def check_sizes(self) -> None:
        """Refuse a folder whose files are not all there, or not whole.

        Raises:
            DataError: The first such file, and what to do.
        """
        for shard in range(self.shards):
            path, wanted = self.path(shard), self._size(len(self.places(shard)))
            if not path.exists():
                raise DataError(f"{path}: is missing; {self._advice()}")
            if (size := path.stat().st_size) != wanted:
                raise DataError(
                    f"{path}: has {size:,} bytes instead of {wanted:,}; {self._advice()}"
                )

    def read(self, indices: Sequence[int]) -> NDArray[Any]:
        """Return the records of images.

        Raises:
            DataError: One of them is damaged, or its file cannot be read.
        """
        records = np.zeros(len(indices), self.layout.record)
        for number, index in enumerate(indices):
            shard, place = divmod(index, SHARD)
            records[number] = self._map(shard)[place]
            if not self.layout.is_whole(index, records[number]):
                raise DataError(
                    f"{self.path(shard)}: is damaged at image {place + 1}; {self._advice()}"
                )
        return records

    def close(self) -> None:
        """Let go of the files, which are opened again when they are read."""
        self._open.clear()

    def list_unknown(self) -> list[int]:
        """Return the indices of the images that have no map, as the teacher could not read them."""
        unknown: list[int] = []
        for shard in range(self.shards):
            known = self._map(shard)["is_known"]
            unknown += (np.flatnonzero(known != 1) + shard * SHARD).tolist()
        return unknown

    def count_done(self, shard: int) -> tuple[int, bool]:
        """Return how many images of a file are done, in whole batches from the first on, and whether it is damaged."""
        path, places = self.path(shard), self.places(shard)
        try:
            data = path.read_bytes()
        except OSError:
            return 0, False
        begin, length = len(FIRST_LINE), self.layout.record.itemsize
        if data[:begin] != FIRST_LINE:
            return 0, bool(data)
        written = min((len(data) - begin) // length, len(places))
        records = np.frombuffer(data, self.layout.record, written, begin)
        done = 0
        for record in records:
            if not self.layout.is_whole(places[done], record):
                break
            done += 1
        is_damaged = done < written
        return (done if done == len(places) else done - done % PLACES), is_damaged

    def open_for(self, shard: int, done: int) -> IO[bytes]:
        """Open a file to write what follows its first images; whatever else it had is cut off."""
        with refusal_told(self.path(shard), None, ADVICE):
            file = self.path(shard).open("ab" if done else "wb")
            if done:
                file.truncate(self._size(done))
            else:
                file.write(FIRST_LINE)
            return file

    def _size(self, images: int) -> int:
        return len(FIRST_LINE) + images * self.layout.record.itemsize

    def _map(self, shard: int) -> NDArray[Any]:
        if shard not in self._open:
            path = self.path(shard)
            try:
                self._open[shard] = np.memmap(path, self.layout.record, "r", len(FIRST_LINE))
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: cannot be read ({error}); {self._advice()}") from error
        return self._open[shard]

    def _advice(self) -> str:
        return f"the same {command('make-token-labels')} as before mends it"


def open_map_folder(folder: Path, about: Mapping[str, Any]) -> None:
    """Make a folder of token labels, or see that one is of the same.

    Args:
        folder: The folder.
        about: All that decides the labels, as plain values for JSON.

    Raises:
        CheckpointError: It cannot be written or read.
        ConfigError: It has other labels, or something else.
    """
    with refusal_told(folder, None, ADVICE):
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = all(is_temporary(one) or one.name == LOCK for one in folder.iterdir())
    if (folder / ABOUT).exists():
        refuse_other_maps(folder, read_about_maps(folder), about)
    elif is_empty:
        write_whole(folder / ABOUT, json.dumps(about, indent=1).encode(), ADVICE)
    else:
        raise ConfigError(
            f"{folder}: holds no token labels, and is not empty; give a folder of its own"
        )


def read_about_maps(folder: Path) -> dict[str, Any]:
    """Return what the token labels in a folder are of.

    Raises:
        CheckpointError: The folder has none, or the file that says it is damaged.
    """
    path = folder / ABOUT
    make = f"make them with {command('make-token-labels')}"
    try:
        about = json.loads(path.read_text())
        if isinstance(about, dict) and about.get("kind") == KIND:
            return about
    except OSError:
        raise CheckpointError(f"{os.fspath(folder)}: has no token labels; {make}") from None
    except ValueError:
        pass
    raise CheckpointError(f"{path}: is damaged, or of something else; {make} in another folder")


KIND = "token labels"
"""What a folder is, as its file ABOUT says."""


def refuse_other_maps(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Refuse token labels that are of something else, with what differs.

    Raises:
        ConfigError: They differ in anything that both name.
    """
    here = json.loads(json.dumps(here))
    both = {name: there.get(name) for name in here}
    if differing := describe_differences(both, here):
        raise ConfigError(
            f"{folder}: holds other token labels: {differing}; give another folder, or make the "
            f"labels of these images with {command('make-token-labels')}"
        )
