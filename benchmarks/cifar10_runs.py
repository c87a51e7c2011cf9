"""What benchmarks share that compare trainings on CIFAR-10 by its test images."""

from __future__ import annotations

import itertools
import statistics
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def unpack(archive: Path, work: Path) -> Path:
    """Lay out the images in the work folder, unless they are there, and return their folder."""
    folder = work / "images"
    if not folder.exists():
        # whole at once, as another process may share the work folder
        with tempfile.TemporaryDirectory(dir=work) as part, tarfile.open(archive) as tar:
            tar.extractall(part, filter="data")
            with suppress(OSError):  # the other was first
                Path(part).rename(folder)
            Path(part).mkdir(exist_ok=True)  # for the end of the block to remove
    return folder


def place(work: Path, images: Path) -> dict[str, Any]:
    """Return the settings of all runs: which images, and where runs go."""
    return {
        "data.name": None,
        "data.root": images,
        "data.val_split": "test",
        "data.workers": 0,
        "output.root": work / "runs",
    }


def time_epoch(rows: Sequence[Mapping[str, Any]]) -> float:
    """Return the median seconds of the epochs of a run but the last, which has the evaluation; of one epoch, those."""
    ends = [0.0, *(row["elapsed_s"] for row in rows[:-1] or rows)]
    return statistics.median(b - a for a, b in itertools.pairwise(ends))
