"""The folder of images that several tests of data sets start from."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.image_folders import write_images


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a root with 3 classes, 8 training and 4 validation images each."""
    train = [f"train/{name}/{i}.jpg" for name in ("ant", "bee", "cat") for i in range(8)]
    return write_images(
        tmp_path / "set", *train, *[f"val/{name}/{i}.png" for name in ("ant", "bee", "cat") for i in range(4)]
    )
