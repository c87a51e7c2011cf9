"""Images for a model that is explained: drawn from a source, read in batches, with their masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitrail.data.sources import Source
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
    masks: Masks | None,
    bad: list[tuple[str, str]],
) -> Iterator[tuple[Batch | None, int]]:
    """Yield the images in batches, and how many were read for each; those that cannot be read are noted."""
    for first in range(0, len(chosen), BATCH):
        indices, views, found = [], [], []
        part = chosen[first : first + BATCH]
        for index in part:
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
            yield None, len(part)
            continue
        there = [mask for mask in found if mask is not None]
        batch = torch.stack(views).to(subject.device)
        yield (
            Batch(
                indices,
                normalise(batch, subject.preprocess.mean, subject.preprocess.std),
                torch.stack(there).to(subject.device) if there else None,
                torch.tensor([mask is not None for mask in found], device=subject.device),
            ),
            len(part),
        )


def _read_mask(masks: Masks, source: Source, index: int, pixels: Tensor) -> Tensor | None:
    path = masks.find(Path(source.name(index)))
    return None if path is None else masks.read(path, pixels)
