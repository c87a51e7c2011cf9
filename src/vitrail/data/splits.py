"""Images divided into parts that hold their share of each class, by a hash of their names; groups stay together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources import Source, images_of_classes
from vitrail.errors import ConfigError, DataError, few

UNASSIGNED = -1
NEAR = 0.05
"""Share of all images by which a division may miss what was asked for before that is said."""


@dataclass(frozen=True)
class Division:
    """How images are divided where there is no folder for validation."""

    fraction: float = 0.2
    """Share of each class that is held out."""
    folds: int | None = None
    """Equal parts instead, of which one is held out."""
    fold: int = 0
    """The part that is held out, from 0."""
    group_regex: str | None = None
    """What of a name must not be in two parts, such as a patient's number; of several brackets, all of them."""

    @property
    def key(self) -> str:
        """Return what decides the parts, but not which of them is held out."""
        how = f"folds={self.folds}" if self.folds else f"val_fraction={self.fraction}"
        return how + (f" group_regex={self.group_regex}" if self.group_regex else "")

    def targets(self, count: int, label: int) -> list[int]:
        """Return how many of a class's images each part is to hold."""
        if self.folds:
            each, rest = divmod(count, self.folds)
            # the rest begins in another fold for each class, or the last would hold that of all
            return [each + ((part - label) % self.folds < rest) for part in range(self.folds)]
        held_out = min(max(round(count * self.fraction), 1), count - 1)
        return [held_out, count - held_out]


def divide(source: Source, division: Division, fixed: NDArray[np.int16] | None = None) -> NDArray[np.int16]:
    """Return the part of each image; the place of the set and the order of its images do not matter.

    Args:
        source: The images.
        division: How they are to be divided.
        fixed: Parts that images have already, UNASSIGNED for new ones; they keep them.

    Raises:
        ConfigError: group_regex does not fit a name.
        DataError: There are too few images.
    """
    units = _units(source, division)
    labels = _strata(source)
    counts = np.bincount(labels, minlength=len(source.classes))
    need = [division.targets(int(count), label) for label, count in enumerate(counts)]
    parts = np.full(len(source), UNASSIGNED, np.int16) if fixed is None else fixed.copy()
    for label, part in zip(labels[parts >= 0].tolist(), parts[parts >= 0].tolist(), strict=True):
        need[label][part] -= 1
    order = sorted(units, key=lambda unit: hashlib.blake2b(unit, digest_size=8).digest())
    plain = labels.tolist()
    for unit in order:
        new = [index for index in units[unit] if parts[index] < 0]
        known = [int(parts[index]) for index in units[unit] if parts[index] >= 0]
        part = known[0] if known else _first_with_room([plain[index] for index in new], need)
        for index in new:
            parts[index] = part
            need[plain[index]][part] -= 1
    if division.folds and not (parts == division.fold).any():
        raise DataError(
            f"{source.description}: fold {division.fold} of {division.folds} has none of the {len(source)} images; "
            "lower data.folds, or let data.group_regex find more groups"
        )
    if not (parts == division.fold).any() or (parts == division.fold).all():
        raise DataError(
            f"{source.description}: {len(source)} images of {len(source.classes)} classes are too few to hold some out "
            "for validation; add images, or give a folder for validation with data.val_split"
        )
    return parts


def _strata(source: Source) -> NDArray[np.int32]:
    """Return the class that each image is divided by: of several the rarest, and one more for images without any."""
    if source.label_sets is None:
        return source.labels
    order = np.argsort(images_of_classes(source), kind="stable")
    rarest = order[source.label_sets[:, order].argmax(1)]
    rarest[~source.label_sets.any(1)] = len(source.classes)
    return rarest.astype(np.int32)[source.labels]


def _first_with_room(labels: Sequence[int], need: Sequence[list[int]]) -> int:
    """Return the first part that lacks at least half of a unit's images; where none does, the one that lacks most."""
    wanted: dict[int, int] = {}
    for label in labels:
        wanted[label] = wanted.get(label, 0) + 1
    fits = [
        sum(min(count, max(need[label][part], 0)) for label, count in wanted.items()) for part in range(len(need[0]))
    ]
    for part, count in enumerate(fits):
        if 2 * count >= len(labels) and count:
            return part
    return max(range(len(fits)), key=lambda part: sum(need[label][part] for label in wanted))


def _units(source: Source, division: Division) -> dict[bytes, list[int]]:
    """Return the images that must stay together, by what they have in common."""
    units: dict[bytes, list[int]] = {}
    try:
        pattern = re.compile(division.group_regex.encode()) if division.group_regex else None
    except re.error as error:
        raise ConfigError(f"data.group_regex {division.group_regex!r}: is no regular expression ({error})") from error
    for index, name in enumerate(source.identities()):
        unit = name
        if pattern is not None:
            found = pattern.search(name)
            if found is None:
                raise ConfigError(
                    f"data.group_regex {division.group_regex!r}: does not fit {source.name(index)}; it must find the "
                    "group in every name below data.root; data.group_regex=null drops it"
                )
            unit = b"\0".join(found.groups(b"")) if found.groups() else found.group()
        units.setdefault(unit, []).append(index)
    return units


def held_out(source: Source, division: Division, parts: NDArray[np.int16]) -> tuple[Source, Source]:
    """Return the images that are trained on, and those held out for validation, with a note of their number."""
    chosen = parts == division.fold
    counts = images_of_classes(source)
    share = f"fold {division.fold} of {division.folds}" if division.folds else f"{division.fraction:.0%} of each class"
    together = f", {division.group_regex} kept together" if division.group_regex else ""
    held = chosen.mean()
    is_off = abs(held - (1 / division.folds if division.folds else division.fraction)) > NEAR
    cut = f"; {held:.0%} of all, as groups and single images are not cut" if is_off else ""
    note = f"held out {chosen.sum()} of {len(source)} images, {share}{together}, for validation{cut}"
    notes = (*source.notes, note)
    single = [source.classes[label] for label in np.flatnonzero(counts == 1)]
    if single and source.label_sets is None:
        notes += (f"{len(single)} classes have one image, which is trained on and not validated: {few(single)}",)
    return (
        source.take(~chosen, f"{source.description}, all but the held-out part", notes),
        source.take(chosen, f"{source.description}, held-out part", notes),
    )
