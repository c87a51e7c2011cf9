"""Stratified splits: hold out a fraction or a fold of each class, by a hash of names; groups stay together."""

from __future__ import annotations

import hashlib
import re
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources import UNLABELLED, Source, count_by_class
from vitrail.errors import ConfigError, DataError, list_some, tell_count

UNASSIGNED = -1
"""The fold of an image that has none yet."""
NEAR = 0.05
"""Share of all images by which a split may miss the size that was asked for, before the user is
told."""

SEARCH_S, SEARCH_EACH_S = 10.0, 1e-4
"""Seconds that looking for groups may take, and more for each name; a usual pattern takes a
millionth for one."""


@dataclass(frozen=True)
class Division:
    """How images are split where there is no folder for validation."""

    fraction: float = 0.2
    """Share of each class that is held out."""
    folds: int | None = None
    """Number of equal folds, of which one is held out; None holds out `fraction`."""
    fold: int = 0
    """Number of the fold that is held out, from 0; the fraction that is held out is fold 0 of
    two."""
    group_regex: str | None = None
    """Pattern of a name's group, such as a patient's number, whose images stay in one fold; all
    brackets count."""

    @property
    def key(self) -> str:
        """Return the settings that decide the folds, but not which of them is held out."""
        how = f"folds={self.folds}" if self.folds else f"val_fraction={self.fraction}"
        if self.group_regex:
            how += f" group_regex={self.group_regex}"
        return how

    def targets(self, count: int, label: int) -> list[int]:
        """Return how many of a class's images each fold is to hold."""
        if self.folds:
            each, rest = divmod(count, self.folds)
            # the rest begins in another fold for each class, or the last would hold that of all
            return [each + ((fold - label) % self.folds < rest) for fold in range(self.folds)]
        hold_out = min(max(round(count * self.fraction), 1), count - 1)
        return [hold_out, count - hold_out]


def assign_splits(
    source: Source, division: Division, fixed: NDArray[np.int16] | None = None
) -> NDArray[np.int16]:
    """Return the fold of each image; the place of the set and the order of its images do not matter.

    Args:
        source: The images.
        division: How they are to be split.
        fixed: Folds that images have already, UNASSIGNED for new ones; they keep them.

    Raises:
        ConfigError: group_regex does not fit a name.
        DataError: There are too few images.
    """
    groups = _group_images(source, division)
    strata = _strata(source)
    counts = np.bincount(strata, minlength=len(source.classes))
    need = [division.targets(int(count), label) for label, count in enumerate(counts)]
    folds = np.full(len(source), UNASSIGNED, np.int16) if fixed is None else fixed.copy()
    is_fixed = folds >= 0
    for label, fold in zip(strata[is_fixed].tolist(), folds[is_fixed].tolist(), strict=True):
        need[label][fold] -= 1

    # groups take their turn in the order of their hashes, each the first fold that has room for it
    labels = strata.tolist()
    for group in sorted(groups, key=lambda group: hashlib.blake2b(group, digest_size=8).digest()):
        new = [index for index in groups[group] if folds[index] < 0]
        known = [int(folds[index]) for index in groups[group] if folds[index] >= 0]
        fold = known[0] if known else _first_with_room([labels[index] for index in new], need)
        for index in new:
            folds[index] = fold
            need[labels[index]][fold] -= 1
    _check_folds(source, division, folds)
    return folds


def _check_folds(source: Source, division: Division, folds: NDArray[np.int16]) -> None:
    """Refuse a split without images to validate with, or without images to train on."""
    is_held_out = folds == division.fold
    if division.folds and not is_held_out.any():
        raise DataError(
            f"{source.description}: fold {division.fold} of {division.folds} has none of the "
            f"{len(source)} images; lower data.folds, or let data.group_regex find more groups"
        )
    if not is_held_out.any() or is_held_out.all():
        images = f"{len(source)} images"
        if source.classes != UNLABELLED:
            images += f" of {len(source.classes)} classes"
        raise DataError(
            f"{source.description}: {images} are too few to hold some out "
            "for validation; add images, or give a folder for validation with data.val_split"
        )


def _strata(source: Source) -> NDArray[np.int32]:
    """Return the class by which each image is stratified: its rarest, or one more for images without any."""
    if source.label_sets is None:
        return source.labels
    order = np.argsort(count_by_class(source), kind="stable")
    rarest = order[source.label_sets[:, order].argmax(1)]
    rarest[~source.label_sets.any(1)] = len(source.classes)
    return rarest.astype(np.int32)[source.labels]


def _first_with_room(labels: Sequence[int], need: Sequence[list[int]]) -> int:
    """Return the first fold that lacks at least half of a group's images, else the fold that lacks most of its classes.

    Args:
        labels: Label of each image of the group.
        need: How many images each fold still lacks, by class.
    """
    # most groups are one image, for which a Counter takes several times as long
    counts: dict[int, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    for fold in range(len(need[0])):
        fitting = sum(min(count, max(need[label][fold], 0)) for label, count in counts.items())
        if 2 * fitting >= len(labels) and fitting:
            return fold
    return max(range(len(need[0])), key=lambda fold: sum(need[label][fold] for label in counts))


def _group_images(source: Source, division: Division) -> dict[bytes, list[int]]:
    """Return the images that must stay together, by what their names have in common."""
    pattern = _compile_pattern(division.group_regex)
    if pattern is None:
        return _group_by(lambda index, name: name, source)

    def find(index: int, name: bytes) -> bytes:
        match = pattern.search(name)
        if match is None:
            raise ConfigError(
                f"data.group_regex {division.group_regex!r}: does not fit {source.name(index)}; it "
                "must find the group in every name below data.root; data.group_regex=null drops it"
            )
        return b"\0".join(match.groups(b"")) if match.groups() else match.group()

    # the pattern may have come with a weight file, and take longer than anyone lives
    seconds = SEARCH_S + SEARCH_EACH_S * len(source)
    try:
        with _within(seconds):
            return _group_by(find, source)
    except TimeoutError:
        raise ConfigError(
            f"data.group_regex {division.group_regex!r}: takes more than {seconds:.3g} s to look "
            f"for groups in {len(source):,} names; write it without repetitions within "
            "repetitions; data.group_regex=null drops it"
        ) from None


def _group_by(key: Callable[[int, bytes], bytes], source: Source) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = {}
    for index, name in enumerate(source.identities()):
        groups.setdefault(key(index, name), []).append(index)
    return groups


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    """Raise TimeoutError where this takes longer, even within a search, which Python stops for a signal.

    Only the first thread hears signals, so in others there is no limit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _compile_pattern(group_regex: str | None) -> re.Pattern[bytes] | None:
    if not group_regex:
        return None
    try:
        return re.compile(group_regex.encode())
    except re.error as error:
        raise ConfigError(
            f"data.group_regex {group_regex!r}: is no regular expression ({error})"
        ) from error


def hold_out(source: Source, division: Division, folds: NDArray[np.int16]) -> tuple[Source, Source]:
    """Return the images to train on, and those held out for validation, with a note of their number."""
    is_held_out = folds == division.fold
    notes = (*source.notes, _describe_split(source, division, is_held_out))
    single = [source.classes[label] for label in np.flatnonzero(count_by_class(source) == 1)]
    if single and source.label_sets is None:
        notes += (
            f"{tell_count(len(single), 'class has', 'classes have')} one image, which is trained on and not validated: "
            f"{list_some(single)}",
        )
    return (
        source.take(~is_held_out, f"{source.description}, all but the held-out part", notes),
        source.take(is_held_out, f"{source.description}, held-out part", notes),
    )


def _describe_split(source: Source, division: Division, is_held_out: NDArray[np.bool_]) -> str:
    if division.folds:
        asked = 1 / division.folds
        share = f"fold {division.fold} of {division.folds}"
    else:
        asked = division.fraction
        share = f"{division.fraction:.0%}"
        if source.classes != UNLABELLED:
            share += " of each class"
    together = f", {division.group_regex} kept together" if division.group_regex else ""
    note = f"held out {is_held_out.sum()} of {len(is_held_out)} images, {share}{together}, for validation"
    held = is_held_out.mean()
    if abs(held - asked) > NEAR:
        note += f"; {held:.0%} of all, as groups and single images are not cut"
    return note
