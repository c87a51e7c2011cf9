"""Which columns of a table hold images and labels, and what the labels are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.classes.names import ClassOrder, are_whole_numbers, canonical, check_name, order, why_apart, without_points
from vitrail.errors import ConfigError, DataError, closest, few

LABEL_NAMES = ("label", "labels", "fine_label", "class", "category", "target")
"""Columns of names or numbers that are taken for labels where none is declared to be."""


def find_columns(
    features: Mapping[str, Any],
    where: str,
    image_column: str | None,
    label_column: str | None,
    labels_column: str | None = None,
) -> tuple[str, str]:
    """Return the columns of images and of labels, given or the only ones that can be.

    Lists of labels are looked for where there is no column of one label.

    Args:
        features: Type of each column, as `datasets` has them.
        where: The data set, for errors.
        image_column: As `data.image_column`.
        label_column: As `data.label_column`.
        labels_column: As `data.labels_column`.

    Raises:
        ConfigError: There is none, there are several, or the one that is given is no such column.
    """
    columns = ", ".join(f"{name} ({_described(feature)})" for name, feature in features.items())

    def find(what: str, setting: str, given: str | None, kinds: list[Callable[[str, Any], bool]]) -> str:
        if given is not None:
            if given not in features:
                raise ConfigError(
                    f"data.{setting} {given!r}: {where} has no such column{closest(given, features) or ';'} "
                    f"its columns: {columns}"
                )
            if not any(is_kind(given, features[given]) for is_kind in kinds):
                several = setting == "label_column" and item_type(features[given]) is not None
                hint = f"for several classes an image, set data.labels_column={given}; " if several else ""
                if setting != "image_column" and not several:
                    hint = "labels are text or whole numbers; "
                raise ConfigError(
                    f"data.{setting} {given!r}: {where} has no {what} there; {hint}its columns: {columns}"
                )
            return given
        for is_kind in kinds:
            found = [name for name, feature in features.items() if is_kind(name, feature)]
            if len(found) == 1:
                return found[0]
            if found:
                raise ConfigError(
                    f"{where}: {' and '.join(found)} could all be the column of {what}; set data.{setting} to one of "
                    f"them; its columns: {columns}"
                )
        advice = f"set data.{setting}"
        if setting == "label_column":
            advice += " (one class an image) or data.labels_column (lists of them), of text or whole numbers"
        raise ConfigError(f"{where}: no column can be told to hold {what}; {advice}; its columns: {columns}")

    images = [
        lambda _, feature: _type(feature) == "Image",
        lambda _, feature: isinstance(feature, Mapping) and "bytes" in feature,
        lambda _, feature: _dtype(feature) in ("binary", "large_binary"),
    ]
    labels = [
        lambda _, feature: _type(feature) == "ClassLabel",
        lambda name, feature: name in LABEL_NAMES and _is_name_or_number(feature),
    ]
    lists = [
        lambda _, feature: _type(item_type(feature)) == "ClassLabel",
        lambda name, feature: name in LABEL_NAMES and _is_name_or_number(item_type(feature)),
    ]
    image = find("images", "image_column", image_column, images)
    if labels_column is not None:
        lists.append(lambda _, feature: _is_name_or_number(item_type(feature)))
        return image, find("lists of labels", "labels_column", labels_column, lists)
    if label_column is not None:
        labels.append(lambda _, feature: _is_name_or_number(feature))
    else:
        one, several = (
            [name for name in LABEL_NAMES if name in features and is_kind(name, features[name])]
            for is_kind in (labels[1], lists[1])
        )
        if one and several:
            raise ConfigError(
                f"{where}: has a column {one[0]!r} and lists in {several[0]!r}; choose with data.label_column={one[0]} "
                f"(one class an image) or data.labels_column={several[0]} (several)"
            )
        labels += lists
    return image, find("labels", "label_column", label_column, labels)


def item_type(feature: Any) -> Any:
    """Return the type of what a column has lists of, as `datasets` has it; None where it has none."""
    return feature.feature if _type(feature) in ("List", "LargeList") else None


def class_names(feature: Any, values: Any, where: str, class_order: ClassOrder | None = None) -> tuple[str, ...]:
    """Return the names of a column's classes: as they are declared, or else its different values in order.

    Args:
        feature: Type of the column, as `datasets` has it.
        values: The column, as an Arrow array.
        where: Data set and column, for errors.
        class_order: Of names that are not declared.

    Raises:
        DataError: A name is empty, or holds what no name may; or is declared twice, in two forms of Unicode.
    """
    if _type(feature) == "ClassLabel":
        for name in feature.names:
            check_name(name, where)
        declared = tuple(map(canonical, feature.names))
        if len(set(declared)) < len(declared):
            twice = next(name for number, name in enumerate(declared) if name in declared[:number])
            raise DataError(f"{where}: declares the class {twice!r} twice, in two forms of Unicode; rename one")
        return declared
    found = [value for value in values.unique().to_pylist() if not _is_missing(value)]
    names = list(dict.fromkeys(check_name(value, where) for value in found))
    if whole := without_points(names):
        names = list(dict.fromkeys(whole.values()))
    return tuple(names[index] for index in order(names, class_order))


def read_labels(
    feature: Any, values: Any, classes: tuple[str, ...], where: str, unit: str = "rows have no label"
) -> NDArray[np.int32]:
    """Return each row's class.

    Args:
        feature: Type of the column, as `datasets` has it.
        values: The column, as an Arrow array.
        classes: As `class_names` gives them.
        where: Data set, split and column, for errors.
        unit: What is said of values that are missing.

    Raises:
        DataError: Rows have no label, or one that is no class.
    """
    encoded = values.dictionary_encode().unify_dictionaries()
    known: list[Any] = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
    number = {name: index for index, name in enumerate(classes)}
    by_number, are_whole = _type(feature) == "ClassLabel", are_whole_numbers(classes)
    found, strange = np.full(len(known) + 1, -1, np.int32), []
    for place, value in enumerate(known):
        if _is_missing(value):
            continue
        if by_number and isinstance(value, int):
            found[place] = value if value < len(classes) else -1
        else:
            # a declared name may have blanks around it
            name = canonical(str(value))
            if are_whole:
                name = without_points([name.strip()]).get(name.strip(), name)
            found[place] = number.get(name, number.get(name.strip(), -1))
        if found[place] < 0:
            strange.append(str(value))
    if strange:
        raise DataError(
            f"{where}: has {len(strange)} labels that are no class of the training images: {few(strange)}"
            f"{why_apart(strange, classes)}"
        )
    codes = [chunk.indices.fill_null(len(known)).to_numpy(zero_copy_only=False) for chunk in encoded.chunks]
    labels = found[np.concatenate(codes)] if codes else found[:0]
    missing = int((labels < 0).sum())
    if missing:
        raise DataError(
            f"{where}: {missing:,} of {len(labels):,} {unit} (-1 or null), as test sets often do; name another split"
        )
    return labels


def read_label_lists(
    feature: Any, values: Any, lengths: NDArray[np.integer[Any]], classes: tuple[str, ...], where: str
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return each row's label, and which classes each label stands for.

    Args:
        feature: Type of what the lists hold.
        values: What all lists hold, one after the other, as an Arrow array.
        lengths: Of the lists, -1 where there is none.
        classes: As `class_names` gives them.
        where: Data set, split and column, for errors.

    Raises:
        DataError: Rows have no list, which is not the same as an empty one, a class twice, or a label that is no class.
    """
    if missing := int((lengths < 0).sum()):
        raise DataError(f"{where}: {missing:,} of {len(lengths):,} rows have no list; an empty one is no class")
    labels = read_labels(feature, values, classes, where, "labels in its lists name no class")
    has = np.zeros((len(lengths), len(classes)), np.bool_)
    has[np.repeat(np.arange(len(lengths)), lengths), labels] = True
    if twice := int((has.sum(1) < lengths).sum()):
        raise DataError(
            f"{where}: {twice:,} of {len(lengths):,} rows name a class twice, as 0 and 1 for each class would; a list "
            "has the classes of its image, each once"
        )
    sets, numbers = np.unique(has, axis=0, return_inverse=True)
    return numbers.astype(np.int32), sets


def are_numbers(feature: Any) -> bool:
    """Say whether a column's labels are numbers that nothing gives names to."""
    return str(_dtype(feature)).startswith(("int", "uint"))


def pointed_label(feature: Any, values: Any, classes: tuple[str, ...]) -> str | None:
    """Return a label such as 1.0 that stands for class 1, if there is one."""
    if _type(feature) == "ClassLabel" or are_numbers(feature) or not are_whole_numbers(classes):
        return None
    return next((value for value in values.unique().to_pylist() if value and "." in value), None)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value < 0)


def _is_name_or_number(feature: Any) -> bool:
    return _dtype(feature) in ("string", "large_string") or are_numbers(feature)


def _described(feature: Any) -> str:
    if _type(feature) == "ClassLabel":
        return f"ClassLabel of {feature.num_classes}"
    if (items := item_type(feature)) is not None:
        return f"list of {_described(items)}"
    if isinstance(feature, Mapping):
        return f"struct of {', '.join(feature)}"
    return _dtype(feature) if _type(feature) == "Value" else _type(feature)


def _type(feature: Any) -> str:
    return type(feature).__name__


def _dtype(feature: Any) -> Any:
    return feature.dtype if _type(feature) == "Value" else None
