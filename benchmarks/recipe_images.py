"""The images and the recipe that benchmarks of the input pipeline share."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

POLICY = "rand-m9-mstd0.5-inc1"
SAMPLE = Path(__file__).parents[1].parent / "shared" / "data" / "imagenet-sample-400.tar"
BATCH, ERASE, COPIES, IN_MEMORY = 64, 0.25, 3, 128


def unpack(images: Path | None, scratch: Path) -> tuple[Path, str]:
    """Return a folder with COPIES class folders of the same images, so that a round lasts, and what they are."""
    first = scratch / "all" / "copy0"
    first.mkdir(parents=True)
    where = "generated: smooth noise, 500x375"
    if images is None:
        rng = np.random.default_rng(0)
        for number in range(400):
            coarse = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            photo = np.asarray(Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
            noisy = np.clip(photo + rng.normal(0, 12, photo.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(first / f"{number:04d}.jpg", quality=92)
    elif images.is_file():
        where = images.name
        with tarfile.open(images) as archive:
            archive.extractall(first, filter="data")
    else:
        where = images.name
        shutil.copytree(images, first, dirs_exist_ok=True)
    for number in range(1, COPIES):
        shutil.copytree(first, first.with_name(f"copy{number}"), copy_function=os.link)
    return first.parent, where
