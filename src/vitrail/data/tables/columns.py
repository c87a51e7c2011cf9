"""Columns of a table: which ones hold images and labels, the class names, and the labels as numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.classes.names import (
    ClassOrder,
    are_whole_numbers,
    canonical,
    check_name,
    explain_look_alikes,
    sort_classes,
    strip_points,
)
from vitrail.errors import ConfigError, DataError, list_some, suggest

LABEL_NAMES = ("label", "labels", "fine_label", "class", "category", "target")
"""Names of columns of text or numbers that are taken for labels where none is declared to be."""

IsKind = Callable[[str, Any], bool]
"""Says whether a column, by its name and its type, may be of a kind."""


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
        image_column: Setting `data.image_column`.
        label_column: Setting `data.label_column`.
        labels_column: Setting `data.labels_column`.

    Raises:
        ConfigError: There is none, there are several, or the one that is given is no such column.
    """
    columns = _Columns(features, where)
    image = columns.find("images", "image_column", image_column, IMAGE_KINDS)
    if labels_column is not None:
        kinds = [*LIST_KINDS, lambda _, feature: _is_name_or_number(item_type(feature))]
        return image, columns.find("lists of labels", "labels_column", labels_column, kinds)
    if label_column is not None:
        kinds = [*LABEL_KINDS, lambda _, feature: _is_name_or_number(feature)]
        return image, columns.find("labels", "label_column", label_column, kinds)
    columns.refuse_both_kinds()
    return image, columns.find("labels", "label_column", None, [*LABEL_KINDS, *LIST_KINDS])


def _is_label_by_name(name: str, feature: Any) -> bool:
    return name in LABEL_NAMES and _is_name_or_number(feature)


def _is_label_list_by_name(name: str, feature: Any) -> bool:
    return name in LABEL_NAMES and _is_name_or_number(item_type(feature))


IMAGE_KINDS: list[IsKind] = [
    lambda _, feature: _type(feature) == "Image",
    lambda _, feature: isinstance(feature, Mapping) and "bytes" in feature,
    lambda _, feature: _dtype(feature) in ("binary", "large_binary"),
]
"""Kinds of columns that may hold images, the surest first."""
LABEL_KINDS: list[IsKind] = [lambda _, feature: _type(feature) == "ClassLabel", _is_label_by_name]
"""Kinds of columns that may hold one label an image, the surest first."""
LIST_KINDS: list[IsKind] = [
    lambda _, feature: _type(item_type(feature)) == "ClassLabel",
    _is_label_list_by_name,
]
"""Kinds of columns that may hold lists of labels, the surest first."""


@dataclass(frozen=True)
class _Columns:
    """The columns of a data set, and errors that name it."""

    features: Mapping[str, Any]
    """Type of each column, as `datasets` has them."""
    where: str
    """The data set, for errors."""

    def __str__(self) -> str:
        """List the columns with their types."""
        return ", ".join(
            f"{name} ({_describe(feature)})" for name, feature in self.features.items()
        )

    def find(self, what: str, setting: str, given: str | None, kinds: Sequence[IsKind]) -> str:
        """Return the column that is given, or the only one of the first kind that there is.

        Args:
            what: What the column holds, for errors.
            setting: Name of the setting that gives the column.
            given: The column that is given.
            kinds: Kinds of columns that are looked for, the surest first.
        """
        if given is not None:
            self._check_given(what, setting, given, kinds)
            return given
        for is_kind in kinds:
            candidates = [name for name, feature in self.features.items() if is_kind(name, feature)]
            if len(candidates) == 1:
                return candidates[0]
            if candidates:
                raise ConfigError(
                    f"{self.where}: {' and '.join(candidates)} could all be the column of {what}; "
                    f"set data.{setting} to one of them; its columns: {self}"
                )
        advice = f"set data.{setting}"
        if setting == "label_column":
            advice += " (one class an image) or data.labels_column (lists of them), of text or whole numbers"
        raise ConfigError(
            f"{self.where}: no column can be told to hold {what}; {advice}; its columns: {self}"
        )

    def _check_given(self, what: str, setting: str, given: str, kinds: Sequence[IsKind]) -> None:
        """Refuse a column that is given, where it is not there or of another kind."""
        if given not in self.features:
            raise ConfigError(
                f"data.{setting} {given!r}: {self.where} has no such "
                f"column{suggest(given, self.features) or ';'} its columns: {self}"
            )
        feature = self.features[given]
        if any(is_kind(given, feature) for is_kind in kinds):
            return
        hint = ""
        if setting == "label_column" and item_type(feature) is not None:
            hint = f"for several classes an image, set data.labels_column={given}; "
        elif setting != "image_column":
            hint = "labels are text or whole numbers; "
        raise ConfigError(
            f"data.{setting} {given!r}: {self.where} has no {what} there; {hint}its columns: {self}"
        )

    def refuse_both_kinds(self) -> None:
        """Refuse to choose between a column of labels and one of lists, both taken by their names."""
        features = self.features
        named = [name for name in LABEL_NAMES if name in features]
        one = [name for name in named if _is_label_by_name(name, features[name])]
        lists = [name for name in named if _is_label_list_by_name(name, features[name])]
        if one and lists:
            raise ConfigError(
                f"{self.where}: has a column {one[0]!r} and lists in {lists[0]!r}; choose with "
                f"data.label_column={one[0]} (one class an image) or data.labels_column={lists[0]} "
                "(several)"
            )


def item_type(feature: Any) -> Any:
    """Return the type of the items of a column of lists, as `datasets` has it; None for other columns."""
    if _type(feature) in ("List", "LargeList"):
        return feature.feature
    return None


def read_class_names(
    feature: Any, values: Any, where: str, class_order: ClassOrder | None = None
) -> tuple[str, ...]:
    """Return the class names of a column of labels: the declared ones, or else its different values in order.

    Args:
        feature: Type of the column, as `datasets` has it.
        values: The column, as an Arrow array.
        where: Data set and column, for errors.
        class_order: Order of names that are not declared.

    Raises:
        DataError: A name is empty, or holds what no name may; or is declared twice, in two forms of
            Unicode.
    """
    if _type(feature) == "ClassLabel":
        return _declared_names(feature, where)
    present = [value for value in values.unique().to_pylist() if not _is_missing(value)]
    names = list(dict.fromkeys(check_name(value, where) for value in present))
    whole_numbers = strip_points(names)
    if whole_numbers:
        names = list(dict.fromkeys(whole_numbers.values()))
    return tuple(names[index] for index in sort_classes(names, class_order))


def _declared_names(feature: Any, where: str) -> tuple[str, ...]:
    for name in feature.names:
        check_name(name, where)
    declared = tuple(map(canonical, feature.names))
    if len(set(declared)) < len(declared):
        twice = next(name for number, name in enumerate(declared) if name in declared[:number])
        raise DataError(
            f"{where}: declares the class {twice!r} twice, in two forms of Unicode; rename one"
        )
    return declared


def read_labels(
    feature: Any,
    values: Any,
    classes: tuple[str, ...],
    where: str,
    unit: str = "rows have no label",
) -> NDArray[np.int32]:
    """Return each row's class.

    Args:
        feature: Type of the column, as `datasets` has it.
        values: The column, as an Arrow array.
        classes: The class names, from `read_class_names`.
        where: Data set, split and column, for errors.
        unit: Words for values that are missing, in errors.

    Raises:
        DataError: Rows have no label, or one that is no class.
    """
    encoded = values.dictionary_encode().unify_dictionaries()
    known: list[Any] = encoded.chunk(0).dictionary.to_pylist() if encoded.num_chunks else []
    # the label of each different value, and -1 behind them for null
    label_of = np.full(len(known) + 1, -1, np.int32)
    numbers = {name: index for index, name in enumerate(classes)}
    is_declared = _type(feature) == "ClassLabel"
    are_whole = are_whole_numbers(classes)
    strange = []
    for code, value in enumerate(known):
        if _is_missing(value):
            continue
        if is_declared and isinstance(value, int):
            label = value if value < len(classes) else -1
        else:
            label = _label_of_name(str(value), numbers, are_whole)
        label_of[code] = label
        if label < 0:
            strange.append(str(value))
    if strange:
        raise DataError(
            f"{where}: has {len(strange)} labels that are no class of the training images: "
            f"{list_some(strange)}{explain_look_alikes(strange, classes)}"
        )
    codes = [
        chunk.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
        for chunk in encoded.chunks
    ]
    labels = label_of[np.concatenate(codes)] if codes else label_of[:0]
    missing = int((labels < 0).sum())
    if missing:
        raise DataError(
            f"{where}: {missing:,} of {len(labels):,} {unit} (-1 or null), as test sets often do; "
            "name another split"
        )
    return labels


def _label_of_name(value: str, numbers: Mapping[str, int], are_whole: bool) -> int:
    """Return the label of a class name, -1 where there is no such class.

    Args:
        value: The name as it is written.
        numbers: Label of each class.
        are_whole: Whether all class names are whole numbers, so that 1.0 is read as 1.
    """
    name = canonical(value)
    # a declared name may have blanks around it
    stripped = name.strip()
    if are_whole:
        name = strip_points([stripped]).get(stripped, name)
    return numbers.get(name, numbers.get(name.strip(), -1))


def read_label_lists(
    feature: Any,
    values: Any,
    lengths: NDArray[np.integer[Any]],
    classes: tuple[str, ...],
    where: str,
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return each row's label, and which classes each label stands for: (m, k), for m labels and k classes.

    Args:
        feature: Type of the lists' items.
        values: Items of all lists, one after the other, as an Arrow array.
        lengths: Length of each row's list, -1 where there is none.
        classes: The class names, from `read_class_names`.
        where: Data set, split and column, for errors.

    Raises:
        DataError: Rows have no list, which is not the same as an empty one, a class twice, or a
            label that is no class.
    """
    missing = int((lengths < 0).sum())
    if missing:
        raise DataError(
            f"{where}: {missing:,} of {len(lengths):,} rows have no list; an empty one is no class"
        )
    labels = read_labels(feature, values, classes, where, "labels in its lists name no class")
    has = np.zeros((len(lengths), len(classes)), np.bool_)
    has[np.repeat(np.arange(len(lengths)), lengths), labels] = True
    twice = int((has.sum(1) < lengths).sum())
    if twice:
        raise DataError(
            f"{where}: {twice:,} of {len(lengths):,} rows name a class twice, as 0 and 1 for each "
            "class would; a list has the classes of its image, each once"
        )
    sets, numbers = np.unique(has, axis=0, return_inverse=True)
    return numbers.astype(np.int32), sets


def are_numbers(feature: Any) -> bool:
    """Say whether a column's labels are numbers that nothing gives names to."""
    return str(_dtype(feature)).startswith(("int", "uint"))


def find_pointed_label(feature: Any, values: Any, classes: tuple[str, ...]) -> str | None:
    """Return a label such as 1.0 that stands for class 1, if there is one."""
    if _type(feature) == "ClassLabel" or are_numbers(feature) or not are_whole_numbers(classes):
        return None
    for value in values.unique().to_pylist():
        if value and "." in value:
            return value
    return None


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value < 0)


def _is_name_or_number(feature: Any) -> bool:
    return _dtype(feature) in ("string", "large_string") or are_numbers(feature)


def _describe(feature: Any) -> str:
    """Return the type of a column in words."""
    if _type(feature) == "ClassLabel":
        return f"ClassLabel of {feature.num_classes}"
    items = item_type(feature)
    if items is not None:
        return f"list of {_describe(items)}"
    if isinstance(feature, Mapping):
        return f"struct of {', '.join(feature)}"
    return _dtype(feature) if _type(feature) == "Value" else _type(feature)


def _type(feature: Any) -> str:
    return type(feature).__name__


def _dtype(feature: Any) -> Any:
    return feature.dtype if _type(feature) == "Value" else None
