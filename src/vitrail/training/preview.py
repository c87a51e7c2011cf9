"""Preview of a training: what the model sees of some images, as a page or as a sheet of pictures."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import list_recipes
from vitrail.config.resolve import Layer
from vitrail.data.audit.findings import compute_cut_away, compute_visible_share
from vitrail.data.loader import Batch, TrainImages
from vitrail.data.opening import Data, list_files_read
from vitrail.data.sources import Source, count_by_class, format_label
from vitrail.display import Display
from vitrail.distributed.processes import choose_precision, processes
from vitrail.errors import DataError, write_option
from vitrail.evaluation.settings import inherited_data
from vitrail.files import refuse_replacing, write_whole
from vitrail.images.device_augment import build_augment
from vitrail.images.pixels import UnreadableImage
from vitrail.images.preprocess import Preprocess, denormalise
from vitrail.images.train_view import sample_key
from vitrail.models.registry import canonical_name
from vitrail.pages.render import picture, pictured, render, to_shown
from vitrail.training.initial_model import build_preprocess
from vitrail.training.losses import choose_loss
from vitrail.training.setup import (
    build_view,
    count_fixed_views,
    open_initial_model,
    open_training_data,
)
from vitrail.training.step import StepContext, prepare
from vitrail.weights.loading import open_model
from vitrail.weights.published.catalogue import HUB, is_published

MUCH = 0.5
"""Share of its area that the median image may lose in evaluation before a word is said: photographs
of 4 to 3 lose 0.39 to a centre crop of 0.9."""
LEAST_TARGET = 0.05
"""Smallest target of a class that is shown with a mixed view."""
MOST_TARGETS = 4
"""Most classes that are shown with a view; mixed images have two, multi-label ones any number."""
TRIED = 10
"""Images that are tried for each one wanted, as some cannot be read."""
MARGIN = 4
"""Pixels between the pictures of a sheet."""


@dataclass(frozen=True)
class Row:
    """One image: as it is, as evaluation shows it to the model, and as training does."""

    name: str
    label: str
    original: Tensor
    """Its pixels."""
    evaluation: Tensor
    """The view of evaluation, before it is normalised."""
    views: tuple[tuple[Tensor, str], ...]
    """Views of training, each with the classes that are its target."""


@dataclass(frozen=True)
class Preview:
    """The preview of a training, which was written to a file."""

    images: int
    lost: float
    """Share of its area that the median image loses in evaluation."""
    advice: str
    """What helps where that is much; else empty."""


def names_weights(word: str) -> bool:
    """Say whether a word that may name a recipe names weights instead."""
    if word in list_recipes():
        return False
    path = Path(word)
    if path.is_file():
        return path.suffix.lower() not in (".yaml", ".yml")
    return word.startswith(HUB) or (not path.exists() and is_published(word))


def read_weights_as_recipe(word: str, given: Layer, display: Display) -> list[Layer]:
    """Return the settings of a training from weights: their augmentation and data, where known."""
    record = open_model(word, display=display).record
    pixels = {"channels": record.preprocess.channels, "bits": record.preprocess.bits}
    values: dict[str, Any] = {"model": {"name": record.model, "weights": word}, "data": pixels}
    if augment := record.recipe.get("augment"):
        values["augment"] = augment
    return [*inherited_data(record, [given]), Layer(word, values)]


def preview(
    config: TrainConfig, output: Path, display: Display, *, images: int, views: int
) -> Preview:
    """Draw images by the seed of a training, and write what its model would see of them.

    Args:
        config: All settings of the training.
        output: The file; a sheet where it ends in .png, else a page.
        display: Where progress is shown.
        images: Number of images.
        views: Number of training views of each.

    Raises:
        ConfigError: Settings that do not fit together, or the file is one of the images.
        DataError: The images are not there, or none can be read.
        CheckpointError: The file cannot be written.
    """
    settings = config.train
    precision = choose_precision(settings.precision, settings.device)
    with processes(precision, settings.device) as accelerator:
        torch.manual_seed(settings.seed)
        config, data = open_training_data(config, accelerator, display)
        for source in (data.train, data.val):
            refuse_replacing("output", output, list_files_read(config.data, source))
        config, model = open_initial_model(config, data, accelerator, display)
        preprocess = build_preprocess(config, canonical_name(config.model.name), model)
        loss = choose_loss(data.train.label_sets, config.data.unlabelled)
        counts = count_by_class(data.train)
        context = StepContext(
            config=config,
            accelerator=accelerator,
            preprocess=preprocess,
            objective=loss.build(config, data.train, counts, accelerator.device),
        )
        rows = draw_rows(context, data.train, images, views)
        lost = measure_lost(data, preprocess, rows)
        advice = ""
        if lost > MUCH:
            advice = (
                f"half of the images lose over {lost:.0%} of their area to evaluation's centre "
                "crop; preprocess.resize=letterbox or squash keeps all of them, preprocess.crop=1 "
                "more"
            )
        shown = {"config": config, "data": data, "preprocess": preprocess, "advice": advice}
        is_sheet = output.suffix.lower() == ".png"
        content = draw_sheet(rows, preprocess) if is_sheet else render_page(rows, **shown)
        write_whole(output, content, f"choose another file with {write_option('output')}")
    return Preview(images=len(rows), lost=lost, advice=advice)


def draw_rows(context: StepContext, source: Source, images: int, views: int) -> list[Row]:
    """Draw images and views of them, which are made by the training's own step."""
    config, preprocess = context.config, context.preprocess
    seed = config.train.seed
    originals = dict(zip(range(images), _readable(source, preprocess, seed, images), strict=False))
    if not originals:
        raise DataError(
            f"{source.description}: none of the images can be read; `vitrail check-data` says why"
        )
    chosen = [index for index, _ in originals.values()]
    view, fixed = build_view(config, preprocess), count_fixed_views(config)
    dataset = TrainImages(source, view, preprocess.pixels, seed, fixed)
    augment = build_augment(view, context.accelerator.device)
    end = config.augment.mix_off_epoch
    drawn: list[list[tuple[Tensor, str]]] = [[] for _ in chosen]
    for epoch in range(views):
        samples = [dataset[epoch, index, 0] for index in chosen]
        batch = Batch(
            images=torch.stack([one.image for one in samples if one.image is not None]),
            labels=torch.tensor([one.label for one in samples]),
            indices=torch.tensor(chosen),
            keys=torch.tensor([one.key for one in samples]),
            bad=[],
        )
        if augment is not None:
            batch = batch._replace(images=augment(batch.images, batch.keys))
        # as in the first update of an epoch, until mixing ends
        key = sample_key(seed, epoch, 0, -1)
        if end is not None and epoch >= end:
            key = None
        mixed, targets = prepare(context, batch, key)
        pixels = denormalise(mixed.cpu(), preprocess)
        for views_of_one, view, target in zip(drawn, pixels, targets.cpu(), strict=True):
            views_of_one.append((view, _name_target(target, source.classes)))
    return [
        Row(
            name=source.name(index),
            label=format_label(int(source.labels[index]), source.classes, source.label_sets),
            original=original,
            evaluation=preprocess.view(original),
            views=tuple(views_of_one),
        )
        for (index, original), views_of_one in zip(originals.values(), drawn, strict=True)
    ]


def _readable(
    source: Source, preprocess: Preprocess, seed: int, images: int
) -> Iterator[tuple[int, Tensor]]:
    """Yield random images that can be read, by their index."""
    tried = random.Random(seed).sample(range(len(source)), min(TRIED * images, len(source)))
    for index in tried:
        try:
            yield index, source.image(index, preprocess.pixels)
        except (UnreadableImage, OSError):
            continue


def _name_target(target: Tensor, classes: Sequence[str]) -> str:
    """Return the largest targets of a view in words."""
    shares, indices = target.topk(min(MOST_TARGETS, len(target)))
    return ", ".join(
        f"{classes[index]} {share:.0%}"
        for share, index in zip(shares.tolist(), indices.tolist(), strict=True)
        if share >= LEAST_TARGET
    )


def measure_lost(data: Data, preprocess: Preprocess, rows: Sequence[Row]) -> float:
    """Return the share of its area that the median image loses in evaluation."""
    if data.manifest is not None and (known := data.manifest.width > 0).any():
        return float(np.median(compute_cut_away(data.manifest, preprocess)[known]))
    sizes = np.array([row.original.shape[1:] for row in rows], np.float64)
    seen_rows, seen_columns = compute_visible_share(sizes[:, 0], sizes[:, 1], preprocess)
    return float(np.median(1 - seen_rows * seen_columns))


def render_page(
    rows: Sequence[Row], *, config: TrainConfig, data: Data, preprocess: Preprocess, advice: str
) -> bytes:
    """Return the page of a preview."""
    shown = []
    for row in rows:
        height, width = row.original.shape[1:]
        share = compute_visible_share(np.float64(height), np.float64(width), preprocess)
        seen_rows, seen_columns = map(float, share)
        frame = (
            50 * (1 - seen_columns),
            50 * (1 - seen_rows),
            100 * seen_columns,
            100 * seen_rows,
        )
        shown.append(
            {
                "name": row.name,
                "label": row.label,
                "original": picture(row.original),
                "aspect": width / height,
                "frame": frame if seen_rows * seen_columns < 1 else None,
                "evaluation": picture(row.evaluation),
                "views": [(picture(view), target) for view, target in row.views],
            }
        )
    height, width = preprocess.size
    return render(
        "preview.html",
        rows=shown,
        data=data.train.description,
        model=config.model.name,
        aspect=width / height,
        preprocess=preprocess,
        advice=advice,
        pictured=pictured(preprocess.pixels),
    )


def draw_sheet(rows: Sequence[Row], preprocess: Preprocess) -> bytes:
    """Return a PNG with a line for each image: whole, in evaluation, and in training."""
    whole = replace(preprocess, resize="letterbox")
    tiles = []
    for row in rows:
        for pixels in (whole.view(row.original), row.evaluation, *(view for view, _ in row.views)):
            tile = to_shown(pixels)
            tiles.append(tile.expand(3, -1, -1))
    columns = 2 + len(rows[0].views)
    sheet = make_grid(torch.stack(tiles), nrow=columns, padding=MARGIN, pad_value=255)
    content = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(content, "PNG")
    return content.getvalue()
