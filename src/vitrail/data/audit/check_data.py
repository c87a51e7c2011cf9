"""`vitrail check-data`: inspect a data set before training, and report its problems as JSON and as an HTML page."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.config.commands import CheckConfig
from vitrail.data.audit.findings import (
    CUT_AWAY,
    Findings,
    compute_cut_away,
    compute_visible_share,
    find_problems,
    mark_held_out,
)
from vitrail.data.audit.scan import check_images
from vitrail.data.audit.suspects import SHOWN, Suspect, write_suspects
from vitrail.data.manifest import Manifest
from vitrail.data.opening import open_manifest
from vitrail.display import Display
from vitrail.errors import ConfigError, DataError, write_option
from vitrail.files import refuse_replacing
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.decoding import decode_quietly
from vitrail.images.preprocess import Preprocess, fit_statistics
from vitrail.pages.render import picture, pictured, render
from vitrail.whole_folder import WholeFolder

SIZE = (224, 224)
"""Image size that most of the models read."""
MEASURED = 200
"""Most images from which mean and std are computed."""
FILES = ("check.html", "check.json", "suspects.csv")
"""Files of a report."""


@dataclass(frozen=True)
class Checked:
    """The result of `check_data`."""

    manifest: Manifest
    findings: Findings
    folder: Path
    """Folder of the report."""
    replaced: bool
    """Whether an earlier report was replaced."""
    suspects: tuple[Suspect, ...] | None = None
    """Labels that look wrong, the most suspect first; None where none were searched for."""


def check_data(
    config: CheckConfig,
    output: Path,
    display: Display,
    suspect: Callable[[Manifest], Sequence[Suspect]] | None = None,
    usual: Preprocess | None = None,
) -> Checked:
    """Inspect every image of a data set that is new or changed, and write a report of its problems to a folder.

    Args:
        config: The settings.
        output: The folder.
        display: Shows progress.
        suspect: Finds labels that look wrong; None does not search for them.
        usual: Preprocessing that images are judged by, where the settings do not say another; None
            is that of the published models.

    Raises:
        ConfigError: The data is a named set, which needs no check.
        DataError: There are no images.
        CheckpointError: The output folder cannot be written.
    """
    if config.data.name is not None:
        raise ConfigError(
            f"data.name is {config.data.name}: check-data looks at image files, by data.root or "
            "data.list; of such a set, training and evaluation count and name what cannot be read"
        )
    preprocess = _choose_preprocess(config, usual)
    folder = WholeFolder(output, FILES, f"choose another folder with {write_option('output')}")
    inputs = [file for file in (config.data.list, config.data.manifest) if file]
    for file in folder.earlier_files():
        refuse_replacing("output", file, inputs)
    look = partial(check_images, display=display, workers=config.data.workers)
    with folder.staged():
        manifest, structure = open_manifest(config.data, look)
        if (packed := manifest.packed) is not None:
            display.begin("verify shards", len(packed.shards))
            structure = (*structure, *packed.verify(manifest.root, display.advance))
            display.end()
        held_out = mark_held_out(manifest, config.data.fold)
        quarantine = config.data.bad_files == "quarantine"
        findings = find_problems(manifest, held_out, preprocess, structure, quarantine=quarantine)
        findings.statistics["pixels"] = measure_pixels(manifest, held_out)
        numbers = {
            "root": str(manifest.root),
            "manifest": manifest.hash,
            **findings.to_dict(manifest),
        }
        where = config.data.list or str(manifest.root)
        suspects = None if suspect is None else tuple(suspect(manifest))
        values = _fill_page(manifest, findings, held_out, preprocess)
        values["suspects"] = _show_suspects(manifest, suspects, held_out, preprocess)
        files = {
            "check.html": render("check_data.html", root=where, **values),
            "check.json": (json.dumps(numbers, indent=1) + "\n").encode(),
        }
        if suspects is not None:
            files["suspects.csv"] = write_suspects(manifest, suspects)
        place, replaced = folder.publish(files)
    return Checked(manifest, findings, place, replaced, suspects)


def _choose_preprocess(config: CheckConfig, usual: Preprocess | None) -> Preprocess:
    """Return the preprocessing that images are judged by: the usual one of the models, with the settings given."""
    if usual is None:
        channels = config.data.channels
        mean, std = fit_statistics(channels, IMAGENET_MEAN, IMAGENET_STD)
        usual = Preprocess(size=SIZE, channels=channels, bits=config.data.bits, mean=mean, std=std)
    given = {name: value for name, value in vars(config.preprocess).items() if value is not None}
    return replace(usual, **given)


def measure_pixels(manifest: Manifest, held_out: NDArray[np.bool_]) -> dict[str, Any]:
    """Return mean and std of each channel, for pixels from 0 to 1, over a sample of the training images."""
    readable = np.flatnonzero(~held_out & ~manifest.unreadable)
    evenly = np.linspace(0, len(readable) - 1, min(len(readable), MEASURED)).astype(np.int64)
    moments = []
    for index in readable[evenly].tolist():
        with contextlib.suppress(DataError, OSError):  # it may have changed since it was inspected
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
    """The image as a data URI, empty where it cannot be read."""
    name: str
    class_name: str
    part: str
    """The split it belongs to."""
    aspect: float
    """Width / height."""
    crop: tuple[float, float, float, float] | None
    """Left, top, width and height of the crop; None where it is not worth showing."""


def _make_thumbnail(
    manifest: Manifest, index: int, split: str, lost: float, preprocess: Preprocess
) -> _Thumbnail:
    """Show an image of the manifest.

    Args:
        manifest: The images.
        index: Index of the image.
        split: The split it belongs to.
        lost: Share of its area outside the evaluation's crop.
        preprocess: The evaluation's preprocessing.
    """
    try:
        pixels = decode_quietly(manifest.read(index), manifest.pixels)
        address = picture(pixels)
        height, width = pixels.shape[1:]
    except (DataError, OSError):
        address = ""
        height = width = 1
    crop = None
    if lost > CUT_AWAY:
        visible = compute_visible_share(np.float64(height), np.float64(width), preprocess)
        rows, columns = map(float, visible)
        crop = (50 * (1 - columns), 50 * (1 - rows), 100 * columns, 100 * rows)
    return _Thumbnail(
        address=address,
        name=manifest.name(index),
        class_name=manifest.label_name(index),
        part=split,
        aspect=width / height,
        crop=crop,
    )


def _show_suspects(
    manifest: Manifest,
    suspects: Sequence[Suspect] | None,
    held_out: NDArray[np.bool_],
    preprocess: Preprocess,
) -> dict[str, Any] | None:
    """Return the values of the page's section of suspects; None where none were searched for."""
    if suspects is None:
        return None
    shown = []
    for one in suspects[:SHOWN]:
        split = "validation" if held_out[one.index] else "training"
        image = _make_thumbnail(manifest, one.index, split, 0.0, preprocess)
        shown.append({"image": image, "likelier": manifest.classes[one.likelier], "loss": one.loss})
    judged = count_readable(manifest)
    return {
        "count": len(suspects),
        "judged": judged,
        "agreed": 100 * (1 - len(suspects) / max(judged, 1)),
        "shown": shown,
    }


def count_readable(manifest: Manifest) -> int:
    """Return the number of images that can be read, which are those whose labels can be judged."""
    return int((~manifest.unreadable).sum())


def _fill_page(
    manifest: Manifest, findings: Findings, held_out: NDArray[np.bool_], preprocess: Preprocess
) -> dict[str, Any]:
    """Return the values of the page's template."""
    lost = compute_cut_away(manifest, preprocess)

    def thumbnail(index: int) -> _Thumbnail:
        split = "validation" if held_out[index] else "training"
        return _make_thumbnail(manifest, index, split, lost[index], preprocess)

    problems = []
    for problem in findings.problems:
        images = [list(map(thumbnail, group)) for group in problem.images]
        problems.append({**asdict(problem), "images": images})
    statistics = findings.statistics
    training = statistics["training_images_by_class"]
    validation = statistics["validation_images_by_class"]
    counts = sorted(
        zip(manifest.classes, training, validation, strict=True), key=lambda row: -row[1]
    )
    return {
        "hash": manifest.hash,
        "notes": manifest.notes,
        "problems": problems,
        "statistics": statistics,
        "counts": counts,
        # bars are shares of it; images may have no class at all
        "most": max((train + val for _, train, val in counts), default=0) or 1,
        "preprocess": preprocess,
        "pictured": pictured(manifest.pixels),
    }
