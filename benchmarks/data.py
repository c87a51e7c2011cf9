"""Images per second of the input pipeline against timm's, in one run of alternating rounds.

    uv run python benchmarks/data.py [--images FOLDER_OR_TAR]

One core, by CPU time: decoding; decoding and the light view (crop, mirror); decoding and the full view
(rand-m9-mstd0.5-inc1) with erasing; float batches out. Whole loader, by the clock: 2 workers, batch 64, 224 px, float
batches that are read once, as training would; timm's create_loader without and with its prefetcher.
"""

from __future__ import annotations

import io
import itertools
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from PIL import Image
from recipe_images import BATCH, COPIES, ERASE, IN_MEMORY, POLICY, SAMPLE, unpack
from side_by_side import alternate, publish, speed_up
from timm.data.dataset import ImageDataset
from timm.data.loader import create_loader
from timm.data.transforms_factory import create_transform

from vitrail.config.sections import DataSection
from vitrail.data.loader import Batch, build_train_loader, group_by_size
from vitrail.data.opening import open_split
from vitrail.data.sampling import BatchSampler, Shuffle
from vitrail.data.sources import Source
from vitrail.devices import keep_freed_memory
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.batch_augment import erase
from vitrail.images.decoding import decode, decoder_name
from vitrail.images.pixels import RGB
from vitrail.images.preprocess import normalise
from vitrail.images.train_view import TrainView, sample_key
from vitrail.kernels.pictures import prepare_pictures

WORKERS = 2


def main(images: Path | None = None, rounds: int = 7) -> None:
    """Measure, and write a page beside this file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prepare_pictures()  # as training does before its first image
    keep_freed_memory()  # timm's loader gains by it too
    with tempfile.TemporaryDirectory() as scratch:
        folder, where = unpack(images or (SAMPLE if SAMPLE.exists() else None), Path(scratch))
        source, _ = open_split(DataSection(root=str(folder)), "all")
        paths = [Path(source.name(index)) for index in range(len(source))][:IN_MEMORY]
        table = ["| | whose | images/s | lowest | highest | speed-up of ours |", "|-|-|-:|-:|-:|-:|"]
        table += rows(alternate(single_core(paths), rounds, clock=time.process_time), len(paths))
        table += rows(alternate(loaders(folder, source), rounds), len(source) // BATCH * BATCH)
    notes = [
        f"{len(source) // COPIES} JPEGs, {where}; 224 px, batch {BATCH}, loaders with {WORKERS} workers; "
        f"we decode with {decoder_name()}",
        f"medians of {rounds} alternating rounds, and of the ratio within a round; one-core rows by CPU time",
    ]
    publish("data", "Input pipeline: images per second", notes, table)


def rows(seconds: dict[tuple[str, str], list[float]], images: int) -> list[str]:
    """Return the rows of a table for so many images a round."""
    lines = []
    for (row, whose), values in seconds.items():
        rates = [images / value for value in values]
        gain = "" if whose == "vitrail" else f"{speed_up(seconds[row, 'vitrail'], values):.2f}"
        lines.append(
            f"| {row} | {whose} | {statistics.median(rates):.0f} | {min(rates):.0f} | {max(rates):.0f} | {gain} |"
        )
    return lines


def single_core(paths: list[Path]) -> dict[tuple[str, str], Callable[[], object]]:
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

    def ours(view: TrainView, probability: float) -> None:
        epoch = next(epochs)  # other draws in every round, as timm's
        for start in range(0, len(files), BATCH):
            keys = [sample_key(0, epoch, index) for index in range(start, start + BATCH)]
            # as the loader does, some are decoded before their views are made
            images = itertools.chain.from_iterable(group_by_size(map(decode, files[start : start + BATCH])))
            views = [view.view(image, key) for image, key in zip(images, keys, strict=True)]
            batch = torch.stack([view.permute(1, 2, 0) for view in views]).permute(0, 3, 1, 2)
            erase(normalise(batch, IMAGENET_MEAN, IMAGENET_STD), torch.tensor(keys), probability)

    def theirs(transform: Any) -> None:
        for start in range(0, len(files), BATCH):
            torch.stack([transform(pillow(data)) for data in files[start : start + BATCH]])

    return {
        ("decode", "vitrail"): lambda: [decode(data).shape for data in files],
        ("decode", "timm"): lambda: [np.asarray(pillow(data)).shape for data in files],
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


def loaders(folder: Path, source: Source) -> dict[tuple[str, str], Callable[[], object]]:
    """Return one epoch of each whole loader, by (row, whose); workers persist from round to round."""
    rows = {}
    for name, policy, probability in (("loader, light", None, 0.0), ("loader, full", POLICY, ERASE)):
        sampler = BatchSampler(Shuffle(len(source), seed=0), BATCH)
        view = TrainView(size=(224, 224), interpolation="bicubic", auto_augment=policy)
        loader = build_train_loader(source, view, RGB, sampler, seed=0, workers=WORKERS)
        rows[name, "vitrail"] = partial(run_ours, loader, sampler, probability)
        for whose, prefetcher in (("timm", False), ("timm, prefetcher", True)):
            theirs = create_loader(
                ImageDataset(str(folder)), (3, 224, 224), BATCH, is_training=True, num_workers=WORKERS,
                use_prefetcher=prefetcher, device=torch.device("cpu"), pin_memory=False, persistent_workers=True,
                **recipe(policy, probability),
            )  # fmt: skip
            rows[name, whose] = partial(run_timm, theirs, sampler.steps)
    return rows


def run_ours(loader: Iterable[Batch], sampler: BatchSampler, probability: float) -> None:
    """Read one epoch of our batches, normalised and erased here."""
    sampler.epoch += 1
    consume(
        (erase(normalise(batch.images, IMAGENET_MEAN, IMAGENET_STD), batch.keys, probability) for batch in loader),
        sampler.steps,
    )


def run_timm(loader: Iterable[tuple[torch.Tensor, torch.Tensor]], batches: int) -> None:
    """Read one epoch of timm's batches."""
    consume((images for images, _ in loader), batches)


def consume(batches: Iterable[torch.Tensor], expected: int) -> None:
    """Copy each batch once, as to a device."""
    device, total = torch.empty(BATCH, 3, 224, 224), 0
    for images in batches:
        assert images.dtype == torch.float32
        device.copy_(images)
        total += 1
    assert total == expected


if __name__ == "__main__":
    cyclopts.run(main)
