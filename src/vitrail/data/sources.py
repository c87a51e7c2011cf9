"""Labelled images in a fixed order, as files or in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vitrail.data.paths import Paths
from vitrail.errors import printable
from vitrail.images.decoding import decode_quietly, read_image
from vitrail.images.pixels import PixelFormat, Pixels, fit


@runtime_checkable
class Source(Protocol):
    """Labelled images in a fixed order."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels."""
        ...

    @property
    def labels(self) -> NDArray[np.int32]:
        """Label of each image."""
        ...

    @property
    def label_sets(self) -> NDArray[np.bool_] | None:
        """Where an image may have several classes: (m, k), which of them each of m labels stands for."""
        ...

    @property
    def description(self) -> str:
        """Which images these are, in a few words."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of how the images were found."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return what people call an image: its path, or its set and number."""
        ...

    def encoded(self, index: int) -> bytes | None:
        """Read the bytes of an image's file; None for an image that is held as pixels."""
        ...

    def image(self, index: int, wanted: PixelFormat) -> Pixels:
        """Read an image; raises UnreadableImage or OSError."""
        ...

    def identities(self) -> Iterator[bytes]:
        """Yield what tells the images apart wherever the set lies, to divide it by."""
        ...

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> Source:
        """Return a part of the images."""
        ...

    def example(self, folder: Path) -> str:
        """Return the path of an image file to try a model on, written to `folder` where the set has no files."""
        ...


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files below one folder. Paths are two arrays: workers share them, where they would copy many strings."""

    folder: Path
    paths: Paths
    """Relative to the folder."""
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = ()
    label_sets: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Return where an image is."""
        return self.folder / self.paths.name(index)

    def name(self, index: int) -> str:
        """Return the path, with bytes that are no text escaped."""
        return printable(self.path(index))

    def encoded(self, index: int) -> bytes:
        """Read a file."""
        return read_image(self.path(index))

    def image(self, index: int, wanted: PixelFormat) -> Pixels:
        """Read and decode a file."""
        return decode_quietly(self.encoded(index), wanted)

    def identities(self) -> Iterator[bytes]:
        """Yield the relative paths."""
        return iter(self.paths)

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> Self:
        """Return a part of the files."""
        return replace(
            self, paths=self.paths.take(chosen), labels=self.labels[chosen], description=description, notes=notes
        )

    def example(self, folder: Path) -> str:
        """Return the first file."""
        return str(self.path(0))


@dataclass(frozen=True, eq=False)
class PixelSource:
    """Images that are held in memory."""

    description: str
    images: NDArray[np.uint8]
    """(n, h, w) gray or (n, h, w, 3)."""
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    names: NDArray[Any]
    notes: tuple[str, ...] = ()
    label_sets: None = None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return set and number, such as digits/0007."""
        return str(self.names[index])

    def encoded(self, index: int) -> None:
        """There are no files."""

    def image(self, index: int, wanted: PixelFormat) -> Pixels:
        """Copy out an image; there is no EXIF."""
        pixels = self.images[index].copy()
        return fit(pixels[:, :, None] if pixels.ndim == 2 else pixels, wanted)

    def identities(self) -> Iterator[bytes]:
        """Yield the names."""
        return (name.encode() for name in self.names.tolist())

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> PixelSource:
        """Return a part of the images."""
        return PixelSource(
            description, self.images[chosen], self.labels[chosen], self.classes, self.names[chosen], notes
        )

    def example(self, folder: Path) -> str:
        """Write the first image as a file."""
        path = folder / f"{self.name(0).replace('/', '-')}.png"
        Image.fromarray(self.images[0]).save(path)
        return str(path)


def fingerprint(source: Source) -> str:
    """Return 16 hexadecimal digits that change with the names, the order or the labels of the images."""
    digest = hashlib.sha256()
    for number, identity in enumerate(source.identities()):
        digest.update(b"\n" * (number > 0) + identity)
    digest.update(source.labels.tobytes())
    if source.label_sets is not None:
        digest.update(source.label_sets.tobytes())
    return digest.hexdigest()[:16]


def images_of_classes(source: Source) -> NDArray[np.int64]:
    """Return how many images are of each class; one of several classes counts for each."""
    return count_classes(source.labels, source.label_sets, len(source.classes))


def count_classes(
    labels: NDArray[np.int32], label_sets: NDArray[np.bool_] | None, num_classes: int
) -> NDArray[np.int64]:
    """Return how many of these labels are of each class."""
    if label_sets is None:
        return np.bincount(labels, minlength=num_classes)
    images = np.bincount(labels, minlength=len(label_sets))
    return np.array([images[has].sum() for has in label_sets.T], np.int64)


def label_name(label: int, classes: Sequence[str], label_sets: NDArray[np.bool_] | None) -> str:
    """Return what people call a label: its class, or all of them."""
    if label_sets is None:
        return classes[label]
    return " | ".join(classes[i] for i in np.flatnonzero(label_sets[label]).tolist()) or "no class"
