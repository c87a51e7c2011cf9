"""Folders of small images, written and opened as data sets."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.config.sections import DataSection
from vitrail.data import opening as vitrail_data
from vitrail.errors import ConfigError, DataError


def open_data(name, root, **settings):
    return vitrail_data.open_data(DataSection(name=name, root=None if root is None else str(root), **settings))


def open_split(name, root, split, **settings):
    return vitrail_data.open_split(DataSection(name=name, root=None if root is None else str(root), **settings), split)


def write_images(root: Path, *paths: str) -> Path:
    """Write a small image of its own colour under each path."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        form = {".tif": "TIFF", ".jpg": "JPEG"}.get(Path(path).suffix.lower(), "PNG")
        Image.new("RGB", (12 + number % 5, 10), (number * 37 % 256, number * 11 % 256, 99)).save(root / path, form)
    return root


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def opened(root: Path | None, **options):
    return open_data(None, root, **options)


def message(root: Path | None, name: str | None = None, **options) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        open_data(name, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_fashion_mnist(root: Path, train: int, test: int) -> None:
    """Write the files of Fashion-MNIST with so many images, of one class after the other."""
    raw = root / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        pixels = np.arange(n * 28 * 28, dtype=np.uint32).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + pixels.tobytes())
        labels = bytes(number % 10 for number in range(n))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + labels)
