"""Whether a model fits the images it is evaluated on: classes, kind of labels, pixels, and no image trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from vitrail.classes.matching import check_classes, find_order_doubt, match_by_name, match_by_order
from vitrail.classes.names import tell_look_alikes
from vitrail.config.commands import EvaluateConfig
from vitrail.config.resolve import to_dict
from vitrail.config.sections import DataSection
from vitrail.data.overlap import count_overlap
from vitrail.data.sources import Source, fingerprint
from vitrail.display import Display
from vitrail.errors import ConfigError, DataError, printable, tell_count
from vitrail.weights.checkpoint import Record

OTHER_CLASSES = (
    "rename the classes of the data, or evaluate on the data it was trained on; if the data has a "
    "part of the classes, or another order, data.match_classes=by-name; if it has all of them by "
    "other names, data.match_classes=by-order"
)

HOW_READ = ("workers", "download", "check", "match_classes")
"""Data settings that do not choose images."""


def match_classes(
    record: Record, source: Source, data: DataSection, path: Path | str, display: Display
) -> tuple[Record, Source]:
    """Return a model and images whose classes are the same in the same order, and say which names were matched.

    Raises:
        DataError: The classes cannot be matched as the settings say, or not without a doubt.
    """
    look_alikes = tell_look_alikes(source.classes)
    if look_alikes:
        display.warn(f"{source.description}: {look_alikes}")
    count = record.options["num_classes"]
    if data.match_classes == "by-name":
        lacking = len(record.classes) - len(source.classes)
        source = reorder_labels(record.classes, source, path)
        if lacking and source.label_sets is not None:
            display.warn(
                f"{source.description}: has no images of {lacking} of the {len(record.classes)} "
                "classes; where the model gives an image one of these, that counts as wrong"
            )
        return record, source
    if data.match_classes == "exact" and record.classes:
        check_classes(record.classes, source.classes, path, OTHER_CLASSES)
        return record, source
    if data.match_classes == "exact" and count != len(source.classes):
        raise DataError(
            f"{path}: has {count} outputs and names no classes, and the data has "
            f"{len(source.classes)}; name them with weights.classes=FILE, and where the data has a "
            "part of them add data.match_classes=by-name"
        )

    # By order: the model names no classes, or other names than the data.
    renamed = match_by_order(record.classes, count, source.classes, path)
    if renamed or not record.classes:
        doubt = find_order_doubt(source.classes, data.class_order)
        if doubt:
            nameless = "" if record.classes else "names no classes, and "
            raise DataError(f"{path}: {nameless}{doubt}")
        first, last = printable(source.classes[0]), printable(source.classes[-1])
        taken = (
            f"those of the data are taken, in their order, from 0, {first}, to {count - 1}, {last}"
        )
        display.warn(renamed or f"{path}: names no classes; {taken}")
    if not record.classes:
        return replace(record, classes=source.classes), source
    # every source is a dataclass with this field, which no protocol can say
    return record, replace(cast(Any, source), classes=record.classes)


def check_task(record: Record, source: Source, path: Path) -> None:
    """Refuse images whose labels are of another kind than the model's answers.

    Raises:
        DataError: The model is single-label and the images are multi-label, or the reverse.
    """
    if not record.is_multi_label and source.label_sets is not None:
        raise DataError(
            f"{path}: gives one class an image, and those of {source.description} have any number; "
            "evaluate a model that was trained on such images"
        )
    if record.is_multi_label and source.label_sets is None:
        raise DataError(
            f"{path}: gives any number of classes an image, and those of {source.description} have "
            "one each; give a list with data.list, see docs/multi_label.md"
        )


def find_trained_images(record: Record, config: EvaluateConfig, source: Source) -> str:
    """Return a warning where images that are to be validated with were trained on, or may have been."""
    trained, split = record.provenance.get("images", {}), config.evaluate.split
    if trained.get(split) == fingerprint(source):
        return ""
    sketch = record.provenance.get("sketch")
    if split != "train" and sketch:
        n, is_exact = count_overlap(source, sketch)
        if n:
            about = "" if is_exact else "about "
            return (
                f"{source.description}: {about}{n:,} of its {len(source):,} images were trained "
                "on, by name and "
                "content, and count as if they were new; to leave them out, divide as in training"
            )
    named = record.recipe.get("data", {})
    same = all(
        named.get(name) == value
        for name, value in to_dict(config.data).items()
        if name not in HOW_READ
    )
    if same and split in trained:
        return f"{source.description}: its images are not those of the training: files were added, removed or renamed"
    return ""


def check_pixels(record: Record, data: DataSection, path: Path | str) -> None:
    """Refuse to read images otherwise than a model needs them.

    Raises:
        ConfigError: The settings ask for other channels or bits.
    """
    needs = record.preprocess
    if (data.channels, data.bits) != (needs.channels, needs.bits):
        raise ConfigError(
            f"{path}: reads images of {tell_count(needs.channels, 'channel')} and {needs.bits} bits, the "
            f"settings say data.channels={data.channels} data.bits={data.bits}; drop them"
        )


def reorder_labels(model_classes: Sequence[str], source: Source, path: Path | str) -> Source:
    """Return the images with the labels of the model, found by the names of the classes.

    Raises:
        DataError: The model lacks a class of the data.
    """
    indices = np.array(match_by_name(model_classes, source.classes, path), dtype=np.int32)
    changed: dict[str, Any]
    if source.label_sets is None:
        changed = {"labels": indices[source.labels]}
    else:
        changed = {"label_sets": np.zeros((len(source.label_sets), len(model_classes)), np.bool_)}
        changed["label_sets"][:, indices] = source.label_sets
    # every source is a dataclass with these fields, which no protocol can say
    return replace(cast(Any, source), classes=tuple(model_classes), **changed)
