"""A folder of images looked through before anything is trained on it: what is wrong, as numbers and as a page."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.config.commands import CheckConfig
from vitrail.data.audit.findings import CUT_AWAY, Findings, cut_away, find_problems, seen, validated_with
from vitrail.data.audit.scan import check_images
from vitrail.data.manifest import Manifest
from vitrail.data.opening import open_manifest
from vitrail.display import Display
from vitrail.errors import ConfigError, DataError
from vitrail.files import refuse_replacing
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.decoding import decode_quietly
from vitrail.images.transforms import Preprocess, fit_statistics
from vitrail.pages.render import picture, pictured, render
from vitrail.whole_folder import WholeFolder

SIZE = (224, 224)
"""Pixels that most of the models read."""
MEASURED = 200
"""Images that mean and std are taken from."""
FILES = ("check.html", "check.json")


@dataclass(frozen=True)
class Checked:
    """What was found, and where it is written."""

    manifest: Manifest
    findings: Findings
    folder: Path
    replaced: bool


def check_data(config: CheckConfig, output: Path, display: Display) -> Checked:
    """Look at every image of a data set that has not been looked at yet, and write what is found to a folder.

    Raises:
        ConfigError: The data is a named set, which needs no check.
        DataError: There are no images.
        CheckpointError: The output folder cannot be written.
    """
    if config.data.name is not None:
        raise ConfigError(
            f"data.name is {config.data.name}: check-data looks at image files, by data.root or data.list; of such a "
            "set, training and evaluation count and name what cannot be read"
        )
    given = {name: value for name, value in vars(config.preprocess).items() if value is not None}
    channels = config.data.channels
    mean, std = fit_statistics(channels, IMAGENET_MEAN, IMAGENET_STD)
    usual = Preprocess(size=SIZE, channels=channels, bits=config.data.bits, mean=mean, std=std)
    preprocess = replace(usual, **given)
    folder = WholeFolder(output, FILES, "choose another folder with --output")
    for file in folder.earlier_files():
        refuse_replacing("--output", file, [one for one in (config.data.list, config.data.manifest) if one])
    with folder.staged():
        manifest, structure = open_manifest(
            config.data, partial(check_images, display=display, workers=config.data.workers)
        )
        if (packed := manifest.packed) is not None:
            display.begin("verify shards", len(packed.shards))
            structure = (*structure, *packed.verify(manifest.root, display.advance))
            display.end()
        held_out = validated_with(manifest, config.data.fold)
        quarantine = config.data.bad_files == "quarantine"
        findings = find_problems(manifest, held_out, preprocess, structure, quarantine=quarantine)
        findings.statistics["pixels"] = measure(manifest, held_out)
        about = {"root": str(manifest.root), "manifest": manifest.hash, **findings.to_dict(manifest)}
        where = config.data.list or str(manifest.root)
        page = render("check_data.html", root=where, **_page(manifest, findings, held_out, preprocess))
        place, replaced = folder.publish(
            {"check.html": page, "check.json": (json.dumps(about, indent=1) + "\n").encode()}
        )
    return Checked(manifest, findings, place, replaced)


def measure(manifest: Manifest, held_out: NDArray[np.bool_]) -> dict[str, Any]:
    """Return mean and std of each channel, as shares of its range, over training images spread over all of them."""
    readable = np.flatnonzero(~held_out & ~manifest.unreadable)
    few = readable[np.linspace(0, len(readable) - 1, min(len(readable), MEASURED)).astype(np.int64)]
    moments = []
    for index in few.tolist():
        with contextlib.suppress(DataError, OSError):  # since it was looked at
            pixels = decode_quietly(manifest.read(index), manifest.pixels).double()
            values = pixels.flatten(1) / (2**manifest.pixels.bits - 1)
            moments.append((values.mean(1), values.square().mean(1)))
    if not moments:
        return {"images": 0, "mean": [], "std": []}
    mean, square = (torch.stack(column).mean(0) for column in zip(*moments, strict=True))
    std = (square - mean.square()).clamp(min=0).sqrt()
    return {"images": len(moments), "mean": mean.tolist(), "std": std.tolist()}


@dataclass(frozen=True)
class _Thumbnail:
    """An image as the page shows it, with the evaluation's crop as percentages of its sides."""

    address: str
    name: str
    class_name: str
    part: str
    aspect: float
    crop: tuple[float, float, float, float] | None
    """Left, top, width and height."""


def _page(
    manifest: Manifest, findings: Findings, held_out: NDArray[np.bool_], preprocess: Preprocess
) -> dict[str, Any]:
    lost = cut_away(manifest, preprocess)

    def thumbnail(index: int) -> _Thumbnail:
        try:
            pixels = decode_quietly(manifest.read(index), manifest.pixels)
            address, (height, width) = picture(pixels), pixels.shape[1:]
        except (DataError, OSError):
            address, height, width = "", 1, 1
        rows, columns = (float(share) for share in seen(np.float64(height), np.float64(width), preprocess))
        crop = (50 * (1 - columns), 50 * (1 - rows), 100 * columns, 100 * rows)
        return _Thumbnail(
            address, manifest.name(index), manifest.label_name(index),
            "validation" if held_out[index] else "training", width / height, crop if lost[index] > CUT_AWAY else None,
        )  # fmt: skip

    statistics = findings.statistics
    counts = sorted(
        zip(
            manifest.classes, statistics["training_images_by_class"], statistics["validation_images_by_class"],
            strict=True,
        ),
        key=lambda row: -row[1],
    )  # fmt: skip
    return {
        "hash": manifest.hash,
        "notes": manifest.notes,
        "problems": [
            {**asdict(problem), "images": [[thumbnail(index) for index in group] for group in problem.images]}
            for problem in findings.problems
        ],
        "statistics": statistics,
        "counts": counts,
        # bars are shares of it; images may have no class at all
        "most": max((train + val for _, train, val in counts), default=0) or 1,
        "preprocess": preprocess,
        "pictured": pictured(manifest.pixels),
    }
