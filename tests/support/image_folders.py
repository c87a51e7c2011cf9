"""Folders of small images, written and opened as data sets."""

from __future__ import annotations

from pathlib import Path

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
