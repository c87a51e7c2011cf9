"""Images for a model that is explained: drawn from a source, read in batches, with their masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.data.sources import Source
from vitrail.display import Display
from vitrail.errors import DataError
from vitrail.explanation.masks import Masks
from vitrail.explanation.subject import Subject
from vitrail.images.pixels import UnreadableImage
from vitrail.images.preprocess import normalise

BATCH = 4
"""Images that are computed together; each may be changed in some thirty ways."""


@dataclass(frozen=True)
class Batch:
    """Some images."""

    indices: list[int]
    """Index of each in its source."""
    images: Tensor
    """Normalised images (b, c, h, w)."""
    masks: Tensor | None
    """Masks (m, h, w) of those images that have one."""
    has_mask: Tensor
    """Which images have a mask (b)."""


def draw_images(count: int, limit: int, seed: int) -> list[int]:
    """Return indices of so many images, drawn without any twice, in their order."""
    if count <= limit:
        return list(range(count))
    drawn = np.random.default_rng([seed, count]).choice(count, limit, replace=False)
    return sorted(map(int, drawn))


def read_batches(
    subject: Subject,
    source: Source,
    chosen: Sequence[int],
    bad: list[tuple[str, str]],
    display: Display,
    *,
    label: str,
    masks: Masks | None = None,
) -> Iterator[Batch]:
    """Yield images in batches, and show how far that is; those that cannot be read are told at the end.

    Args:
        subject: The model that they are for.
        source: The images.
        chosen: Indices of those that are wanted.
        bad: Filled with name and reason of each image that cannot be read.
        display: Shows progress and warnings.
        label: What is done with them.
        masks: Masks of the images.

    Raises:
        DataError: None of the images can be read, or a mask cannot.
    """
    display.begin(label, len(chosen))
    for first in range(0, len(chosen), BATCH):
        part = chosen[first : first + BATCH]
        batch = _read_batch(subject, source, part, bad, masks)
        if batch is not None:
            yield batch
        display.advance(len(part))
    display.end()
    for name, reason in bad:
        display.warn(f"{name}: {reason}; not counted")
    if len(bad) == len(chosen):
        raise DataError(
            f"{source.description}: none of the {len(chosen):,} images that were drawn can be read"
        )


def _read_batch(
    subject: Subject,
    source: Source,
    chosen: Sequence[int],
    bad: list[tuple[str, str]],
    masks: Masks | None,
) -> Batch | None:
    """Return some images, None where none of them can be read."""
    indices, views, found = [], [], []
    for index in chosen:
        try:
            pixels = source.image(index, subject.preprocess.pixels)
        except UnreadableImage as error:
            bad.append((source.name(index), str(error)))
            continue
        except OSError as error:
            bad.append((source.name(index), error.strerror or str(error)))
            continue
        indices.append(index)
        views.append(subject.preprocess.view(pixels))
        found.append(None if masks is None else _read_mask(masks, source, index, pixels))
    if not indices:
        return None
    there = [mask for mask in found if mask is not None]
    images = torch.stack(views).to(subject.device)
    return Batch(
        indices,
        normalise(images, subject.preprocess.mean, subject.preprocess.std),
        torch.stack(there).to(subject.device) if there else None,
        torch.tensor([mask is not None for mask in found], device=subject.device),
    )


def _read_mask(masks: Masks, source: Source, index: int, pixels: Tensor) -> Tensor | None:
    """Return the mask of an image, None where there is none, or none that has anything inside."""
    name = source.name(index)
    path = masks.find(Path(name))
    if path is None:
        masks.missing.append(name)
        return None
    mask = masks.read(path, pixels)
    if mask.any():
        return mask
    masks.empty.append(name)
    return None
