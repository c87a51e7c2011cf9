"""Look through many small files with `vitrail check-data`: the first time, again, and after a few have changed.

    uv run python benchmarks/check_data.py [--images 100000]

Each file is a JPEG of 32 px, unlike the others, in one of 100 class folders. Memory is the most that the main process
held; a tenth of the files beside all of them shows what an image adds to it.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cyclopts
import numpy as np
from PIL import Image
from side_by_side import publish

CLASSES, CHANGED = 100, 100
TELL = """
import atexit, re, sys
from pathlib import Path
told = Path(sys.argv.pop())
most = re.compile("VmHWM:[^0-9]*([0-9]+)")
atexit.register(lambda: told.write_text(most.search(Path("/proc/self/status").read_text())[1]))
"""
PLAIN = """
from PIL import Image
for path in sorted(Path(sys.argv[1]).rglob("*.jpg")):
    Image.open(path).convert("RGB").load()
"""
CHECK = "from vitrail.__main__ import run; run()"


def main(images: int = 100_000) -> None:
    """Measure, and write a page beside this file."""
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        few, many = scratch / "few", scratch / "many"
        write(few, images // 10)
        write(many, images)
        table = ["| | images | seconds | images/s | MiB at most |", "|-|-:|-:|-:|-:|"]

        def row(what: str, count: int, spent: tuple[float, float]) -> None:
            table.append(f"| {what} | {count:,} | {spent[0]:.1f} | {count / spent[0]:,.0f} | {spent[1]:,.0f} |")

        row("Pillow decodes them, one process", images, measured(PLAIN, scratch, many))
        least = check(few, scratch)
        row("check-data, the first time", images // 10, least)
        most = check(many, scratch)
        row("check-data, the first time", images, most)
        row("check-data again, nothing changed", images, check(many, scratch))
        for number in range(CHANGED):
            path(many, number).write_bytes(jpeg(images + number))
        row(f"check-data again, {CHANGED} changed", images, check(many, scratch))
        (manifest,) = [file for file in (scratch / "cache").rglob("*.safetensors") if file.stat().st_size > 60 * images]
        notes = [
            f"{images:,} files in {CLASSES} folders; near copies are looked for in every run",
            f"an image adds {2**20 * (most[1] - least[1]) / (images - images // 10):,.0f} bytes to the main process, "
            f"and {manifest.stat().st_size / images:.0f} bytes to the manifest, its name included",
        ]
        publish("check_data", "check-data on many small files", notes, table)


def path(root: Path, number: int) -> Path:
    """Return where an image lies."""
    return root / f"class{number % CLASSES:03d}" / f"{number:07d}.jpg"


def jpeg(number: int) -> bytes:
    """Return a small picture that no other number has."""
    coarse = np.random.default_rng(number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((32, 32)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(root: Path, images: int) -> None:
    """Write so many files."""
    for number in range(images):
        where = path(root, number)
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(jpeg(number))


def check(root: Path, scratch: Path) -> tuple[float, float]:
    """Return the seconds and MiB of `vitrail check-data`."""
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache")
    output = scratch / f"out{time.monotonic_ns()}"
    return measured(CHECK, scratch, "check-data", f"data.root={root}", "--output", output)


def measured(program: str, scratch: Path, *words: object) -> tuple[float, float]:
    """Run a program, and return its seconds and the most MiB that it held."""
    told, begun = scratch / "most", time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", TELL + program, *map(str, words), told], check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - begun, int(told.read_text()) / 1024


if __name__ == "__main__":
    cyclopts.run(main)
