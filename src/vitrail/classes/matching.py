"""The class names of a model beside those of data: compared in their order, matched by name, or read from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

from vitrail.classes.names import ClassOrder, canonical, order, orders_differ, why_apart
from vitrail.errors import ConfigError, DataError, brief, few, printable
from vitrail.files import no_file
from vitrail.imagenet import by_name, plain

MAX_NAME = 1000
"""Letters of a class name in a file of names."""
MOST_BYTES = 32 * 2**20
"""Largest file of class names that is read."""
WNID = re.compile(r"n\d{8}")


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
    model, data = ([canonical(name) for name in names] for names in (model_classes, data_classes))
    if model == data:
        return
    orders = {kind: [data[index] for index in order(data, kind)] for kind in get_args(ClassOrder)}
    if data in orders.values():  # and none that somebody has declared
        for kind in orders:
            if orders[kind] == model:
                advice += f", or set data.class_order={kind}"
    rows = [
        f"{index}: {ours} / {theirs}"
        for index, (ours, theirs) in enumerate(zip_longest(model, data, fillvalue="-"))
        if ours != theirs
    ]
    raise DataError(
        f"the classes of {path} ({len(model)}) are not those of the data ({len(data)}); differences, "
        f"as index: model / data = {'; '.join(rows[:3])}{why_apart(model, data)}; {advice}"
    )


def match_by_name(model_classes: Sequence[str], data_classes: Sequence[str], path: Path | str) -> list[int]:
    """Return the index in the model of each class of the data.

    The data may have a part of the model's classes, in any order. ImageNet's classes go by their WordNet id, such as
    n01440764, or by an English name, such as tench, on either side.

    Raises:
        DataError: The model names no classes, lacks some of the data, or two of one side are one of the other.
    """
    if not model_classes:
        raise DataError(
            f"{path}: names no classes, so none can be matched by name; name them with weights.classes=FILE, or leave "
            "data.match_classes=exact and give data whose folders are in the order of its outputs"
        )
    indices: dict[str, int] = {}
    for index, name in enumerate(map(canonical, model_classes)):
        if indices.setdefault(name, index) != index:
            raise DataError(
                f"{path}: two of its classes are {name}, in two forms of Unicode, so none of the data can be matched "
                "with them by name"
            )
    data_classes = [canonical(name) for name in data_classes]
    if not indices.keys() >= set(data_classes):
        synonyms = by_name()
        same = {synonyms[plain(name)]: index for name, index in indices.items() if plain(name) in synonyms}
        for name in data_classes:
            if name not in indices and synonyms.get(plain(name)) in same:
                indices[name] = same[synonyms[plain(name)]]
    if missing := [name for name in data_classes if name not in indices]:
        raise DataError(
            f"{path} lacks {len(missing)} of the {len(data_classes)} classes of the data: {few(missing, 10)}"
            f"{why_apart(model_classes, missing)}; rename or remove them there"
        )
    found = [indices[name] for name in data_classes]
    for number, index in enumerate(found):
        if (first := found.index(index)) < number:
            raise DataError(
                f"the classes {data_classes[first]} and {data_classes[number]} of the data are both "
                f"{model_classes[index]} of {path}; put their images into one folder"
            )
    return found


def match_by_order(
    model_classes: Sequence[str], num_classes: int, data_classes: Sequence[str], path: Path | str
) -> str:
    """Say which classes of the data are taken for which of the model's, where their order is to decide.

    Raises:
        DataError: There are more or fewer, or a name that both have stands at another place.
    """
    if len(data_classes) != num_classes:
        raise DataError(
            f"data.match_classes=by-order: {path} has {num_classes} classes and the data {len(data_classes)}; give as "
            "many, or names that data.match_classes=by-name finds"
        )
    model, data = ([canonical(name) for name in names] for names in (model_classes, data_classes))
    places = {name: index for index, name in enumerate(model)}
    for index, name in enumerate(data):
        if places.get(name, index) != index:
            raise DataError(
                f"data.match_classes=by-order: {printable(name)} is index {index} of the data and {places[name]} of "
                f"{path}; set data.match_classes=by-name"
            )
    pairs = enumerate(zip(model, data, strict=False))  # a model without names has none to differ
    different = [
        f"{index} is {printable(one)} there and {printable(two)} here" for index, (one, two) in pairs if one != two
    ]
    if not different:
        return ""
    shown = ", ".join(different[:3])
    return f"{path}: its classes are matched with those of the data by their order: {shown}"


def order_in_doubt(data_classes: Sequence[str], class_order: ClassOrder | None) -> str:
    """Say why the order of the data's classes cannot stand for that of a model without names, or nothing if it can.

    torchvision and MindSpore number folders in the order of text, timm in natural order; no weight file tells which.
    """
    if class_order is not None or (differing := orders_differ(data_classes)) is None:
        return ""
    index, text, natural = differing
    return (
        f"index {index} is {printable(text)} in the order of text, which is torchvision's and MindSpore's, and "
        f"{printable(natural)} in timm's natural order; say which it is with data.class_order=text or natural, or name "
        "the classes with weights.classes=FILE"
    )


def read_class_names(file: str | Path, what: str = "weights.classes") -> tuple[str, ...]:
    """Read names of classes from a text file with a name a line, or from JSON: a list, or names and their indices.

    A line that begins with a WordNet id, as in ImageNet's lists of synsets, is that id.

    Args:
        file: Its ending says whether it is JSON.
        what: What names the file, for messages.

    Raises:
        ConfigError: It cannot be read, names none, a class twice, or indices with gaps.
    """
    path = Path(file).expanduser()
    where = f"{what} {printable(path)}"
    try:
        if odd := no_file(path):  # which might block whoever opens it
            raise ConfigError(f"{where}: is {odd}, no regular file; write the names to a file")
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); give a text file with a name a line") from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{where}: has over {MOST_BYTES >> 20} MiB, so it is no file of names")
    names = _in_json(text, where) if path.suffix.lower() == ".json" else _in_lines(text)
    names = [canonical(name) for name in names]
    if not names:
        raise ConfigError(f"{where}: names no class; write a name a line")
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if not name or not name.isprintable():
            raise ConfigError(f"{where}: class {number} is {brief(name)}; a name has characters that can be printed")
        if len(name) > MAX_NAME:
            raise ConfigError(f"{where}: class {number} has {len(name):,} letters; a name has {MAX_NAME:,} at most")
        if (first := seen.setdefault(name, number)) < number:
            raise ConfigError(f"{where}: classes {first} and {number} are both {name}; each name stands for one output")
    return tuple(names)


def _in_lines(text: str) -> list[str]:
    lines = text.strip().splitlines()
    if all(WNID.match(line) for line in lines):
        return [line[:9] for line in lines]
    return [line.strip() for line in lines]


def _in_json(text: str, where: str) -> list[str]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no JSON ({error})") from error
    if isinstance(found, dict) and found:
        count = len(found)
        if all(isinstance(value, int) and not isinstance(value, bool) for value in found.values()):
            found = {str(index): name for name, index in found.items()}  # as torchvision's class_to_idx
        found = [found.get(str(index)) for index in range(count)]
    if isinstance(found, list):  # Keras' class_index has [id, name]
        found = [value[0] if isinstance(value, list) and value else value for value in found]
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise ConfigError(
            f'{where}: is neither a list of names nor names by their index from 0 on, such as {{"0": "cat"}}'
        )
    return found
