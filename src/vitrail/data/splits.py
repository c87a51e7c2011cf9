"""A part of the images held out for validation."""

from __future__ import annotations

import hashlib

import numpy as np

from vitrail.data.sources import Source, few
from vitrail.errors import DataError


def divide(source: Source, fraction: float) -> tuple[Source, Source]:
    """Hold out a share of each class for validation, chosen by a hash of the names, not by order or place."""
    rank = [hashlib.blake2b(identity, digest_size=8).digest() for identity in source.identities()]
    order = np.lexsort((np.array(rank, dtype="S8").view(">u8").reshape(-1), source.labels))
    counts = np.bincount(source.labels, minlength=len(source.classes))
    held_out = np.zeros(len(source), dtype=bool)
    for end, count in zip(np.cumsum(counts), counts, strict=True):
        start = end - count
        held_out[order[start : start + min(max(round(count * fraction), 1), count - 1)]] = True
    if not held_out.any():
        raise DataError(
            f"{source.description}: {len(source)} images of {len(source.classes)} classes are too few to hold some out "
            "for validation; add images, or give a folder for validation with data.val_split"
        )
    note = f"held out {held_out.sum()} of {len(source)} images, {fraction:.0%} of each class, for validation"
    notes = (*source.notes, note)
    single = [source.classes[label] for label in np.flatnonzero(counts == 1)]
    if single:
        notes += (f"{len(single)} classes have one image, which is trained on and not validated: {few(single)}",)
    return (
        source.take(~held_out, f"{source.description}, all but the held-out part", notes),
        source.take(held_out, f"{source.description}, held-out part", notes),
    )
