"""What may be the name of a class where it stands in a table, and in which order classes come."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

BETWEEN = "|"
"""Stands between the classes of an image in a CSV file, so in the name of none."""
LONGEST = 1000
"""Characters of a name; of longer ones, none was meant to be one."""


def check_name(value: Any, where: str) -> str:
    """Return the name of a class, without blanks around it.

    Raises:
        DataError: It is neither text nor a whole number, is empty, or has a character that a name cannot have.
    """
    is_name = isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())
    name = str(value).strip() if is_name and not isinstance(value, bool) else None
    if name and len(name) > LONGEST:
        raise DataError(
            f"{where}: has a label of {len(name):,} characters, {name[:20]!r} and so on; at most {LONGEST:,} are taken"
        )
    if not name:
        raise DataError(f"{where}: has {'an empty label' if name == '' else f'the label {value!r}'}; it must be text")
    if not name.isprintable():
        raise DataError(f"{where}: the label {name!r} holds a character that cannot be printed")
    if BETWEEN in name:
        raise DataError(
            f"{where}: the label {name!r} holds {BETWEEN!r}, which stands between classes where an image has several "
            "(data.labels_column=COLUMN)"
        )
    return name


def are_whole_numbers(names: Sequence[str]) -> bool:
    """Say whether all are whole numbers as people write them."""
    return all(re.fullmatch(r"0|-?[1-9][0-9]*", name) for name in names)


def without_points(names: Sequence[str]) -> dict[str, str]:
    """Return the whole number that each name is, where all are and some have a point, as pandas writes 1.0; else none.

    So it writes a column of whole numbers in which a cell is missing.
    """
    found = {name: re.fullmatch(r"(0|-?[1-9][0-9]*)(\.0+)?", name) for name in names}
    if not all(found.values()) or are_whole_numbers(names):
        return {}
    return {name: number[1] for name, number in found.items() if number}


def order(names: Sequence[str]) -> NDArray[np.int64]:
    """Return the classes sorted: whole numbers as such, where all are."""
    numbers = list(map(int, names)) if are_whole_numbers(names) else []
    return np.array(sorted(range(len(names)), key=(numbers or names).__getitem__), np.int64)
