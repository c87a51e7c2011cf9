"""Loader workers share the list of the images, epoch after epoch."""

import random
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitrail.data.loader import build_train_loader
from vitrail.data.paths import Paths
from vitrail.data.sampling import BatchSampler, Shuffle
from vitrail.data.sources import FileSource
from vitrail.images.pixels import RGB
from vitrail.images.train_view import TrainView

IMAGES, EPOCHS, STEPS = 400_000, 3, 5
NAMES = [b"a/0.png", b"b/1.png"]


class Listed(Paths):
    """Names as a list of objects, whose reference counts are written where they are read."""

    def __init__(self, names: list[bytes]) -> None:
        self.__dict__["names"] = names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> bytes:
        return self.names[index]


def own_memory_mb(process: int) -> float:
    """Return what a process has written since it was forked."""
    (kilobytes,) = re.findall(r"Private_Dirty: +(\d+) kB", Path(f"/proc/{process}/smaps_rollup").read_text())
    return int(kilobytes) / 1024


def growth_mb(folder: Path, paths: Paths) -> float:
    """Return how much memory of their own two workers take from the first epoch to the last."""
    source = FileSource(folder, paths, np.resize(np.array([0, 1], np.int32), IMAGES), ("a", "b"), "many images")
    sampler = BatchSampler(Shuffle(IMAGES, seed=0), 256)
    loader = build_train_loader(source, TrainView(size=(8, 8)), RGB, sampler, seed=0, workers=2)
    seen = []
    for epoch in range(EPOCHS):
        sampler.epoch, sampler.first_step = epoch, sampler.steps - STEPS
        for _ in loader:
            pass
        seen.append(sum(own_memory_mb(worker.pid) for worker in loader._iterator._workers))
    return seen[-1] - seen[0]


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_share_the_names_of_many_images(tmp_path: Path) -> None:
    for name in NAMES:
        path = tmp_path / name.decode()
        path.parent.mkdir()
        Image.new("RGB", (8, 8)).save(path)
    assert growth_mb(tmp_path, Paths.of(NAMES * (IMAGES // 2))) < 2
    names = [bytes(bytearray(name)) for name in NAMES * (IMAGES // 2)]  # each an object
    random.Random(0).shuffle(names)
    assert growth_mb(tmp_path, Listed(names)) > 4  # what is not shared is seen
