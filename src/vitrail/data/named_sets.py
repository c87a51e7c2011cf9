"""Public data sets by name (digits, CIFAR, Fashion-MNIST, Oxford pets, Flowers), from torchvision or scikit-learn."""

from __future__ import annotations

import os
from collections.abc import Callable
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
    try:
        return NAMED_SETS[name](name, root, download)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        if download:
            raise DataError(
                f"data.download: {name} could not be fetched into {root} ({reason})"
            ) from error
        raise DataError(
            f"data.root {root}: {name} is not there or not whole ({reason}); pass "
            "data.download=true"
        ) from error


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
