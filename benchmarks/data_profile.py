"""Where the time of one training image goes on one core: each stage, and each operation of RandAugment beside timm's.

    uv run python benchmarks/data_profile.py [--images FOLDER_OR_TAR]

Stages and operations take turns, by CPU time, on images that are in memory; 224 px, rand-m9-mstd0.5-inc1. What scaled
decoding of JPEGs would gain is measured too: Pillow can leave out every second pixel, or three of four, while decoding.
Stages one after the other take less time than image by image, where each finds the caches full of the one before it.
"""

from __future__ import annotations

import io
import itertools
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from PIL import Image
from recipe_images import BATCH, ERASE, IN_MEMORY, POLICY, SAMPLE, unpack
from side_by_side import alternate, publish
from timm.data.auto_augment import rand_augment_transform
from torch import Tensor

from vitrail.config.sections import DataSection
from vitrail.data.loader import group_by_size
from vitrail.data.opening import open_split
from vitrail.devices import keep_freed_memory
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.batch_augment import erase
from vitrail.images.decoding import decode
from vitrail.images.fast_policy import QUICK
from vitrail.images.preprocess import normalise, resize_pixels
from vitrail.images.train_view import TrainView, sample_key
from vitrail.kernels.pictures import prepare_pictures

SIZE = (224, 224)
HOW = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}


def main(images: Path | None = None, rounds: int = 7) -> None:
    """Measure, and write a page beside this file."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    prepare_pictures()  # as training does before its first image
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as scratch:
        folder, where = unpack(images or (SAMPLE if SAMPLE.exists() else None), Path(scratch))
        source, _ = open_split(DataSection(root=str(folder)), "all")
        files = [Path(source.name(index)).read_bytes() for index in range(IN_MEMORY)]
    decoded = [decode(data) for data in files]
    views = [resize_pixels(image, SIZE, "bicubic") for image in decoded]
    subjects = {**stages(files, decoded, views), **operations(views), **scaled(files)}
    seconds = alternate(subjects, rounds, clock=time.process_time)
    taken = {subject: 1e6 * statistics.median(values) / len(files) for subject, values in seconds.items()}
    notes = [
        f"{len(files)} JPEGs of {where}; 224 px, {POLICY}, bicubic, batches of {BATCH}, erasing {ERASE}",
        f"microseconds an image by CPU time, medians of {rounds} alternating rounds",
        "an operation is used for one image of 15 on average: two are drawn of 15, each with a probability of a half",
        f"at half its size a JPEG covers {share_of_views(decoded, 2):.1%} of the views, at a quarter "
        f"{share_of_views(decoded, 4):.1%}; so many could be decoded scaled",
    ]
    publish("data_profile", "One training image on one core", notes, [*stage_table(taken), "", *operation_table(taken)])


def stages(files: list[bytes], decoded: list[Tensor], views: list[Tensor]) -> dict[Any, Callable[[], object]]:
    """Return the stages of the pipeline, each on what the one before it gives."""
    light = TrainView(size=SIZE, interpolation="bicubic")
    full = TrainView(size=SIZE, interpolation="bicubic", auto_augment=POLICY)
    keys = [sample_key(0, 0, index) for index in range(len(files))]
    batches = [views[start : start + BATCH] for start in range(0, len(views), BATCH)]
    stacked = [stack(batch) for batch in batches]
    floats = [normalise(batch, IMAGENET_MEAN, IMAGENET_STD) for batch in stacked]
    seeds = [torch.tensor(keys[start : start + BATCH]) for start in range(0, len(keys), BATCH)]
    mirrored = TrainView(size=SIZE, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=1.0, interpolation="bicubic")

    epochs = itertools.count()

    def view_all(view: TrainView, images: Iterable[Tensor]) -> None:
        epoch = next(epochs)  # other draws in every round
        for index, image in enumerate(images):
            view.view(image, sample_key(0, epoch, index))

    return {
        ("stage", "decode"): lambda: [decode(data) for data in files],
        ("stage", "draws, crop, resize, mirror (the light view)"): lambda: view_all(light, decoded),
        ("stage", "of which draws and mirror"): lambda: view_all(mirrored, views),
        ("stage", "the same and the policy (the full view)"): lambda: view_all(full, decoded),
        ("stage", "decode and the full view, image by image"): lambda: view_all(full, map(decode, files)),
        ("stage", "the same, 16 MiB of images at a time, as the loader does"): lambda: view_all(
            full, itertools.chain.from_iterable(group_by_size(map(decode, files)))
        ),
        ("stage", "stack"): lambda: [stack(batch) for batch in batches],
        ("stage", "normalise"): lambda: [normalise(batch, IMAGENET_MEAN, IMAGENET_STD) for batch in stacked],
        ("stage", "erase"): lambda: [erase(batch, key, ERASE) for batch, key in zip(floats, seeds, strict=True)],
    }


def stack(views: list[Tensor]) -> Tensor:
    """Stack views as the loader does."""
    return torch.stack([view.permute(1, 2, 0) for view in views]).permute(0, 3, 1, 2)


def operations(views: list[Tensor]) -> dict[Any, Callable[[], object]]:
    """Return each operation of the policy, ours on arrays and timm's on Pillow images, with the same draws."""
    arrays = [np.ascontiguousarray(view.permute(1, 2, 0).numpy()) for view in views]
    pictures = [Image.fromarray(array) for array in arrays]
    subjects: dict[Any, Callable[[], object]] = {}

    def run(operation: Any, images: list[Any]) -> None:
        random.seed(0)
        for image in images:
            operation(image)

    for whose, images in (("vitrail", arrays), ("timm", pictures)):
        for operation in rand_augment_transform(POLICY, dict(HOW)).ops:
            operation.prob = 1.0
            name, given = operation.name, images
            if whose == "vitrail":
                quick = QUICK.get(operation.aug_fn.__name__)
                given = images if quick else pictures
                operation.aug_fn = quick or operation.aug_fn
            subjects["operation", name, whose] = lambda operation=operation, given=given: run(operation, given)
    return subjects


def scaled(files: list[bytes]) -> dict[Any, Callable[[], object]]:
    """Return Pillow's decoding of whole JPEGs, and at a part of their size."""

    def read(data: bytes, part: int) -> None:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (image.width // part, image.height // part))
        np.asarray(image.convert("RGB"))

    names = {1: "decode by Pillow", 2: "decode by Pillow at a half", 4: "decode by Pillow at a quarter"}
    return {("stage", name): lambda part=part: [read(data, part) for data in files] for part, name in names.items()}


def share_of_views(decoded: list[Tensor], part: int) -> float:
    """Return the share of random crops that are as large as a view at a part of their size."""
    from timm.data.transforms import RandomResizedCropAndInterpolation as Crop

    random.seed(0)
    boxes = [Crop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for image in decoded for _ in range(20)]
    return statistics.mean(min(height, width) >= part * SIZE[0] for _, _, height, width in boxes)


def stage_table(taken: dict[Any, float]) -> list[str]:
    """Return the rows of the stages."""
    rows = ["| stage | us an image | share of decoding |", "|-|-:|-:|"]
    for subject, value in taken.items():
        if subject[0] == "stage":
            rows.append(f"| {subject[1]} | {value:.0f} | {value / taken['stage', 'decode']:.0%} |")
    return rows


def operation_table(taken: dict[Any, float]) -> list[str]:
    """Return the rows of the operations, those that cost most first."""
    rows = ["| operation | vitrail, us | timm, us | speed-up | us an image of the policy |", "|-|-:|-:|-:|-:|"]
    names = [subject[1] for subject in taken if subject[0] == "operation" and subject[2] == "vitrail"]
    for name in sorted(names, key=lambda name: -taken["operation", name, "vitrail"]):
        ours, theirs = taken["operation", name, "vitrail"], taken["operation", name, "timm"]
        rows.append(f"| {name} | {ours:.0f} | {theirs:.0f} | {theirs / ours:.1f} | {ours / len(names):.0f} |")
    return rows


if __name__ == "__main__":
    cyclopts.run(main)
