"""Class names: what may be one, when two are one name or look alike, and the order in which classes are numbered."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

BETWEEN = "|"
"""Separator of the classes of an image in a CSV file, which is therefore part of no name."""
LONGEST = 1000
"""Largest number of characters of a name; longer text was not meant to be one."""
ClassOrder = Literal["text", "natural"]

# Names


def check_name(value: Any, where: str) -> str:
    """Return the name of a class, without blanks around it and in Unicode's composed form.

    Raises:
        DataError: It is neither text nor a whole number, is empty, or has a character that a name
            cannot have.
    """
    name = _read_name(value)
    if name == "":
        raise DataError(f"{where}: has an empty label; it must be text")
    if name is None:
        raise DataError(f"{where}: has the label {value!r}; it must be text")
    if len(name) > LONGEST:
        raise DataError(
            f"{where}: has a label of {len(name):,} characters, {name[:20]!r} and so on; at most "
            f"{LONGEST:,} are taken"
        )
    if not name.isprintable():
        raise DataError(f"{where}: the label {name!r} holds a character that cannot be printed")
    if BETWEEN in name:
        raise DataError(
            f"{where}: the label {name!r} holds {BETWEEN!r}, which stands between classes where an "
            "image has several (data.labels_column=COLUMN)"
        )
    return name


def _read_name(value: Any) -> str | None:
    """Return text and whole numbers as text, and None for all else; truth values are whole numbers to isinstance."""
    is_text_or_number = isinstance(value, str | int) and not isinstance(value, bool)
    is_whole = isinstance(value, float) and value.is_integer()
    if not is_text_or_number and not is_whole:
        return None
    return canonical(str(value).strip())


def canonical(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which every name of a class is kept and compared.

    macOS writes an e with an accent as two characters, where most other systems have one.
    """
    return unicodedata.normalize("NFC", name)


# Names that look alike


def quote_name(name: str) -> str:
    """Return a name in quotes, with escapes for the characters that look like others or like nothing."""
    characters = []
    for character in name:
        if _is_plain(character):
            characters.append(character)
        else:
            characters.append(ascii(character)[1:-1])
    return f"'{''.join(characters)}'"


def find_look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ only by case, by blanks or by characters that look the same."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_as_seen(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def tell_look_alikes(names: Iterable[str]) -> str:
    """Say which names look alike and are different classes all the same; nothing where none do."""
    groups = find_look_alikes(names)
    if not groups:
        return ""
    examples = ", ".join(" and ".join(map(quote_name, group)) for group in groups[:3])
    return (
        f"{len(groups)} classes have names that look alike, and are different classes all the "
        f"same: {examples}; if they are meant to be one, give them one name"
    )


def explain_look_alikes(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """Return a clause on names that only one side has each and that look alike, or nothing where none do."""
    ours = set(ours)
    theirs = set(theirs)
    pairs = []
    for group in find_look_alikes(sorted(ours ^ theirs)):
        for name in group:
            for other in group:
                if name in ours and other in theirs:
                    pairs.append(f"{quote_name(name)} and {quote_name(other)}")
    if not pairs:
        return ""
    return f"; {', '.join(pairs[:3])} look alike, but differ in case, blanks or characters"


def _as_seen(name: str) -> str:
    """Return a name without the differences that are easily overlooked."""
    name = unicodedata.normalize("NFKC", name).casefold()
    # Cf are characters without a width, such as the zero-width space
    visible_characters = [c for c in name if unicodedata.category(c) != "Cf"]
    return " ".join("".join(visible_characters).split())


def _is_plain(character: str) -> bool:
    """Tell whether a character looks like no other and is seen."""
    if character == " ":
        return True
    is_own_form = unicodedata.normalize("NFKC", character) == character
    return character.isprintable() and not unicodedata.combining(character) and is_own_form


# Numbers as names


def are_whole_numbers(names: Sequence[str]) -> bool:
    """Tell whether all names are whole numbers as people write them."""
    return all(re.fullmatch(r"0|-?[1-9][0-9]*", name) for name in names)


def strip_points(names: Sequence[str]) -> dict[str, str]:
    """Return the whole number that each name is, where all are and some have a point (1.0); else nothing.

    pandas writes a column of whole numbers so when a cell is missing.
    """
    if are_whole_numbers(names):
        return {}
    numbers = {}
    for name in names:
        number = re.fullmatch(r"(0|-?[1-9][0-9]*)(\.0+)?", name)
        if number is None:
            return {}
        numbers[name] = number[1]
    return numbers


# Order


def find_decimal_comma(names: Sequence[str]) -> str:
    """Return a name that is a number with a decimal comma, where all names are numbers; else nothing."""
    if not all(re.fullmatch(r"-?[0-9]+([.,][0-9]+)?", name) for name in names):
        return ""
    return next((name for name in names if "," in name), "")


def sort_classes(names: Sequence[str], class_order: ClassOrder | None = None) -> NDArray[np.int64]:
    """Return the indices that sort the classes.

    Args:
        names: Names of the classes.
        class_order: Order to sort by; None sorts whole numbers as numbers, where all are, and
            others as text.
    """
    keys: Sequence[Any] = names
    if class_order == "natural":
        # names that natural order takes for equal are sorted as text
        keys = [(natural_key(name), name) for name in names]
    elif class_order is None and are_whole_numbers(names):
        keys = list(map(int, names))
    return np.array(sorted(range(len(names)), key=keys.__getitem__), np.int64)


def natural_key(name: str) -> list[Any]:
    """Return the key that timm sorts class folders by: digits in a name are numbers, and case counts nothing."""
    parts: list[Any] = re.split(r"(\d+)", name.lower())
    # every second part is what the parentheses matched
    parts[1::2] = map(_number_key, parts[1::2])
    return parts


def _number_key(digits: str) -> tuple[int, str]:
    """Return a key that orders numbers of any length, where int() takes no more than 4,300 digits."""
    ascii_digits = "".join(str(unicodedata.decimal(digit)) for digit in digits)
    significant = ascii_digits.lstrip("0")
    return len(significant), significant


def find_order_difference(names: Sequence[str]) -> tuple[int, str, str] | None:
    """Return the first index at which text and natural order have different classes, and these; None where none does.

    Names that are the numbers of their own places leave no doubt, and neither do those that are in
    neither order, which somebody has declared.
    """
    text = list(map(names.__getitem__, sort_classes(names, "text").tolist()))
    natural = list(map(names.__getitem__, sort_classes(names, "natural").tolist()))
    is_sorted = list(names) in (text, natural)
    is_numbered = list(names) == list(map(str, range(len(names))))
    if not is_sorted or is_numbered:
        return None
    for index, (one, other) in enumerate(zip(text, natural, strict=True)):
        if one != other:
            return index, one, other
    return None
