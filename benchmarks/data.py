"""Images per second of the input pipeline against timm's, in one run of alternating rounds.

    uv run python benchmarks/data.py [--images FOLDER_OR_TAR] [--rounds 7]

One core, by CPU time: decoding; decoding and the light view (crop, mirror); decoding and the full view
(rand-m9-mstd0.5-inc1) with erasing; float batches out. Whole loader, by the clock: 2 workers, batch 64, 224 px, float
batches that are read once, as training would; timm's create_loader without and with its prefetcher.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import platform
import re
import shutil
import statistics
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from timm.data.transforms_factory import create_transform

from vitrail.augment import erase
from vitrail.data import Batch, BatchSampler, Source, build_train_loader, open_split
from vitrail.models.registry import IMAGENET_MEAN, IMAGENET_STD
from vitrail.transforms import DECODER, TrainView, decode, normalise, sample_key

POLICY = "rand-m9-mstd0.5-inc1"
SAMPLE = Path(__file__).parents[1].parent / "shared" / "data" / "imagenet-sample-400.tar"
BATCH, WORKERS, ERASE, COPIES = 64, 2, 0.25, 3


def main() -> None:
    """Measure, show and write the results."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, default=SAMPLE if SAMPLE.exists() else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--month", default=time.strftime("%Y-%m"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder, where = unpack(options.images, Path(scratch))
        source, _ = open_split(None, folder, "all")
        paths = [Path(source.name(index)) for index in range(len(source))]
        rates = measure(single_core(paths[:128]), options.rounds, time.process_time)
        rates |= measure(loaders(folder, source), options.rounds, time.perf_counter)
    report(rates, f"{len(paths) // COPIES} JPEGs, {where}", options)


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


def single_core(paths: list[Path]) -> dict[tuple[str, str], Callable[[], int]]:
    """Return what one core does to images already in memory, by (row, whose)."""
    files = [path.read_bytes() for path in paths]
    light, full = (
        TrainView(size=(224, 224), interpolation="bicubic", auto_augment=policy) for policy in (None, POLICY)
    )
    timm_light, timm_full = (
        create_transform(224, is_training=True, **recipe(policy, probability))
        for policy, probability in ((None, 0.0), (POLICY, ERASE))
    )
    epochs = itertools.count()

    def ours(view: TrainView, probability: float) -> int:
        epoch = next(epochs)  # other draws in every round, as timm's
        for start in range(0, len(files), BATCH):
            keys = [sample_key(0, epoch, index) for index in range(start, start + BATCH)]
            views = [view.view(decode(data), key) for data, key in zip(files[start : start + BATCH], keys, strict=True)]
            batch = torch.stack([view.permute(1, 2, 0) for view in views]).permute(0, 3, 1, 2)
            erase(normalise(batch, IMAGENET_MEAN, IMAGENET_STD), torch.tensor(keys), probability)
        return len(files)

    def theirs(transform: Any) -> int:
        for start in range(0, len(files), BATCH):
            torch.stack([transform(pillow(data)) for data in files[start : start + BATCH]])
        return len(files)

    return {
        ("decode", "vitrail"): lambda: len([decode(data).shape for data in files]),
        ("decode", "timm"): lambda: len([np.asarray(pillow(data)).shape for data in files]),
        ("one core, light", "vitrail"): lambda: ours(light, 0.0),
        ("one core, light", "timm"): lambda: theirs(timm_light),
        ("one core, full", "vitrail"): lambda: ours(full, ERASE),
        ("one core, full", "timm"): lambda: theirs(timm_full),
    }


def pillow(data: bytes) -> Image.Image:
    """Decode as timm's ImageDataset does."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def recipe(policy: str | None, probability: float) -> dict[str, Any]:
    """Return timm's settings for the same semantics."""
    erasing = {"re_prob": probability, "re_mode": "pixel"}
    return {"interpolation": "bicubic", "auto_augment": policy, "color_jitter": None} | erasing


def loaders(folder: Path, source: Source) -> dict[tuple[str, str], Callable[[], int]]:
    """Return one epoch of each whole loader, by (row, whose); workers persist from round to round."""
    rows = {}
    for name, policy, probability in (("loader, light", None, 0.0), ("loader, full", POLICY, ERASE)):
        sampler = BatchSampler(len(source), BATCH, 0)
        view = TrainView(size=(224, 224), interpolation="bicubic", auto_augment=policy)
        loader = build_train_loader(source, view, "ignore", sampler, seed=0, workers=WORKERS)
        rows[name, "vitrail"] = partial(run_ours, loader, sampler, probability)
        for whose, prefetcher in (("timm", False), ("timm, prefetcher", True)):
            theirs = create_loader(
                ImageDataset(str(folder)), (3, 224, 224), BATCH, is_training=True, num_workers=WORKERS,
                use_prefetcher=prefetcher, device=torch.device("cpu"), pin_memory=False, persistent_workers=True,
                **recipe(policy, probability),
            )  # fmt: skip
            rows[name, whose] = partial(run_timm, theirs)
    return rows


def run_ours(loader: Iterable[Batch], sampler: BatchSampler, probability: float) -> int:
    """Read one epoch of our batches, normalised and erased here, and return the number of images."""
    sampler.epoch += 1
    return consume(
        erase(normalise(batch.images, IMAGENET_MEAN, IMAGENET_STD), batch.keys, probability) for batch in loader
    )


def run_timm(loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> int:
    """Read one epoch of timm's batches, and return the number of images."""
    return consume(images for images, _ in loader)


def consume(batches: Iterable[torch.Tensor]) -> int:
    """Copy each batch once, as to a device, and return the number of images."""
    device, total = torch.empty(BATCH, 3, 224, 224), 0
    for images in batches:
        assert images.dtype == torch.float32
        device.copy_(images)
        total += len(images)
    return total


def measure(
    subjects: dict[tuple[str, str], Callable[[], int]], rounds: int, clock: Callable[[], float]
) -> dict[tuple[str, str], list[float]]:
    """Run each subject once in every round, after a round that does not count."""
    rates: dict[tuple[str, str], list[float]] = {subject: [] for subject in subjects}
    for number in range(rounds + 1):
        # back and forth, so that a drift of the machine favours nobody
        for subject in list(subjects) if number % 2 else list(subjects)[::-1]:
            started = clock()
            images = subjects[subject]()
            if number:
                rates[subject].append(images / (clock() - started))
    return rates


def report(rates: dict[tuple[str, str], list[float]], images: str, options: argparse.Namespace) -> None:
    """Print a table and write it as Markdown beside this file."""
    cpu = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    machine = cpu[1] if cpu else platform.processor()
    table = Table("", "images/s", "lowest", "highest", "vitrail / this", title=images)
    lines = ["| | whose | images/s | lowest | highest | vitrail / this |", "|---|---|---|---|---|---|"]
    for (row, whose), values in rates.items():
        pairs = zip(rates[row, "vitrail"], values, strict=True)
        ratio = "" if whose == "vitrail" else f"{statistics.median(ours / theirs for ours, theirs in pairs):.2f}"
        cells = [f"{statistics.median(values):.0f}", f"{min(values):.0f}", f"{max(values):.0f}", ratio]
        table.add_row(f"{row}: {whose}", *cells)
        lines.append(f"| {row} | {whose} | {' | '.join(cells)} |")
    Console().print(table)
    short = re.sub(r"[^a-z0-9]+", "-", re.sub(r"\(.*?\)|CPU|@.*|Processor", "", machine).strip().lower()).strip("-")
    versions = (
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, timm {timm.__version__}, "
        f"Pillow {PIL.__version__}, decoder {DECODER}, Python {platform.python_version()}"
    )
    path = Path(__file__).with_name(f"data_{short}_{options.month}.md")
    setting = (
        f"{machine}, {len(os.sched_getaffinity(0))} cores shared with other work, {torch.get_num_threads()} thread; "
        f"loaders with {WORKERS} workers; 224 px, batch {BATCH}, {images}"
    )
    path.write_text(
        f"# Input pipeline: images per second\n\n`uv run python benchmarks/data.py --rounds {options.rounds}`\n\n"
        f"{setting}.\n{versions}.\nMedians of {options.rounds} alternating rounds, and of the ratio within each round; "
        "one-core rows by CPU time, loaders by the clock.\n\n" + "\n".join(lines) + "\n"
    )


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
