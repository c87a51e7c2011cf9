"""Image files read per second from a folder and from its shards, in one run of alternating rounds.

    uv run python benchmarks/pack.py [--folder CLASS_FOLDERS]

Bytes only, nothing decoded, by one process and the clock: each image once in random order, as a training reads them,
and in their own, as an evaluation does. After the first round all files are in the system's cache, so this is the cost
of names and calls. What a disk adds depends on the disk: name a folder on it that is larger than the memory.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cyclopts
import numpy as np
from side_by_side import alternate, publish, speed_up

from vitrail.config.sections import DataSection
from vitrail.data.opening import open_split
from vitrail.data.pack import pack
from vitrail.data.sources import Source
from vitrail.display import Quiet

CLASSES, IMAGES = 100, 20_000
SIZES = {"4 KB": 4_000, "100 KB": 100_000}
"""As of thumbnails, and of ImageNet's files."""
MOST_BYTES = 1_000_000_000
SHARD = 100_000_000


def main(folder: Path | None = None, rounds: int = 7) -> None:
    """Measure, and write a page beside this file."""
    table = ["| files | order | where | images/s | lowest | highest | speed-up of shards |", "|-|-|-|-:|-:|-:|-:|"]
    notes = [f"medians of {rounds} alternating rounds, and of the ratio within a round"]
    with tempfile.TemporaryDirectory() as scratch:
        if folder is not None:
            table += measured(folder.name, folder, packed(folder, Path(scratch, "shards")), rounds)
        for name, size in SIZES.items() if folder is None else ():
            made = generate(Path(scratch, name), size)
            table += measured(name, made, packed(made, Path(scratch, f"{name} shards")), rounds)
    publish("pack", "Files of a folder and of its shards: images per second", notes, table)


def generate(folder: Path, size: int) -> Path:
    """Write class folders of files of one size; nobody decodes them."""
    content = os.urandom(size)
    for number in range(min(IMAGES, MOST_BYTES // size)):
        path = folder / f"class{number % CLASSES:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def packed(folder: Path, output: Path) -> Path:
    """Pack a folder without a look at its images."""
    return pack(DataSection(root=str(folder), check=False), output, SHARD, Quiet()).folder


def measured(name: str, folder: Path, shards: Path, rounds: int) -> list[str]:
    """Return the rows of one set of files."""
    sources = [open_split(DataSection(root=str(root)), "all")[0] for root in (folder, shards)]
    images = len(sources[0])
    orders = {"random": np.random.default_rng(0).permutation(images).tolist(), "their own": list(range(images))}
    subjects: dict[tuple[str, str], Callable[[], object]] = {
        (order, where): partial(read, source, numbers)
        for order, numbers in orders.items()
        for where, source in zip(("folder", "shards"), sources, strict=True)
    }
    seconds = alternate(subjects, rounds)
    lines = []
    for (order, where), values in seconds.items():
        rates = [images / value for value in values]
        gain = f"{speed_up(values, seconds[order, 'folder']):.2f}" if where == "shards" else ""
        lines.append(
            f"| {images:,} of {name} | {order} | {where} | {statistics.median(rates):,.0f} | {min(rates):,.0f} "
            f"| {max(rates):,.0f} | {gain} |"
        )
    return lines


def read(source: Source, numbers: list[int]) -> int:
    """Read files, and return their bytes."""
    return sum(len(source.encoded(number) or b"") for number in numbers)


if __name__ == "__main__":
    cyclopts.run(main)
