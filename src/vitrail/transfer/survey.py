"""What is known of a data set before it is trained on: images, classes, imbalance, sizes and copies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vitrail.config.sections import DataSection
from vitrail.data.audit.findings import mark_held_out
from vitrail.data.audit.near_duplicates import find_near_pairs
from vitrail.data.opening import Data
from vitrail.data.sources import count_by_class

UNBALANCED = 10
"""Times as many images as the smallest class that the largest has, from which on a data set is
called unbalanced."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The facts of a data set that settings depend on."""

    train_images: int
    val_images: int
    counts: tuple[int, ...]
    """Training images of each class; in multi-label data an image counts for each of its
    classes."""
    is_multi_label: bool
    channels: int
    bits: int
    short_side: int | None = None
    """Median of the shorter sides in pixels; None where the images were not inspected."""
    unreadable: int = 0
    """Images that cannot be read."""
    near_copies: int = 0
    """Pairs of images that look like versions of one picture."""
    copies_across: int = 0
    """Pairs of them of which one is trained on and the other validated with."""

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.counts)

    @property
    def images_a_class(self) -> int:
        """Median number of training images of a class."""
        return int(np.median(self.counts))

    @property
    def imbalance(self) -> float:
        """Training images of the largest class for each of the smallest."""
        return max(self.counts) / max(1, min(self.counts))

    @property
    def is_picture(self) -> bool:
        """Whether images have three channels of 8 bits, which augmentation policies are written for."""
        return (self.channels, self.bits) == (3, 8)

    def lines(self) -> list[str]:
        """Describe the data set in a few lines."""
        kind = "multi-label, " if self.is_multi_label else ""
        smallest, largest = min(self.counts), max(self.counts)
        each = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
        lines = [
            f"images to train on: {self.train_images:,}, to validate with: {self.val_images:,}; "
            f"{kind}{self.classes:,} classes, with {each} images to train on each"
        ]
        if self.short_side is not None:
            lines.append(
                f"half of the images have a shorter side of {self.short_side:,} pixels or less"
            )
        if self.unreadable:
            lines.append(
                f"images that cannot be read and are left out: {self.unreadable:,}; `vitrail check-data` "
                "names them"
            )
        if self.copies_across:
            lines.append(
                f"pairs of images that look alike, one on each side of the split: {self.copies_across:,}, "
                "which makes accuracies too high; `vitrail check-data` shows them"
            )
        elif self.near_copies:
            lines.append(
                f"pairs of images that look alike: {self.near_copies:,}; `vitrail check-data` shows them"
            )
        return lines


def survey_data(data: Data, section: DataSection) -> Survey:
    """Count what a data set holds, with what the inspection of its images found."""
    facts = Survey(
        train_images=len(data.train),
        val_images=len(data.val),
        counts=tuple(count_by_class(data.train).tolist()),
        is_multi_label=data.train.label_sets is not None,
        channels=section.channels,
        bits=section.bits,
    )
    manifest = data.manifest
    if manifest is None or not manifest.inspected.all():
        return facts
    readable = ~manifest.unreadable
    short_sides = np.minimum(manifest.width, manifest.height)[readable]
    pairs, _ = find_near_pairs(np.where(readable, manifest.picture, np.uint64(0)))
    held_out = mark_held_out(manifest, section.fold)
    across = held_out[pairs[:, 0]] != held_out[pairs[:, 1]]
    return Survey(
        **{
            **vars(facts),
            "short_side": int(np.median(short_sides)) if len(short_sides) else None,
            "unreadable": int((~readable).sum()),
            "near_copies": len(pairs),
            "copies_across": int(across.sum()),
        }
    )
