"""Features on the disk: written row by row in constant memory, continued where a killed process stopped, and cached."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray

from vitrail.data.sources import PixelSource, Source, fingerprint
from vitrail.distributed.processes import share
from vitrail.embedding.extract import Extractor, Rows, extract_features
from vitrail.errors import ConfigError, DataError
from vitrail.files import refusal_told, write_whole

VALUES, STATE, LOCK = "features.npy", "state.json", "lock"
"""Files of a store."""
SAVE_EVERY_S = 5.0
"""Seconds of work that a kill may cost."""


@dataclass(frozen=True)
class Features:
    """The features of all images of a source."""

    values: NDArray[np.float32]
    """(n, d), mapped from the disk; NaN for an image that cannot be read."""
    bad: Mapping[int, str]
    """Index of each image that cannot be read, and the reason."""

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Which images have features."""
        known = np.ones(len(self.values), np.bool_)
        known[list(self.bad)] = False
        return known


def embed_source(
    extractor: Extractor,
    source: Source,
    accelerator: Accelerator,
    folder: Path,
    about: Mapping[str, Any],
    *,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda images: None,
    advice: str = "free space",
) -> Features | None:
    """Bring the features of all images to a folder, and return them on the first process, None on the others.

    What a killed process has brought there is kept, if it was to be the same. Collective.

    Args:
        extractor: The network, and how it is used.
        source: The images.
        accelerator: The processes.
        folder: The folder, for this alone.
        about: All that decides the features, as plain values; what is there of other values is
            replaced.
        workers: Number of loader processes for each process; None chooses by the cores.
        advance: Called with numbers of images that are done, those of an earlier process first.
        advice: What the user can do where the folder cannot be written.

    Raises:
        CheckpointError: The folder cannot be written.
        ConfigError: Another process is at work there.
        DataError: No image can be read.
    """
    shape = (len(source), extractor.num_features)
    with contextlib.ExitStack() as exits:
        store = None
        if accelerator.is_main_process:
            store = exits.enter_context(_Store.opened(folder, about, shape, advice))
        done = share(accelerator, None if store is None else store.done)
        advance(done)
        # a part that is done is not computed again, but for the batch that the kill may have cut
        for rows in extract_features(
            extractor, source, accelerator, workers=workers, first=done, advance=advance
        ):
            assert store is not None
            store.add(rows)
        if store is None:
            return None
        features = store.finish()
    if len(features.bad) == len(source):
        index, reason = next(iter(features.bad.items()))
        raise DataError(
            f"none of the {len(source):,} images could be read; the first is {source.name(index)} "
            f"({reason})"
        )
    return features


class _Store:
    """A folder that features are brought to, by one process at a time."""

    def __init__(
        self, folder: Path, about: Mapping[str, Any], shape: tuple[int, int], advice: str
    ) -> None:
        self._folder, self._about, self._shape, self._advice = folder, dict(about), shape, advice
        self.done, self._bad = self._read_state()
        is_new = self.done == 0
        with self._refusal_told():
            mode = "w+" if is_new else "r+"
            self._values = np.lib.format.open_memmap(
                folder / VALUES,
                mode,
                np.dtype("<f4") if is_new else None,
                shape if is_new else None,
            )
            if is_new:
                # a full disk is met here, and not while the mapped file is written, which would end
                # the process
                _reserve(folder / VALUES)
        self._saved = time.monotonic()

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls, folder: Path, about: Mapping[str, Any], shape: tuple[int, int], advice: str
    ) -> Iterator[_Store]:
        """Open a store, new or with what an earlier process has brought there."""
        with refusal_told(folder, None, advice):
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / LOCK).open("ab")
        with lock:
            if not take_lock(lock.fileno()):
                raise ConfigError(
                    f"{folder}: another process brings features there; wait for its end, or end it"
                )
            yield cls(folder, about, shape, advice)

    def add(self, rows: Rows) -> None:
        """Take the next rows."""
        assert rows.first == self.done
        self.done += len(rows.values)
        self._values[rows.first : self.done] = rows.values
        self._bad |= dict(rows.bad)
        if time.monotonic() - self._saved >= SAVE_EVERY_S:
            self._save()

    def finish(self) -> Features:
        """Push everything to the disk."""
        self._save()
        values = np.lib.format.open_memmap(self._folder / VALUES, "r")
        return Features(values, self._bad)

    def _save(self) -> None:
        """Push the rows to the disk, and only then say that they are there."""
        with self._refusal_told():
            self._values.flush()
        state = {"about": self._about, "done": self.done, "bad": list(self._bad.items())}
        write_whole(self._folder / STATE, json.dumps(state).encode(), self._advice)
        self._saved = time.monotonic()

    def _read_state(self) -> tuple[int, dict[int, str]]:
        """Return how many rows are there, and the images among them that cannot be read."""
        try:
            state = json.loads((self._folder / STATE).read_text())
            if state["about"] != json.loads(json.dumps(self._about)):
                return 0, {}
            values = np.lib.format.open_memmap(self._folder / VALUES, "r")
            if values.shape != self._shape or values.dtype != np.dtype("<f4"):
                return 0, {}
            return int(state["done"]), {int(index): str(reason) for index, reason in state["bad"]}
        except (OSError, ValueError, KeyError, TypeError):
            return 0, {}

    def _refusal_told(self) -> contextlib.AbstractContextManager[None]:
        return refusal_told(self._folder / VALUES, None, self._advice)


def _reserve(path: Path) -> None:
    """Take the disk's space for a whole file.

    Raises:
        OSError: The disk is full.
    """
    if hasattr(os, "posix_fallocate"):  # Windows and macOS have none
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def take_lock(number: int) -> bool:
    """Lock a file for this process, if no other has; say whether it is."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def cached_features(
    extractor: Extractor,
    source: Source,
    accelerator: Accelerator,
    *,
    files: Iterable[Path] = (),
    workers: int | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> Features | None:
    """Return the features of all images on the first process, computed once for all calls on this machine. Collective.

    They are kept in the user's cache, by all that decides them: weights, preprocessing, level and
    pooling, and the images by name, label, and size and time of their files.

    Args:
        extractor: The network, and how it is used.
        source: The images.
        accelerator: The processes.
        files: Files that the images are read from, as `list_files_read` yields them.
        workers: Number of loader processes for each process; None chooses by the cores.
        advance: Called with numbers of images that are done, those of the cache first.

    Raises:
        CheckpointError: The cache cannot be written.
        ConfigError: Another process is at work on the same.
        DataError: No image can be read.
    """
    about = describe(extractor, source, files) if accelerator.is_main_process else {}
    folder = _place_in_cache(about)
    advice = f"free space, or delete {folder.parent}"
    return embed_source(
        extractor,
        source,
        accelerator,
        folder,
        about,
        workers=workers,
        advance=advance,
        advice=advice,
    )


def keep_in_cache(folder: Path) -> None:
    """Move features that `embed_source` has brought to a folder into the user's cache, or leave them there.

    They are left where the cache is on another disk, cannot be written, or has them already.
    """
    with contextlib.suppress(OSError):
        place = _place_in_cache(json.loads((folder / STATE).read_text())["about"])
        place.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(place)


def _place_in_cache(about: Mapping[str, Any]) -> Path:
    text = json.dumps(about, sort_keys=True).encode()
    return locate_cache() / hashlib.blake2b(text, digest_size=16).hexdigest()


def locate_cache() -> Path:
    """Return the folder in the user's cache that features are kept in, which may be deleted."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "vitrail" / "features"


def describe(extractor: Extractor, source: Source, files: Iterable[Path]) -> dict[str, Any]:
    """Return all that decides the features of images, as plain values for JSON."""
    return {
        **extractor.description,
        "images": fingerprint(source),
        "contents": fingerprint_contents(source, files),
    }


def fingerprint_contents(source: Source, files: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that change with the pixels of images in memory, or with any file's size or time.

    Args:
        source: The images.
        files: Files that they are read from.
    """
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(source, PixelSource):
        digest.update(np.ascontiguousarray(source.images).data)
    for file in files:
        with contextlib.suppress(OSError):  # what is not there is found when it is read
            status = file.stat()
            digest.update(b"%d %d\n" % (status.st_size, status.st_mtime_ns))
    return digest.hexdigest()
