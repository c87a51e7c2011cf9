"""Public data sets by name (digits, CIFAR, Fashion-MNIST, Oxford pets, Flowers), from torchvision or scikit-learn."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.paths import Paths
from vitrail.data.sources import FileSource, PixelSource, Source
from vitrail.errors import DataError


def open_named(name: str, root: Path | None, download: bool) -> tuple[Source, Source | None]:
    """Return the training and the test split; None where the set has no test split.

    Raises:
        DataError: It is not there and not to be downloaded, or cannot be.
    """
    if name == "digits":
        return _open_digits(name), None
    assert root is not None
    where = root / FILES[name].folder
    new_folders = [folder for folder in (where, *where.parents) if not folder.exists()]
    try:
        return NAMED_SETS[name](name, root, download)
    except (OSError, RuntimeError) as error:
        reason = _explain(error)
        if not download:
            known = f" ({reason})" if "download=True" not in reason else ""
            raise DataError(
                f"data.root {root}: {name} is not there or not whole{known}; pass "
                "data.download=true"
            ) from error
        for folder in new_folders:
            with suppress(OSError):  # what came is kept
                folder.rmdir()
        said = f"data.download: {name} could not be fetched into {root} ({reason})"
        # what a server does has no number of the system's, unless the connection was lost
        is_remote = isinstance(error, RuntimeError | ConnectionError | TimeoutError)
        if is_remote or error.errno is None:
            said += f"; {_tell_by_hand(name, where)}"
        raise DataError(said) from error


def _explain(error: Exception) -> str:
    """Say as a clause why a set cannot be read or fetched, without the representations of Python."""
    text = " ".join(str(error).split())
    text = re.sub(r"<urlopen error (.*?)>", r"\1", text)
    return re.sub(r"\[Errno -?\d+\] ", "", text).rstrip(".") or type(error).__name__


def _tell_by_hand(name: str, where: Path) -> str:
    """Say which files of a set to fetch by hand, from which address, into which folder."""
    addresses = FILES[name].addresses()
    *first, last = [address.rpartition("/")[2] for address in addresses]
    files = f"{', '.join(first)} and {last}" if first else last
    return (
        f"without a network, fetch {files} from {addresses[0].rpartition('/')[0]}/ elsewhere, put "
        f"{'them' if first else 'it'} into {where} as {'they are' if first else 'it is'}, and run "
        "this again, which unpacks"
    )


def _open_digits(name: str) -> PixelSource:
    from sklearn.datasets import load_digits  # takes seconds to import, and only this set needs it

    digits: Any = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    classes = tuple(map(str, digits.target_names))
    return PixelSource(
        name, pixels, digits.target.astype(np.int32), classes, _number_names(name, len(pixels))
    )


def _open_pixels(name: str, root: Path, download: bool) -> tuple[Source, Source]:
    from torchvision import datasets  # takes seconds to import, and only these sets need it

    makers = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "fashion-mnist": datasets.FashionMNIST,
    }
    maker: Any = makers[name]
    return (
        _to_pixels(f"{name}/train", maker(root, train=True, download=download)),
        _to_pixels(f"{name}/test", maker(root, train=False, download=download)),
    )


def _to_pixels(set_name: str, dataset: Any) -> PixelSource:
    images, labels = _read_samples(dataset)
    pixels = np.stack(list(map(np.asarray, images)))
    return PixelSource(
        set_name,
        pixels,
        np.array(labels, np.int32),
        tuple(dataset.classes),
        _number_names(set_name, len(pixels)),
    )


def _read_samples(dataset: Any) -> tuple[list[Any], list[int]]:
    """Return the images of a set of torchvision, as its loader gives them, and their labels."""
    images, labels = [], []
    for index in range(len(dataset)):
        image, label = dataset[index]
        images.append(image)
        labels.append(label)
    return images, labels


def _number_names(set_name: str, n: int) -> NDArray[Any]:
    return np.array([f"{set_name}/{index:05d}" for index in range(n)])


def _open_pets(name: str, root: Path, download: bool) -> tuple[Source, Source]:
    from torchvision import datasets

    parts = []
    for split in ("trainval", "test"):
        classes = tuple(datasets.OxfordIIITPet(root, split=split, download=download).classes)
        folder = root / "oxford-iiit-pet"
        # its items come decoded, so labels are read from the list that torchvision itself reads
        list_file = folder / "annotations" / f"{split}.txt"
        paths, labels = [], []
        for line in list_file.read_text().splitlines():
            image, number, *_ = line.split()
            paths.append(os.fsencode(f"images/{image}.jpg"))
            labels.append(int(number) - 1)
        parts.append(
            FileSource(
                folder, Paths.of(paths), np.array(labels, np.int32), classes, f"{name}/{split}"
            )
        )
    return parts[0], parts[1]


def _open_flowers(name: str, root: Path, download: bool) -> tuple[Source, Source]:
    from torchvision import datasets

    folder = root / "flowers-102"
    parts = []
    # papers train on both halves of the 2,040 training images
    for splits in (("train", "val"), ("test",)):
        files, labels = [], []
        for split in splits:
            dataset = datasets.Flowers102(root, split=split, download=download, loader=os.fsencode)
            files_of_split, labels_of_split = _read_samples(dataset)
            files += files_of_split
            labels += labels_of_split
        parts.append(
            FileSource(
                folder,
                Paths.of(os.path.relpath(file, os.fsencode(folder)) for file in files),
                np.array(labels, np.int32),
                tuple(datasets.Flowers102.classes),
                f"{name}/{splits[-1]}",
            )
        )
    return parts[0], parts[1]


NAMED_SETS: dict[str, Callable[[str, Path, bool], tuple[Source, Source]] | Any] = {
    "digits": None,
    "cifar10": _open_pixels,
    "cifar100": _open_pixels,
    "fashion-mnist": _open_pixels,
    "oxford-pets": _open_pets,
    "flowers102": _open_flowers,
}
"""The function that opens each set; digits, which has no folder and no test split, is opened
apart."""


@dataclass(frozen=True)
class Files:
    """The files that a set is downloaded as, as torchvision knows them."""

    folder: str
    """Folder below data.root in which torchvision looks for them."""
    addresses: Callable[[], list[str]]
    """Returns their addresses, all in one folder of one server."""


def _find_pixel_files(name: str) -> list[str]:
    from torchvision import datasets

    if name == "fashion-mnist":
        fashion = datasets.FashionMNIST
        return [fashion.mirrors[0] + file for file, _ in fashion.resources]
    return [{"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name].url]


def _find_pets_files() -> list[str]:
    from torchvision import datasets

    return [address for address, _ in datasets.OxfordIIITPet._RESOURCES]


def _find_flowers_files() -> list[str]:
    from torchvision import datasets

    flowers = datasets.Flowers102
    return [flowers._download_url_prefix + file for file, _ in flowers._file_dict.values()]


FILES = {
    "cifar10": Files("", partial(_find_pixel_files, "cifar10")),
    "cifar100": Files("", partial(_find_pixel_files, "cifar100")),
    "fashion-mnist": Files("FashionMNIST/raw", partial(_find_pixel_files, "fashion-mnist")),
    "oxford-pets": Files("oxford-iiit-pet", _find_pets_files),
    "flowers102": Files("flowers-102", _find_flowers_files),
}
"""The files of each set that is downloaded."""
