"""Read thousands of damaged images as evaluation and `vitrail check-data` do, and count what happens.

    uv run python benchmarks/malformed.py [--files 6000]

Each file is a photo that scikit-learn ships with bytes changed, cut, repeated or taken from elsewhere. Every format is
tried in a process of its own. A count is wrong where images read and images refused are not all there are, or where
evaluation and check disagree about any of them.
"""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
from mutations import damaged
from PIL import Image
from side_by_side import publish
from sklearn.datasets import load_sample_images

from vitrail.config.sections import DataSection
from vitrail.data.audit.scan import check_images
from vitrail.data.loader import build_eval_loader
from vitrail.data.opening import open_manifest, open_split
from vitrail.display import Quiet
from vitrail.images.preprocess import Preprocess

FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "TIFF": "tif", "BMP": "bmp", "NPY": "npy"}
SIZES = ((160, 107), (64, 48))


def originals(form: str) -> list[bytes]:
    """Return real photos in a format, of two sizes."""
    photos: Any = load_sample_images()
    found = []
    for pixels in photos.images:
        for size in SIZES:
            buffer, image = io.BytesIO(), Image.fromarray(pixels).resize(size)
            np.save(buffer, np.asarray(image)) if form == "NPY" else image.save(buffer, form)
            found.append(buffer.getvalue())
    return found


def attack(form: str, files: int) -> dict[str, Any]:
    """Write so many damaged images of a format and read them in both ways."""
    draw, photos = random.Random(form), originals(form)
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        for name in ("a", "b"):
            (root / name).mkdir()
        for number in range(files):
            data = damaged(draw.choice(photos), draw)
            (root / "ab"[number % 2] / f"{number:06d}.{FORMATS[form]}").write_bytes(data)
        section = DataSection(root=place)
        source, _ = open_split(section, "all")
        loader = build_eval_loader(source, Preprocess(size=(64, 64)), batch_size=7, workers=0)
        read, refused, slowest, started = 0, set(), 0.0, time.perf_counter()
        for batch in loader:
            read += len(batch.labels)
            refused |= {name for name, _ in batch.bad}
            slowest, started = max(slowest, time.perf_counter() - started), time.perf_counter()
        manifest = check_images(open_manifest(section)[0], root / "manifest", Quiet(), workers=0)
        unreadable = {str(manifest.path(index)) for index in manifest.unreadable.nonzero()[0].tolist()}
    return {
        "files": files,
        "read": read,
        "refused": len(refused),
        "wrong": abs(files - read - len(refused)) + len(refused ^ unreadable),
        "slowest": slowest,
    }


def main(files: int = 6000, form: str | None = None) -> None:
    """Print a table and write it beside this file."""
    if form is not None:
        print(json.dumps(attack(form, files)))
        return
    table = ["| format | files | read all the same | refused | wrong counts | processes lost | slowest batch, s |"]
    table.append("|-|-:|-:|-:|-:|-:|-:|")
    for name in FORMATS:
        words = [sys.executable, __file__, "--files", str(files // len(FORMATS)), "--form", name]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            table.append(f"| {name} | {files // len(FORMATS):,} | | | | 1 ({done.returncode}) | |")
            print(done.stderr, file=sys.stderr)
            continue
        found = json.loads(done.stdout)
        counts = (found["files"], found["read"], found["refused"], found["wrong"], 0)
        table.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} | {found['slowest']:.2f} |")
    notes = [
        "seeds are the formats' names; batches of 7 images",
        "a changed value of a pixel is no damage a reader can see",
    ]
    publish("malformed", "Damaged images", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
