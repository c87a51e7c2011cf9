"""Which images, which labels and in which order: folders and named sets, sampling, loaders.

What is read past (hidden folders, files that are no images) or decided for the user (a held-out part) is never silent:
every source carries notes for the caller to show.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from vitrail.errors import ConfigError, DataError, closest
from vitrail.transforms import Exif, Preprocess, TrainView, UnreadableImage, decode, sample_key

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"))
SPLIT_WORDS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing"))
MAX_WORKERS = 8  # for each process: beyond, decoding on one machine gains little and memory is lost
IN_MEMORY_IMAGES = 10_000

BadFiles = Literal["error", "skip"]
SampleKey = tuple[int, int, int]
"""Epoch, index of the image, and which copy of it."""


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

    def image(self, index: int, exif: Exif) -> UInt8[Tensor, "3 h w"]:
        """Read an image; raises UnreadableImage or OSError."""
        ...

    def identities(self) -> list[bytes]:
        """Return what tells the images apart wherever the set lies, to divide it by."""
        ...

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> Source:
        """Return a part of the images."""
        ...

    def example(self, folder: Path) -> str:
        """Return the path of an image file to try a model on, written to `folder` where the set has no files."""
        ...


@dataclass(frozen=True, eq=False)
class FileSource:
    """Image files below one folder. Paths are one array: workers share it, where they would copy a list of strings."""

    folder: Path
    paths: NDArray[Any]
    """Relative to the folder, as the file system spells them."""
    labels: NDArray[np.int32]
    classes: tuple[str, ...]
    description: str
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Return where an image is."""
        return self.folder / os.fsdecode(self.paths[index])

    def name(self, index: int) -> str:
        """Return the path, with bytes that are no text escaped."""
        return printable(self.path(index))

    def image(self, index: int, exif: Exif) -> UInt8[Tensor, "3 h w"]:
        """Read and decode a file."""
        return decode(self.path(index).read_bytes(), exif)

    def identities(self) -> list[bytes]:
        """Return the relative paths."""
        return self.paths.tolist()

    def take(self, chosen: NDArray[np.bool_], description: str, notes: tuple[str, ...]) -> FileSource:
        """Return a part of the files."""
        return FileSource(self.folder, self.paths[chosen], self.labels[chosen], self.classes, description, notes)

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

    def __len__(self) -> int:
        return len(self.images)

    def name(self, index: int) -> str:
        """Return set and number, such as digits/0007."""
        return str(self.names[index])

    def image(self, index: int, exif: Exif) -> UInt8[Tensor, "3 h w"]:
        """Copy out an image; there is no EXIF."""
        pixels = self.images[index]
        array = np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels.copy()
        return torch.from_numpy(array).permute(2, 0, 1)

    def identities(self) -> list[bytes]:
        """Return the names."""
        return [name.encode() for name in self.names.tolist()]

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


@dataclass(frozen=True)
class Data:
    """What a training run reads."""

    train: Source
    val: Source

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels, the same in both parts."""
        return self.train.classes

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know, each once."""
        return tuple(dict.fromkeys(self.train.notes + self.val.notes))


def open_data(
    name: str | None,
    root: str | Path | None,
    *,
    train_split: str = "train",
    val_split: str | None = "val",
    val_fraction: float = 0.2,
    download: bool = False,
) -> Data:
    """Find the training and validation images of a folder or a named set.

    Args:
        name: A named set, or None to read folders.
        root: Folder with `train_split` and `val_split`, or with class folders directly, of which a part is then held
            out; for a named set, where its files lie.
        train_split: Name of the folder to train on.
        val_split: Name of the folder to validate on; None holds out a part of the training folder.
        val_fraction: Share of each class that is held out, chosen by a hash of the file names.
        download: Fetch a named set that is not there.

    Raises:
        ConfigError: Unknown name, or settings at odds.
        DataError: Folders that are not as they should be; a set that is missing or cannot be fetched.
    """
    root = _check_settings(name, root, val_fraction)
    if name is not None:
        train, val = _open_named(name, root, download)
        return Data(train, val) if val is not None else Data(*_divide(train, val_fraction))
    assert root is not None
    train_folder, val_folder = _find_splits(root, train_split, val_split)
    if train_folder is None:
        raise DataError(
            f"data.root {root}: has {val_split}/ but no {train_split}/ to train on; set data.train_split to one of its "
            f"folders: {_few(_visible_folders(root))}"
        )
    train = _note_hidden(root, _scan(train_folder))
    if len(train.classes) == 1:
        raise DataError(_one_class(root, train_folder, train.classes[0], train_split))
    if val_folder is None:
        return Data(*_divide(train, val_fraction))
    val = _scan(val_folder)
    missing = [c for c in train.classes if c not in set(val.classes)]
    extra = [c for c in val.classes if c not in set(train.classes)]
    if missing or extra:
        wrong = [f"missing from {val_split}/: {_few(missing)}"] * bool(missing)
        wrong += [f"only in {val_split}/: {_few(extra)}"] * bool(extra)
        raise DataError(
            f"data.root {root}: {val_split}/ has other classes than {train_split}/ ({'; '.join(wrong)}); give both the "
            "same class folders, or set data.val_split=null to hold out a part of the training images"
        )
    return Data(train, val)


def open_split(
    name: str | None,
    root: str | Path | None,
    split: Literal["train", "val", "all"],
    *,
    train_split: str = "train",
    val_split: str | None = "val",
    val_fraction: float = 0.2,
    download: bool = False,
) -> tuple[Source, tuple[str, ...]]:
    """Find one part of a folder or a named set, with its notes: the same images as `open_data` gives.

    Args:
        name: As for `open_data`, like all the rest.
        root: A folder that has `val_split` alone will do for split "val".
        split: "all" is for class folders that are not divided into splits.
        train_split: Name of the folder to train on.
        val_split: Name of the folder to validate on.
        val_fraction: Share of each class that is held out.
        download: Fetch a named set that is not there.
    """
    root = _check_settings(name, root, val_fraction)
    if name is not None:
        train, val = _open_named(name, root, download)
        if split == "all" and val is not None:
            raise ConfigError(f"evaluate.split all: {name} has a training and a test part; choose train or val")
    else:
        assert root is not None
        train_folder, val_folder = _find_splits(root, train_split, val_split)
        if split == "all" and root not in (train_folder, val_folder):
            raise ConfigError(f"evaluate.split all: {root} is divided into splits; choose train or val")
        if split == "val" and val_folder is not None:
            val = _note_hidden(root, _scan(val_folder))
            return val, val.notes
        if train_folder is None:
            raise DataError(f"data.root {root}: has no {train_split}/; its folders: {_few(_visible_folders(root))}")
        train, val = _note_hidden(root, _scan(train_folder)), None
        if split == "train" and val_folder is not None:
            return train, train.notes
    if split == "all":
        return train, train.notes
    train, val = (train, val) if val is not None else _divide(train, val_fraction)
    chosen = train if split == "train" else val
    return chosen, chosen.notes


def _check_settings(name: str | None, root: str | Path | None, val_fraction: float) -> Path | None:
    if not 0 < val_fraction < 1:
        raise ConfigError(f"data.val_fraction is {val_fraction}; it must be above 0 and below 1")
    if name is not None and name not in NAMED_SETS:
        known = ", ".join(NAMED_SETS)
        raise ConfigError(f"data.name {name!r}: unknown{closest(name, NAMED_SETS)}; known sets: {known}")
    if name == "digits" and root is not None:
        raise ConfigError(
            f"data.root {root}: data.name is digits, which comes with scikit-learn and has no folder; for your own "
            "images add data.name=null, or name another recipe"
        )
    if name is None and root is None:
        raise ConfigError("data.root is not set; give the folder with your images, or data.name=digits")
    if name not in (None, "digits") and root is None:
        raise ConfigError(
            f"data.root is not set; give the folder where {name} lies or, with data.download=true, will lie"
        )
    return None if root is None else Path(root).expanduser()


# Folders


def _find_splits(root: Path, train_split: str, val_split: str | None) -> tuple[Path | None, Path | None]:
    """Return the training and the validation folder; class folders directly in the root make it the training folder."""
    folders = _visible_folders(root)
    train = root / train_split if train_split in folders else None
    val = root / val_split if val_split in folders else None
    if train is None and val is None:
        splits = [f for f in folders if f.lower() in SPLIT_WORDS and _visible_folders(root / f)]
        if splits:
            settings = " ".join(f"data.{key}_split={f}" for key, f in zip(("train", "val"), splits, strict=False))
            raise DataError(
                f"data.root {root}: has no {train_split}/, and {_few(splits)} look like splits rather than classes; "
                f"set them, such as {settings}"
            )
        return root, None
    if val is None and val_split is not None:
        others = [f for f in folders if f != train_split]
        beside = f", only {_few(others)}; set data.val_split to one of them" if others else ""
        raise DataError(
            f"data.root {root}: has {train_split}/ but no {val_split}/{beside}{', or' if others else '; set'} "
            f"data.val_split=null to hold out data.val_fraction of {train_split}/"
        )
    return train, val


def _visible_folders(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    except FileNotFoundError:
        names = [path.name for path in root.parent.iterdir()] if root.parent.is_dir() else []
        near = closest(root.name, names, alike=0.75)
        raise DataError(
            f"data.root {root}: no such folder{near or '; set it to the folder with your images'}"
        ) from None
    except NotADirectoryError:
        raise DataError(
            f"data.root {root}: is a file; give a folder with train/<class>/ and val/<class>/, unpacked if it is an "
            "archive"
        ) from None
    except OSError as error:
        raise DataError(f"data.root {root}: cannot be read ({error.strerror})") from error


def is_hidden(name: str) -> bool:
    """Say whether a file or folder is the system's or a tool's own, not the user's."""
    return name.startswith(".") or name == "__MACOSX"


@dataclass
class _Ignored:
    """What a scan read past."""

    hidden: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)

    def notes(self, folder: Path) -> tuple[str, ...]:
        """Say it, each kind with a count and examples."""
        found = []
        if self.hidden:
            found.append(f"{folder}: ignored {len(self.hidden)} hidden files or folders: {_few(self.hidden, 10)}")
        if self.others:
            found.append(f"{folder}: ignored {len(self.others)} files that are not images: {_few(self.others)}")
        if self.loose:
            found.append(f"{folder}: ignored {len(self.loose)} images outside the class folders: {_few(self.loose)}")
        return tuple(found)


def _scan(folder: Path) -> FileSource:
    """List the images of each class folder, deep folders included, in the order of their names."""
    ignored = _Ignored()
    try:
        top = _sorted_entries(folder)
        loose, classes = [], []
        for entry in top:
            if is_hidden(entry.name):
                ignored.hidden.append(entry.name)
            elif entry.is_dir():
                classes.append(entry.name)
            else:
                (loose if is_image(entry.name) else ignored.others).append(entry.name)
        ignored.loose += [] if not classes else loose
        found = [_images_below(str(folder), name, ignored, ()) for name in classes]
    except OSError as error:
        raise DataError(f"data.root {printable(folder)}: cannot be read ({error})") from error
    empty = [name for name, paths in zip(classes, found, strict=True) if not paths]
    if not classes or len(empty) == len(classes):
        raise DataError(_no_images(folder, classes, loose, ignored))
    if empty:
        raise DataError(
            f"data.root {folder}: {len(empty)} of {len(classes)} class folders have no images ({_few(empty)}); "
            "add images to them, or remove them"
        )
    return FileSource(
        folder=folder,
        paths=np.concatenate([np.array(paths, dtype=np.bytes_) for paths in found]),
        labels=np.repeat(np.arange(len(classes), dtype=np.int32), [len(paths) for paths in found]),
        classes=tuple(printable(name) for name in classes),
        description=printable(folder),
        notes=ignored.notes(folder),
    )


def _note_hidden(root: Path, source: FileSource) -> FileSource:
    """Add a note of what is hidden beside the splits."""
    if source.folder == root:
        return source  # its own scan has seen them
    hidden = [entry.name for entry in os.scandir(root) if is_hidden(entry.name)]
    return replace(source, notes=(*_Ignored(hidden=hidden).notes(root), *source.notes))


def _images_below(folder: str, relative: str, ignored: _Ignored, inside: tuple[tuple[int, int], ...]) -> list[bytes]:
    here = os.path.join(folder, relative)
    status = Path(here).stat()
    identity = (status.st_dev, status.st_ino)
    if identity in inside:
        raise DataError(f"data.root {here}: is a link to a folder that contains it; remove the link")
    images = []
    for entry in _sorted_entries(here):
        path = os.path.join(relative, entry.name)
        if is_hidden(entry.name):
            ignored.hidden.append(path)
        elif entry.is_dir():
            images += _images_below(folder, path, ignored, (*inside, identity))
        elif is_image(entry.name):
            images.append(os.fsencode(path))
        else:
            ignored.others.append(path)
    return images


def _sorted_entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: entry.name)


def is_image(name: str) -> bool:
    """Say whether a file's name ends as images do; what is in it is found only when it is read."""
    return name[name.rfind(".") :].lower() in EXTENSIONS


def _no_images(folder: Path, classes: list[str], loose: list[str], ignored: _Ignored) -> str:
    where = f"data.root {folder}"
    if loose:
        return (
            f"{where}: its {len(loose)} images lie in no class folder ({_few(loose)}); move each into a folder with "
            "the name of its class"
        )
    if classes:
        known = _few(EXTENSIONS, len(EXTENSIONS))
        return f"{where}: none of its {len(classes)} folders has images ({_few(classes)}); known are {known}"
    if ignored.hidden or ignored.others:
        what = ignored.hidden + ignored.others
        return f"{where}: has no class folders, only hidden files or files that are no images ({_few(what)})"
    return f"{where}: is empty; it should hold a folder of images for each class"


def _one_class(root: Path, folder: Path, name: str, train_split: str) -> str:
    inner = root / name
    if folder == root and train_split in _visible_folders(inner):
        return f"data.root {root}: holds only {name}/, which has the splits; set data.root={inner}"
    return f"data.root {folder}: has only one class, {name!r}; a classifier needs at least two class folders"


def _few(names: Sequence[str] | frozenset[str], most: int = 3) -> str:
    shown = [printable(name) for name in sorted(names)[:most]]
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def printable(path: str | Path) -> str:
    """Return a path with bytes that are no text escaped: they are surrogates, which no terminal or file would take."""
    return str(path).encode("utf-8", "backslashreplace").decode()


def _divide(source: Source, fraction: float) -> tuple[Source, Source]:
    """Hold out a share of each class for validation, chosen by a hash of the names, not by order or place."""
    rank = [hashlib.blake2b(identity, digest_size=8).digest() for identity in source.identities()]
    order = np.lexsort((np.array(rank, dtype="S8").view(">u8").reshape(-1), source.labels))
    counts = np.bincount(source.labels, minlength=len(source.classes))
    held_out = np.zeros(len(source), dtype=bool)
    for end, count in zip(np.cumsum(counts), counts, strict=True):
        start = end - count
        held_out[order[start : start + min(max(round(count * fraction), 1), count - 1)]] = True
    if not held_out.any():
        raise DataError(
            f"{source.description}: {len(source)} images of {len(source.classes)} classes are too few to hold some out "
            "for validation; add images, or give a folder for validation with data.val_split"
        )
    note = f"held out {held_out.sum()} of {len(source)} images, {fraction:.0%} of each class, for validation"
    notes = (*source.notes, note)
    single = [source.classes[label] for label in np.flatnonzero(counts == 1)]
    if single:
        notes += (f"{len(single)} classes have one image, which is trained on and not validated: {_few(single)}",)
    return (
        source.take(~held_out, f"{source.description}, all but the held-out part", notes),
        source.take(held_out, f"{source.description}, held-out part", notes),
    )


# Named sets


def _open_named(name: str, root: Path | None, download: bool) -> tuple[Source, Source | None]:
    """Return the training and the test part; None where the set is not divided."""
    if name == "digits":
        from sklearn.datasets import load_digits  # takes seconds to import, and only this set needs it

        digits: Any = load_digits()
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        classes = tuple(str(digit) for digit in digits.target_names)
        return PixelSource(name, pixels, digits.target.astype(np.int32), classes, _numbered(name, len(pixels))), None
    assert root is not None
    try:
        return NAMED_SETS[name](name, root, download)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if download:
            raise DataError(f"data.download: {name} could not be fetched into {root} ({reason})") from error
        raise DataError(
            f"data.root {root}: {name} is not there or not whole ({reason}); pass data.download=true"
        ) from error


def _open_pixels(name: str, root: Path, download: bool) -> tuple[Source, Source]:
    from torchvision import datasets  # takes seconds to import, and only these sets need it

    maker: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "fashion-mnist": datasets.FashionMNIST}[
        name
    ]
    return (
        _to_pixels(f"{name}/train", maker(root, train=True, download=download)),
        _to_pixels(f"{name}/test", maker(root, train=False, download=download)),
    )


def _to_pixels(set_name: str, dataset: Any) -> PixelSource:
    samples = [dataset[index] for index in range(len(dataset))]
    pixels = np.stack([np.asarray(image) for image, _ in samples])
    labels = np.array([label for _, label in samples], dtype=np.int32)
    return PixelSource(set_name, pixels, labels, tuple(dataset.classes), _numbered(set_name, len(pixels)))


def _numbered(set_name: str, n: int) -> NDArray[Any]:
    return np.array([f"{set_name}/{index:05d}" for index in range(n)])


def _open_pets(name: str, root: Path, download: bool) -> tuple[Source, Source]:
    from torchvision import datasets

    parts = []
    for split in ("trainval", "test"):
        classes = tuple(datasets.OxfordIIITPet(root, split=split, download=download).classes)
        folder = root / "oxford-iiit-pet"
        # its items come decoded, so labels are read from the list that torchvision itself reads
        rows = [line.split() for line in (folder / "annotations" / f"{split}.txt").read_text().splitlines()]
        paths = np.array([os.fsencode(f"images/{row[0]}.jpg") for row in rows])
        labels = np.array([int(row[1]) - 1 for row in rows], dtype=np.int32)
        parts.append(FileSource(folder, paths, labels, classes, f"{name}/{split}"))
    return parts[0], parts[1]


def _open_flowers(name: str, root: Path, download: bool) -> tuple[Source, Source]:
    from torchvision import datasets

    folder = root / "flowers-102"
    parts = []
    for splits in (("train", "val"), ("test",)):  # papers train on both halves of the 2,040 training images
        samples = []
        for split in splits:
            dataset = datasets.Flowers102(root, split=split, download=download, loader=os.fsencode)
            samples += [dataset[index] for index in range(len(dataset))]
        paths = np.array([os.path.relpath(path, os.fsencode(folder)) for path, _ in samples])
        labels = np.array([label for _, label in samples], dtype=np.int32)
        parts.append(FileSource(folder, paths, labels, tuple(datasets.Flowers102.classes), f"{name}/{splits[-1]}"))
    return parts[0], parts[1]


NAMED_SETS: dict[str, Callable[[str, Path, bool], tuple[Source, Source]] | Any] = {
    "digits": None,
    "cifar10": _open_pixels,
    "cifar100": _open_pixels,
    "fashion-mnist": _open_pixels,
    "oxford-pets": _open_pets,
    "flowers102": _open_flowers,
}


# Order


def epoch_order(n: int, seed: int, epoch: int, repeats: int = 1) -> NDArray[np.int64]:
    """Return (index, copy) of each of the n samples of an epoch.

    Args:
        n: Images.
        seed: Of the run.
        epoch: From 0.
        repeats: Copies of each image in a row (repeated augmentation, Hoffer et al. 2020). The epoch is cut to n
            samples, so that it stays as long and sees n / repeats of the images.
    """
    # Philox's raw stream is fixed for ever, NumPy's permutation is not
    raw = np.random.Philox(key=np.array([seed & (2**64 - 1), epoch], dtype=np.uint64)).random_raw(n)
    images = np.argsort(raw, kind="stable")[: -(-n // repeats)]
    order = np.stack([np.repeat(images, repeats), np.tile(np.arange(repeats), len(images))], axis=1)
    return order[:n]


class BatchSampler:
    """The training samples of one process, batch by batch; a pure function of its settings, `epoch` and `first_step`.

    The global batch of a step is a slice of the epoch's order, whatever the number of processes. It is cut into
    `accumulate` micro batches, and each of those is dealt out to the processes in turn, so that copies of an image
    part. The rest of an epoch that fills no global batch is left out; the next epoch's order is another.

    Args:
        n: Images.
        batch_size: Of one optimizer step, over all processes and micro batches.
        seed: Of the run.
        rank: This process.
        world: Number of processes.
        accumulate: Micro batches of a step.
        repeats: Copies of each image, see `epoch_order`.
    """

    def __init__(
        self,
        n: int,
        batch_size: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        accumulate: int = 1,
        repeats: int = 1,
    ) -> None:
        parts = world * accumulate
        if batch_size < 1 or batch_size % parts:
            below, above = batch_size // parts * parts, -(-max(batch_size, 1) // parts) * parts
            nearest = " or ".join(str(size) for size in sorted({below, above} - {0}))
            raise ConfigError(
                f"train.batch_size {batch_size} cannot be split over {world} processes x {accumulate} micro batches; "
                f"nearest: {nearest}"
            )
        if n < batch_size:
            raise ConfigError(
                f"train.batch_size {batch_size} is more than the {n} training images; set train.batch_size to at most "
                f"{n // parts * parts}"
                if n >= parts
                else f"train.batch_size {batch_size} is more than the {n} training images, too few for {parts} parts"
            )
        self.n, self.batch_size, self.seed, self.repeats = n, batch_size, seed, repeats
        self.rank, self.world, self.accumulate = rank, world, accumulate
        self.epoch = 0
        self.first_step = 0
        """Steps of the epoch that are already done."""

    @property
    def steps(self) -> int:
        """Optimizer steps of a whole epoch."""
        return self.n // self.batch_size

    def __len__(self) -> int:
        """Micro batches from `first_step` to the end of the epoch."""
        return (self.steps - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch
        order = epoch_order(self.n, self.seed, epoch, self.repeats)
        micro = self.batch_size // self.accumulate
        for start in range(self.first_step * self.batch_size, self.steps * self.batch_size, micro):
            dealt = order[start : start + micro][self.rank :: self.world]
            yield [(epoch, index, copy) for index, copy in dealt.tolist()]


# Loading


@dataclass(frozen=True, slots=True)
class Sample:
    """One image, or why there is none."""

    image: Tensor | None
    label: int
    index: int
    key: int
    bad: tuple[str, str] | None


class Batch(NamedTuple):
    """The readable images of a batch, which may be none; DataLoader pins it."""

    images: UInt8[Tensor, "b 3 h w"]
    labels: Int64[Tensor, " b"]
    indices: Int64[Tensor, " b"]
    """In the source."""
    keys: Int64[Tensor, " b"]
    """What random draws follow from; 0 in evaluation."""
    bad: list[tuple[str, str]]
    """Name of each unreadable image, and the reason."""


def _read(source: Source, index: int, key: int, exif: Exif, view: Callable[[Tensor], Tensor]) -> Sample:
    label = int(source.labels[index])
    try:
        return Sample(view(source.image(index, exif)), label, index, key, None)
    except UnreadableImage as error:
        return Sample(None, label, index, key, (source.name(index), str(error)))
    except OSError as error:
        return Sample(None, label, index, key, (source.name(index), error.strerror or type(error).__name__))


@dataclass(frozen=True)
class TrainImages(Dataset[Sample]):
    """Random views, addressed by (epoch, index, copy)."""

    source: Source
    view: TrainView
    exif: Exif
    seed: int

    def __getitem__(self, item: SampleKey) -> Sample:
        key = sample_key(self.seed, *item)
        return _read(self.source, item[1], key, self.exif, lambda image: self.view.view(image, key))


@dataclass(frozen=True)
class EvalImages(Dataset[Sample]):
    """Evaluation views, addressed by index."""

    source: Source
    preprocess: Preprocess

    def __getitem__(self, item: int) -> Sample:
        return _read(self.source, item, 0, self.preprocess.exif, self.preprocess.view)


@dataclass(frozen=True)
class _Collate:
    size: tuple[int, int]

    def __call__(self, samples: list[Sample]) -> Batch:
        good = [sample for sample in samples if sample.image is not None]
        # stacked as (h, w, 3), which is how views lie in memory; default_collate writes to shared memory in a worker
        images = [sample.image.permute(1, 2, 0) for sample in good if sample.image is not None]
        stacked = default_collate(images) if images else torch.empty((0, *self.size, 3), dtype=torch.uint8)
        return Batch(
            images=stacked.permute(0, 3, 1, 2),
            labels=torch.tensor([sample.label for sample in good], dtype=torch.int64),
            indices=torch.tensor([sample.index for sample in good], dtype=torch.int64),
            keys=torch.tensor([sample.key for sample in good], dtype=torch.int64),
            bad=[sample.bad for sample in samples if sample.bad is not None],
        )


class ImageLoader(DataLoader[Any]):
    """A DataLoader of `Batch` that stops at unreadable images, or leaves them in `bad`, as it is told."""

    def __init__(
        self, dataset: TrainImages | EvalImages, *, bad_files: BadFiles, workers: int | None, **options: Any
    ) -> None:
        workers = default_workers(dataset.source) if workers is None else workers
        super().__init__(
            dataset,
            num_workers=workers,
            persistent_workers=workers > 0,
            # its own generator: otherwise each epoch takes a number from the global state, and a resumed run differs
            generator=torch.Generator(),
            **options,
        )
        self.bad_files = bad_files

    def read(self, keys: Sequence[Any]) -> Batch:
        """Load one batch here and now."""
        batch = self.collate_fn([self.dataset[key] for key in keys])
        assert isinstance(batch, Batch)
        return batch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Yield batches.

        Raises:
            DataError: An image cannot be read and bad_files is "error". It is raised here, in the training process:
                what a worker raises arrives wrapped in its traceback.
        """
        for batch in super().__iter__():
            if batch.bad and self.bad_files == "error":
                name, reason = batch.bad[0]
                more = f" (and {len(batch.bad) - 1} more in this batch)" if len(batch.bad) > 1 else ""
                raise DataError(
                    f"{name}: cannot be read, {reason}{more}; repair or remove it, or set data.bad_files=skip to leave "
                    "such images out"
                )
            yield batch


def build_train_loader(
    source: Source,
    view: TrainView,
    exif: Exif,
    sampler: BatchSampler,
    *,
    seed: int,
    workers: int | None = None,
    bad_files: BadFiles = "skip",
    pin_memory: bool = False,
) -> ImageLoader:
    """Load random views in the sampler's order; the same batches for any number of workers.

    An unreadable image is left out of its batch, never replaced, so a batch may be smaller or empty.

    Args:
        source: The images.
        view: Draws from each image.
        exif: Whether EXIF orientation turns the image.
        sampler: Which images, in which order.
        seed: Of the views, with epoch, index and copy.
        workers: Processes that load; None is `default_workers`.
        bad_files: Whether an unreadable image is reported with its batch, or raises DataError.
        pin_memory: For a CUDA device.
    """
    assert sampler.n == len(source)
    return ImageLoader(
        TrainImages(source, view, exif, seed),
        bad_files=bad_files,
        workers=workers,
        batch_sampler=sampler,
        collate_fn=_Collate(view.size),
        pin_memory=pin_memory,
    )


def build_eval_loader(
    source: Source,
    preprocess: Preprocess,
    *,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int | None = None,
    bad_files: BadFiles = "skip",
    pin_memory: bool = False,
) -> ImageLoader:
    """Load every image once, in order, whole batches dealt out to the processes in turn: no padding.

    The batches are the same for any number of processes, so what is computed from them is too.
    """
    batches = [range(start, min(start + batch_size, len(source))) for start in range(0, len(source), batch_size)]
    return ImageLoader(
        EvalImages(source, preprocess),
        bad_files=bad_files,
        workers=workers,
        batch_sampler=batches[rank::world],
        collate_fn=_Collate(preprocess.size),
        pin_memory=pin_memory,
    )


def default_workers(source: Source) -> int:
    """Return how many loader workers a process should have: its share of the machine's cores, within reason."""
    if isinstance(source, PixelSource) and len(source) <= IN_MEMORY_IMAGES:
        return 0  # starting them would take longer than reading
    return max(1, min(MAX_WORKERS, usable_cores() // processes_here()))


def usable_cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes_here() -> int:
    """Return how many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun
