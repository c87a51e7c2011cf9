"""The images that are embedded: the splits of a data set, or files without labels."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vitrail.classes.names import BETWEEN
from vitrail.config.sections import DataSection
from vitrail.data.opening import Split, list_files_read, open_data, open_split
from vitrail.data.paths import Paths
from vitrail.data.sources import FileSource, Source
from vitrail.display import Display
from vitrail.errors import DataError, VitrailError, printable, tell_count, write_option
from vitrail.images.decoding import decode_quietly, read_image
from vitrail.images.pixels import UnreadableImage
from vitrail.images.preprocess import Preprocess


@dataclass(frozen=True)
class Part:
    """Images of one split, or files without labels."""

    split: str
    """`train` or `val`; empty for files."""
    source: Source
    files: tuple[Path, ...]
    """Files that the images are read from."""

    @property
    def has_labels(self) -> bool:
        """Whether the images have classes."""
        return bool(self.source.classes)

    @property
    def labels(self) -> NDArray[Any]:
        """(n,) numbers of classes, or for multi-label data (n, k) booleans."""
        sets = self.source.label_sets
        return self.source.labels if sets is None else sets[self.source.labels]

    def class_name(self, index: int) -> str:
        """Return the class of an image, several with | between them, or an empty text."""
        source = self.source
        if not self.has_labels:
            return ""
        label = int(source.labels[index])
        if source.label_sets is None:
            return source.classes[label]
        return BETWEEN.join(
            source.classes[number] for number in np.flatnonzero(source.label_sets[label]).tolist()
        )


def take_files(paths: Iterable[str]) -> Part:
    """Return images by their paths, in the order given, without labels."""
    names = Paths.of(map(os.fsencode, paths))
    source = FileSource(
        Path(), names, np.zeros(len(names), np.int32), (), tell_count(len(names), "file")
    )
    return Part("", source, tuple(map(source.path, range(len(names)))))


def view_query(path: Path, preprocess: Preprocess) -> Tensor:
    """Return the image that others are searched for by, as the network sees it.

    Raises:
        DataError: It cannot be read.
    """
    where = write_option("search", printable(path))
    try:
        return preprocess.view(decode_quietly(read_image(path), preprocess.pixels))
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}); give an image") from error
    except UnreadableImage as error:
        raise DataError(f"{where}: cannot be read ({error}); give an image") from error


def take_splits(section: DataSection, split: Split, display: Display) -> list[Part]:
    """Return the images of a data set: one split, or with `all` those to train on and then those to validate with.

    Images that are too few to hold some out are one part, `train`.

    Raises:
        ConfigError: A setting is wrong.
        DataError: There are no images, or none of this split.
    """
    sources: dict[str, Source] = {}
    notes: tuple[str, ...] = ()
    if split != "all":
        sources[split], notes = open_split(section, split)
    else:
        try:
            data = open_data(section)
            sources, notes = {"train": data.train, "val": data.val}, data.notes
        except DataError:
            try:
                sources["train"], notes = open_split(section, "all")
            except VitrailError:
                sources = {}
            if not sources:
                raise
    for note in notes:
        display.note(note)
    parts = []
    for name, source in sources.items():
        parts.append(Part(name, source, tuple(list_files_read(section, source))))
    return parts
