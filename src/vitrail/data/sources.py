"""Sources of labelled images in a fixed order: the protocol, image files, and images in memory; fingerprints."""

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
from vitrail.images.pixels import PixelFormat, Pixels, to_pixel_format

TRAIN = 0
VAL = 1
"""Numbers of the splits in lists and manifests."""
UNLABELLED = ("unlabelled",)
"""The one class that images without labels are taken to have."""


@runtime_checkable
class Source(Protocol):
    """Labelled images in a fixed order."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, by label."""
        ...

    @property
    def labels(self) -> NDArray[np.int32]:
        """Label of each image."""
        ...

    @property
    def label_sets(self) -> NDArray[np.bool_] | None:
        """For multi-label data, (m, k): which of k classes each of m labels stands for; None for single-label data."""
        ...

    @property
    def description(self) -> str:
        """The name of the set in messages, such as its folder."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Messages for the user about how the images were found."""
        ...

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """Return the name of an image in messages: its path, or its set and number."""
        ...

    def encoded(self, index: int) -> bytes | None:
        """Read the bytes of an image's file; None for an image that is held as pixels."""
        ...

    def image(self, index: int, wanted: PixelFormat) -> Pixels:
        """Read and decode an image; raises UnreadableImage or OSError."""
        ...

    def identities(self) -> Iterator[bytes]:
        """Yield a name of each image that does not depend on where the set lies; splits are made by it."""
        ...

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> Source:
        """Return the chosen images as a source of their own."""
        ...

    def example(self, folder: Path) -> str:
        """Return the path of an image file to try a model on, written to `folder` where the set has no files."""
        ...


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files below one folder. Paths are two arrays: workers share them, where they would copy many strings."""

    folder: Path
    paths: Paths
    """Paths of the images, relative to the folder."""
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
        """Return the path of an image, with bytes that are no text escaped."""
        return printable(self.path(index))

    def encoded(self, index: int) -> bytes:
        """Read the bytes of an image's file."""
        return read_image(self.path(index))

    def image(self, index: int, wanted: PixelFormat) -> Pixels:
        """Read and decode an image."""
        return decode_quietly(self.encoded(index), wanted)

    def identities(self) -> Iterator[bytes]:
        """Yield the path of each image, relative to the folder."""
        return iter(self.paths)

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> Self:
        """Return the chosen images as a source of their own."""
        return replace(
            self,
            paths=self.paths.take(chosen),
            labels=self.labels[chosen],
            description=description,
            notes=notes,
        )

    def example(self, folder: Path) -> str:
        """Return the path of the first image."""
        return str(self.path(0))


@dataclass(frozen=True, eq=False)
class PixelSource:
    """Images that are held in memory."""

    description: str
    images: NDArray[np.uint8]
    """(n, h, w) for gray images, or (n, h, w, 3)."""
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    names: NDArray[Any]
    """Name of each image, its set and number."""
    notes: tuple[str, ...] = ()
    label_sets: None = None

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return the set and number of an image, such as digits/0007."""
        return str(self.names[index])

    def encoded(self, index: int) -> None:
        """Return None, as there are no files."""

    def image(self, index: int, wanted: PixelFormat) -> Pixels:
        """Copy out an image; there is no EXIF."""
        pixels = self.images[index].copy()
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        return to_pixel_format(pixels, wanted)

    def identities(self) -> Iterator[bytes]:
        """Yield the name of each image."""
        return map(str.encode, self.names.tolist())

    def take(
        self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]
    ) -> PixelSource:
        """Return the chosen images as a source of their own."""
        return PixelSource(
            description,
            self.images[chosen],
            self.labels[chosen],
            self.classes,
            self.names[chosen],
            notes,
        )

    def example(self, folder: Path) -> str:
        """Write the first image as a file, and return its path."""
        path = folder / f"{self.name(0).replace('/', '-')}.png"
        Image.fromarray(self.images[0]).save(path)
        return str(path)


def fingerprint(source: Source) -> str:
    """Return 16 hexadecimal digits that change with the names, the order or the labels of the images."""
    digest = hashlib.sha256()
    for number, identity in enumerate(source.identities()):
        separator = b"\n" if number > 0 else b""
        digest.update(separator + identity)
    digest.update(source.labels.tobytes())
    if source.label_sets is not None:
        digest.update(source.label_sets.tobytes())
    return digest.hexdigest()[:16]


def count_by_class(source: Source) -> NDArray[np.int64]:
    """Return the number of images of each class; an image of several classes counts for each of them."""
    return count_labels(source.labels, source.label_sets, len(source.classes))


def count_labels(
    labels: NDArray[np.int32], label_sets: NDArray[np.bool_] | None, num_classes: int
) -> NDArray[np.int64]:
    """Return the number of labels of each class; a label set counts for each of its classes."""
    if label_sets is None:
        return np.bincount(labels, minlength=num_classes)
    images = np.bincount(labels, minlength=len(label_sets))
    return np.array([images[has].sum() for has in label_sets.T], np.int64)


def format_label(label: int, classes: Sequence[str], label_sets: NDArray[np.bool_] | None) -> str:
    """Return the class name of a label; of a label set, the names of all its classes."""
    if label_sets is None:
        return classes[label]
    names = [classes[index] for index in np.flatnonzero(label_sets[label]).tolist()]
    return " | ".join(names) or "no class"
