"""Match class names: a model's with a data set's, by exact order, by name or by index, or names read from a file."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any, get_args

from vitrail.classes.names import (
    ClassOrder,
    canonical,
    explain_look_alikes,
    find_order_difference,
    sort_classes,
)
from vitrail.errors import ConfigError, DataError, list_some, printable, shorten, tell_syntax
from vitrail.files import no_file
from vitrail.imagenet import index_by_name, normalise_name

MAX_NAME = 1000
"""Largest number of characters of a class name in a file of names."""
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
    model, data = list(map(canonical, model_classes)), list(map(canonical, data_classes))
    if model == data:
        return
    orders = {}
    for kind in get_args(ClassOrder):
        orders[kind] = [data[index] for index in sort_classes(data, kind)]
    # data in neither order has one that somebody has declared, and keeps it
    if data in orders.values():
        for kind, names in orders.items():
            if names == model:
                advice += f", or set data.class_order={kind}"
    rows = []
    for index, (ours, theirs) in enumerate(zip_longest(model, data, fillvalue="-")):
        if ours != theirs:
            rows.append(f"{index}: {ours} / {theirs}")
    raise DataError(
        f"the classes of {path} ({len(model)}) are not those of the data ({len(data)}); "
        "differences, as index: model / data = "
        f"{'; '.join(rows[:3])}{explain_look_alikes(model, data)}; {advice}"
    )


def match_by_name(
    model_classes: Sequence[str], data_classes: Sequence[str], path: Path | str
) -> list[int]:
    """Return the index in the model of each class of the data.

    The data may have some of the model's classes, in any order. ImageNet's classes go by their
    WordNet id, such as n01440764, or by an English name, such as tench, on either side.

    Raises:
        DataError: The model names no classes, lacks some of the data, or two of one side are one of
            the other.
    """
    if not model_classes:
        raise DataError(
            f"{path}: names no classes, so none can be matched by name; name them with "
            "weights.classes=FILE, or leave "
            "data.match_classes=exact and give data whose folders are in the order of its outputs"
        )
    indices = _index_classes(model_classes, path)
    data_classes = list(map(canonical, data_classes))
    if not indices.keys() >= set(data_classes):
        indices = _add_synonyms(indices, data_classes)
    missing = [name for name in data_classes if name not in indices]
    if missing:
        raise DataError(
            f"{path} lacks {len(missing)} of the {len(data_classes)} classes of the data: "
            f"{list_some(missing, 10)}"
            f"{explain_look_alikes(model_classes, missing)}; rename or remove them there"
        )
    matched = [indices[name] for name in data_classes]
    for number, index in enumerate(matched):
        first = matched.index(index)
        if first < number:
            raise DataError(
                f"the classes {data_classes[first]} and {data_classes[number]} of the data are "
                f"both {model_classes[index]} of {path}; put their images into one folder"
            )
    return matched


def _index_classes(model_classes: Sequence[str], path: Path | str) -> dict[str, int]:
    """Return the index of each of a model's classes by its name in Unicode's composed form."""
    indices: dict[str, int] = {}
    for index, name in enumerate(map(canonical, model_classes)):
        if name in indices:
            raise DataError(
                f"{path}: two of its classes are {name}, in two forms of Unicode, so none of the "
                "data can be matched with them by name"
            )
        indices[name] = index
    return indices


def _add_synonyms(indices: dict[str, int], data_classes: Sequence[str]) -> dict[str, int]:
    """Return the indices with those of the data's names that are another name of a model's class in ImageNet."""
    imagenet = index_by_name()
    by_imagenet_class = {}
    for name, index in indices.items():
        imagenet_class = imagenet.get(normalise_name(name))
        if imagenet_class is not None:
            by_imagenet_class[imagenet_class] = index
    with_synonyms = dict(indices)
    for name in data_classes:
        imagenet_class = imagenet.get(normalise_name(name))
        if name not in indices and imagenet_class in by_imagenet_class:
            with_synonyms[name] = by_imagenet_class[imagenet_class]
    return with_synonyms


def match_by_order(
    model_classes: Sequence[str], num_classes: int, data_classes: Sequence[str], path: Path | str
) -> str:
    """Say which classes of the data are taken for which of the model's, where their order is to decide.

    Raises:
        DataError: There are more or fewer, or a name that both have stands at another place.
    """
    if len(data_classes) != num_classes:
        raise DataError(
            f"data.match_classes=by-order: {path} has {num_classes} classes and the data "
            f"{len(data_classes)}; give as many, or names that data.match_classes=by-name finds"
        )
    model, data = list(map(canonical, model_classes)), list(map(canonical, data_classes))
    places = {name: index for index, name in enumerate(model)}
    for index, name in enumerate(data):
        if places.get(name, index) != index:
            raise DataError(
                f"data.match_classes=by-order: {printable(name)} is index {index} of the data and "
                f"{places[name]} of {path}; set data.match_classes=by-name"
            )
    # a model without names has none to differ
    pairs = enumerate(zip(model, data, strict=False))
    different = []
    for index, (theirs, ours) in pairs:
        if theirs != ours:
            different.append(f"{index} is {printable(theirs)} there and {printable(ours)} here")
    if not different:
        return ""
    examples = ", ".join(different[:3])
    return f"{path}: its classes are matched with those of the data by their order: {examples}"


def find_order_doubt(data_classes: Sequence[str], class_order: ClassOrder | None) -> str:
    """Say why the order of the data's classes cannot stand for that of a model without names, or nothing if it can.

    torchvision and MindSpore number folders in the order of text, timm in natural order; no weight
    file tells which.
    """
    if class_order is not None:
        return ""
    difference = find_order_difference(data_classes)
    if difference is None:
        return ""
    index, text, natural = difference
    return (
        f"index {index} is {printable(text)} in the order of text, which is torchvision's and "
        f"MindSpore's, and {printable(natural)} in timm's natural order; say which it is with "
        "data.class_order=text or natural, or name the classes with weights.classes=FILE"
    )


def read_class_names(file: str | Path, what: str = "weights.classes") -> tuple[str, ...]:
    """Read names of classes from a text file with a name a line, or from JSON: a list, or names and their indices.

    A line that begins with a WordNet id, as in ImageNet's lists of synsets, is that id.

    Args:
        file: A text file, or JSON where its name ends so.
        what: Setting or flag that names the file, for messages.

    Raises:
        ConfigError: It cannot be read, names none, a class twice, or indices with gaps.
    """
    path = Path(file).expanduser()
    where = f"{what} {printable(path)}"
    text = _read_text(path, where)
    is_json = path.suffix.lower() == ".json"
    names = _parse_json(text, where) if is_json else _parse_lines(text)
    names = list(map(canonical, names))
    if not names:
        raise ConfigError(f"{where}: names no class; write a name a line")
    seen: dict[str, int] = {}
    for number, name in enumerate(names):
        if not name or not name.isprintable():
            raise ConfigError(
                f"{where}: class {number} is {shorten(name)}; a name has characters that can be "
                "printed"
            )
        if len(name) > MAX_NAME:
            raise ConfigError(
                f"{where}: class {number} has {len(name):,} letters; a name has {MAX_NAME:,} at "
                "most"
            )
        first = seen.setdefault(name, number)
        if first < number:
            raise ConfigError(
                f"{where}: classes {first} and {number} are both {name}; each name stands for one "
                "output"
            )
    return tuple(names)


def _read_text(path: Path, where: str) -> str:
    """Return the text of a regular file of bounded size."""
    try:
        odd = no_file(path)
        if odd:  # opening a pipe would wait for whoever writes to it
            raise ConfigError(f"{where}: is {odd}, no regular file; write the names to a file")
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise ConfigError(
            f"{where}: cannot be read ({error.strerror}); give a text file with a name a line"
        ) from error
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{where}: has over {MOST_BYTES >> 20} MiB, so it is no file of names")
    return text


def _parse_lines(text: str) -> list[str]:
    """Return the name on each line; of ImageNet's lists of synsets, the id that begins it."""
    lines = text.strip().splitlines()
    if all(map(WNID.match, lines)):
        return [line[:9] for line in lines]
    return list(map(str.strip, lines))


def _parse_json(text: str, where: str) -> list[str]:
    """Return the names of a JSON list, or of a JSON object that has them by index or the indices by name."""
    try:
        content: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: is no JSON ({tell_syntax(error)})") from error
    if isinstance(content, dict) and content:
        content = _sort_by_index(content)
    if isinstance(content, list):
        content = list(map(_unwrap_keras, content))
    if not isinstance(content, list) or not all(isinstance(name, str) for name in content):
        raise ConfigError(
            f'{where}: is neither a list of names nor names by their index from 0 on, such as {{"0": "cat"}}'
        )
    return content


def _sort_by_index(content: dict[str, Any]) -> list[Any]:
    """Return the names of an object in the order of their indices, with None where an index is missing."""
    by_index = content
    # torchvision's class_to_idx has the indices by name
    if all(isinstance(value, int) and not isinstance(value, bool) for value in content.values()):
        by_index = {str(index): name for name, index in content.items()}
    return [by_index.get(str(index)) for index in range(len(content))]


def _unwrap_keras(value: Any) -> Any:
    """Return the id of a pair [id, name], as Keras' class_index has them."""
    if isinstance(value, list) and value:
        return value[0]
    return value
