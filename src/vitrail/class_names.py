"""The class names of a model beside those of data: compared in their order, or matched by name."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from vitrail.data.sources import few
from vitrail.errors import DataError
from vitrail.imagenet import by_name, plain


def check_classes(
    model_classes: Sequence[str],
    data_classes: Sequence[str],
    path: Path | str,
    advice: str = "rename the classes of the data, or evaluate on the data it was trained on",
) -> None:
    """Refuse data whose classes, or their order, are not the model's.

    Raises:
        DataError: With the first rows that differ, and what to do.
    """
    if tuple(model_classes) == tuple(data_classes):
        return
    rows = [
        f"{index}: {ours} / {theirs}"
        for index, (ours, theirs) in enumerate(zip_longest(model_classes, data_classes, fillvalue="-"))
        if ours != theirs
    ]
    raise DataError(
        f"the classes of {path} ({len(model_classes)}) are not those of the data ({len(data_classes)}); differences, "
        f"as index: model / data = {'; '.join(rows[:3])}; {advice}"
    )


def match_by_name(model_classes: Sequence[str], data_classes: Sequence[str], path: Path | str) -> list[int]:
    """Return the index in the model of each class of the data.

    The data may have a part of the model's classes, in any order. ImageNet's classes go by their WordNet id, such as
    n01440764, or by an English name, such as tench, on either side.

    Raises:
        DataError: The model names no classes, lacks some of the data, or two of the data are one of its.
    """
    if not model_classes:
        raise DataError(
            f"{path}: names no classes, so none can be matched by name; leave data.match_classes=exact and give data "
            "whose folders are in the order of its outputs"
        )
    indices = {name: index for index, name in enumerate(model_classes)}
    if not indices.keys() >= set(data_classes):
        synonyms = by_name()
        same = {synonyms[plain(name)]: index for name, index in indices.items() if plain(name) in synonyms}
        for name in data_classes:
            if name not in indices and synonyms.get(plain(name)) in same:
                indices[name] = same[synonyms[plain(name)]]
    if missing := [name for name in data_classes if name not in indices]:
        raise DataError(
            f"{path} lacks {len(missing)} of the {len(data_classes)} classes of the data: {few(missing, 10)}; rename "
            "or remove them there"
        )
    found = [indices[name] for name in data_classes]
    for number, index in enumerate(found):
        if (first := found.index(index)) < number:
            raise DataError(
                f"the classes {data_classes[first]} and {data_classes[number]} of the data are both "
                f"{model_classes[index]} of {path}; put their images into one folder"
            )
    return found
