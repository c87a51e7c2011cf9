"""Images as raw numbers for an inference program elsewhere, and the logits that it answers with.

Ascend's programs read each image from a file of normalised float32 and write its logits to another,
named after it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from vitrail.classes.matching import match_by_name
from vitrail.classes.names import canonical
from vitrail.data.loader import Batch
from vitrail.data.sources import Source
from vitrail.errors import DataError, names_flags, printable, write_option
from vitrail.files import open_regular
from vitrail.images.decoding import decode_quietly, read_image
from vitrail.images.pixels import PixelFormat, UnreadableImage
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.whole_folder import WholeFolder

INPUTS = "input"
"""Folder of the inputs themselves, below the folder of `write_inputs`."""
NAMES = "names.json"
"""File with the path of each image."""
LABELS = "labels.json"
"""File with the class of each image, where all lie in folders that are called as classes."""
ANSWER = "_0.bin"
"""Ending of the file with an image's first output, behind the image's name."""
AT_ONCE = 64
"""Images that are read together, so that few of them are held."""


@dataclass(frozen=True)
class Written:
    """The inputs that were written."""

    folder: Path
    images: int
    """Images that have a file."""
    bad: tuple[tuple[str, str], ...]
    """Path and reason of each that could not be read; there is no file for it."""
    has_labels: bool
    """Whether all lie in folders that are called as classes of the model."""
    replaced: bool
    """Whether the folder held earlier inputs."""


def unique_names(paths: Sequence[str]) -> list[str]:
    """Return a name for each image of a set: that of its file, with as many folders before it as tell all apart.

    The same images get the same names wherever their common folder lies.

    Raises:
        DataError: An image is given twice.
    """
    whole = list(map(_absolute, paths))
    if twice := [path for path, times in Counter(whole).items() if times > 1]:
        raise DataError(f"{twice[0]}: is given twice; give each image once")
    stems = [path.with_suffix("") for path in whole]
    for depth in range(1, max(len(path.parts) for path in whole)):
        for candidates in (stems, whole):
            names = ["_".join(path.parts[-depth:]) for path in candidates]
            if len({canonical(name).casefold() for name in names}) == len(names):
                return names
    # joined by _, all parts of two paths may be equal: a_b/c and a/b_c
    top = os.path.commonpath(whole)
    names = []
    for path in whole:
        digest = hashlib.blake2b(bytes(path.relative_to(top)), digest_size=8).hexdigest()
        names.append(f"{path.stem}-{digest}")
    return names


def _absolute(path: str) -> PurePath:
    return PurePath(printable(os.path.normpath(Path(path).absolute())))


def write_inputs(
    paths: Sequence[str],
    preprocess: Preprocess,
    classes: Sequence[str],
    folder: Path,
    on_image: Callable[[], None] = lambda: None,
) -> Written:
    """Write each image as the model is to see it: float32 (c, h, w), normalised, without a header, little endian.

    Args:
        paths: Paths of the images.
        preprocess: Preprocessing of the model.
        classes: Class names of the model; the images' folders may be called so.
        folder: Folder to write; it appears whole or not at all.
        on_image: Called after each image.

    Raises:
        CheckpointError: The folder cannot be written, or holds something else.
        DataError: An image is given twice.
    """
    names = unique_names(paths)
    option = "write_inputs" if names_flags() else "folder"
    advice = f"free space, or choose another folder with {write_option(option)}"
    whole = WholeFolder(folder, (INPUTS, NAMES, LABELS), advice)
    read = partial(_read, preprocess=preprocess)
    bad: list[tuple[str, str]] = []
    with whole.staged() as staging, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        with whole.refusal_told():
            (staging / INPUTS).mkdir()
        for begin in range(0, len(paths), AT_ONCE):
            part = slice(begin, begin + AT_ONCE)
            for name, path, view in zip(
                names[part], paths[part], pool.map(read, paths[part]), strict=True
            ):
                if isinstance(view, str):
                    bad.append((printable(path), view))
                else:
                    values = normalise(view[None], preprocess.mean, preprocess.std)[0]
                    with whole.refusal_told():
                        (staging / INPUTS / f"{name}.bin").write_bytes(
                            values.numpy().astype("<f4").tobytes()
                        )
                on_image()

        # Names and labels, of the images that have a file.
        unread = {path for path, _ in bad}
        kept = {}
        for name, path in zip(names, paths, strict=True):
            if printable(path) not in unread:
                kept[name] = path
        files = {NAMES: _to_json({name: printable(path) for name, path in kept.items()})}
        labels = _labels(list(kept.values()), classes)
        if labels is not None:
            files[LABELS] = _to_json(dict(zip(kept, labels, strict=True)))
        folder, replaced = whole.publish(files)
    return Written(folder, len(kept), tuple(bad), labels is not None, replaced)


def _read(path: str, preprocess: Preprocess) -> Tensor | str:
    """Return an image as the model is to see it, or why it cannot be read."""
    try:
        return preprocess.view(decode_quietly(read_image(path), preprocess.pixels))
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__


def _to_json(values: Mapping[str, object]) -> bytes:
    return (json.dumps(values, indent=1) + "\n").encode()


def _labels(paths: Sequence[str], classes: Sequence[str]) -> list[int] | None:
    """Return the class of each image by the folder that it lies in, None where one is called otherwise."""
    folders = [canonical(_absolute(path).parent.name) for path in paths]
    distinct = list(dict.fromkeys(folders))
    try:
        index = dict(zip(distinct, match_by_name(classes, distinct, "model"), strict=True))
    except DataError:
        return None
    return [index[folder] for folder in folders]


@dataclass(frozen=True)
class LogitFiles:
    """A folder with the logits of each image in a file, NAME_0.bin."""

    folder: Path
    names: tuple[str, ...]
    """Names of the images, in the order of the source."""
    num_classes: int
    bad: dict[int, str]
    """Index and reason of each image that has no logits, as it cannot be read."""

    @property
    def about(self) -> str:
        """The folder that the logits are read from, in a few words."""
        return f"answers in {printable(self.folder)}"

    def read(self, indices: Int64[Tensor, " b"]) -> Float[Tensor, "b k"]:
        """Return the logits of some images.

        Raises:
            DataError: A file has changed since they were found.
        """
        rows = []
        for index in indices.tolist():
            rows.append(self._read_one(self.folder / f"{self.names[index]}{ANSWER}"))
        return torch.from_numpy(np.array(rows, np.float32).reshape(-1, self.num_classes))

    def _read_one(self, path: Path) -> NDArray[np.float32]:
        size = 4 * self.num_classes
        where = write_option("answers", printable(path))
        try:
            with open_regular(path) as file:
                logits = file.read(size + 1)
        except OSError as error:
            raise DataError(f"{where}: cannot be read ({error.strerror})") from error
        if len(logits) != size:
            raise DataError(
                f"{where}: has changed while the answers were read; begin again when all are there"
            )
        return np.frombuffer(logits, "<f4")

    def batches(self, source: Source, rank: int, world: int) -> list[Batch]:
        """Return one process's share of the images, by number and without their pixels."""
        mine = range(rank, len(source), world)
        nothing = torch.empty(0, 0, 0, 0, dtype=torch.uint8)
        batches = []
        for begin in range(0, len(mine), AT_ONCE):
            part = mine[begin : begin + AT_ONCE]
            good, bad = [], []
            for index in part:
                if index in self.bad:
                    bad.append((source.name(index), self.bad[index]))
                else:
                    good.append(index)
            indices = torch.tensor(good, dtype=torch.int64)
            labels = torch.tensor(source.labels[indices.numpy()], dtype=torch.int64)
            batches.append(Batch(nothing, labels, indices, torch.zeros_like(indices), bad))
        return batches


def find_logits(folder: Path, source: Source, num_classes: int, wanted: PixelFormat) -> LogitFiles:
    """Find the logits of every image of a source.

    Args:
        folder: Folder with a file for each image, and no other.
        source: The images; their names are those that `write_inputs` gives the same images.
        num_classes: Number of the logits of an image.
        wanted: Pixels that the model reads; an image that cannot be read so needs no file.

    Raises:
        DataError: A file is missing, surplus, or of another size; or two images are one.
    """
    where = write_option("answers", printable(folder))
    try:
        with os.scandir(folder) as entries:
            sizes = {entry.name: _size_of_file(entry) for entry in entries}
    except OSError as error:
        raise DataError(
            f"{where}: cannot be read ({error.strerror}); give the folder of NAME{ANSWER} files"
        ) from error
    names = unique_names(list(map(source.name, range(len(source)))))
    expected = {f"{name}{ANSWER}": index for index, name in enumerate(names)}
    surplus = sorted(sizes.keys() - expected.keys())
    if surplus:
        raise DataError(
            f"{where}: {len(surplus):,} of its files answer no image of {source.description}, the "
            f"first is {printable(surplus[0])}; name the data that the inputs were written from, "
            "and remove other files"
        )
    missing = [index for file, index in expected.items() if file not in sizes]
    bad: dict[int, str] = {}
    for index in missing:
        reason = _why_unreadable(source, index, wanted)
        if reason is None:
            raise DataError(
                f"{where}: has no {names[index]}{ANSWER} for {source.name(index)}; "
                f"{len(missing):,} of {len(names):,} answers are missing"
            )
        bad[index] = reason
    for file, size in sizes.items():
        if size != 4 * num_classes:
            raise DataError(
                f"{where}: {printable(file)} has {size:,} bytes; the logits of {num_classes:,} "
                f"classes in float32 are {4 * num_classes:,}"
            )
    return LogitFiles(folder, tuple(names), num_classes, bad)


def _size_of_file(entry: os.DirEntry[str]) -> int:
    """Return the size of a file.

    Raises:
        OSError: It is a pipe, a device or a folder, or a link that leads nowhere.
    """
    if not entry.is_file():
        raise OSError(errno.EINVAL, f"{printable(entry.name)} is no regular file", entry.path)
    return entry.stat().st_size


def _why_unreadable(source: Source, index: int, wanted: PixelFormat) -> str | None:
    """Return why an image cannot be read, or None where it can."""
    try:
        source.image(index, wanted)
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None
