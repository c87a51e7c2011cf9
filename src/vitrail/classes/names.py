"""What may be the name of a class in a table, when two names are one, and in which order classes come."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vitrail.errors import DataError

BETWEEN = "|"
"""Stands between the classes of an image in a CSV file, so in the name of none."""
LONGEST = 1000
"""Characters of a name; of longer ones, none was meant to be one."""
ClassOrder = Literal["text", "natural"]


def check_name(value: Any, where: str) -> str:
    """Return the name of a class, without blanks around it and in Unicode's composed form.

    Raises:
        DataError: It is neither text nor a whole number, is empty, or has a character that a name cannot have.
    """
    is_name = isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())
    name = canonical(str(value).strip()) if is_name and not isinstance(value, bool) else None
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


def canonical(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), in which every name of a class is kept and compared.

    macOS writes an e with an accent as two characters, where most other systems have one.
    """
    return unicodedata.normalize("NFC", name)


def visible(name: str) -> str:
    """Return a name in quotes, with escapes for the characters that look like others or like nothing."""
    return "'" + "".join(character if _is_plain(character) else ascii(character)[1:-1] for character in name) + "'"


def look_alikes(names: Iterable[str]) -> list[list[str]]:
    """Return the groups of names that differ only by case, by blanks or by characters that look the same."""
    groups: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        groups.setdefault(_as_seen(name), []).append(name)
    return [group for group in groups.values() if len(group) > 1]


def tell_look_alikes(names: Iterable[str]) -> str:
    """Say which names look alike and are different classes all the same; nothing where none do."""
    groups = look_alikes(names)
    if not groups:
        return ""
    shown = ", ".join(" and ".join(map(visible, group)) for group in groups[:3])
    return (
        f"{len(groups)} classes have names that look alike, and are different classes all the same: {shown}; if they "
        "are meant to be one, give them one name"
    )


def why_apart(ours: Iterable[str], theirs: Iterable[str]) -> str:
    """Return a clause on names that only one side has each and that look alike, or nothing where none do."""
    ours, theirs = set(ours), set(theirs)
    pairs = [
        (name, other)
        for group in look_alikes(sorted((ours | theirs) - (ours & theirs)))
        for name in group
        for other in group
        if name in ours and other in theirs
    ]
    shown = ", ".join(f"{visible(name)} and {visible(other)}" for name, other in pairs[:3])
    return f"; {shown} look alike, but differ in case, blanks or characters" if pairs else ""


def _as_seen(name: str) -> str:
    """Return what is left of a name without what is easily overlooked."""
    name = unicodedata.normalize("NFKC", name).casefold()
    return " ".join("".join(c for c in name if unicodedata.category(c) != "Cf").split())


def _is_plain(character: str) -> bool:
    return character == " " or (
        character.isprintable()
        and not unicodedata.combining(character)
        and unicodedata.normalize("NFKC", character) == character
    )


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


def with_comma(names: Sequence[str]) -> str:
    """Return a name that is a number with a decimal comma, where all names are numbers; else nothing."""
    if not all(re.fullmatch(r"-?[0-9]+([.,][0-9]+)?", name) for name in names):
        return ""
    return next((name for name in names if "," in name), "")


def order(names: Sequence[str], class_order: ClassOrder | None = None) -> NDArray[np.int64]:
    """Return the classes sorted as is asked for; or else whole numbers as such, where all are, and others as text."""
    keys: Sequence[Any] = names
    if class_order == "natural":
        keys = [(natural_key(name), name) for name in names]
    elif class_order is None and are_whole_numbers(names):
        keys = list(map(int, names))
    return np.array(sorted(range(len(names)), key=keys.__getitem__), np.int64)


def natural_key(name: str) -> list[Any]:
    """Return what timm sorts the class folders by: numbers in a name count as such, and case counts nothing."""
    parts = re.split(r"(\d+)", name.lower())
    return [_size(part) if number % 2 else part for number, part in enumerate(parts)]


def _size(digits: str) -> tuple[int, str]:
    """Return what orders numbers of any length, where int() takes no more than 4,300 digits."""
    plain = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0")
    return len(plain), plain


def orders_differ(names: Sequence[str]) -> tuple[int, str, str] | None:
    """Return the first index at which text and natural order have different classes, and these; None where none does.

    Names that are the numbers of their own places leave no doubt, and neither do those that are in neither order, which
    somebody has declared.
    """
    text, natural = (list(map(names.__getitem__, order(names, kind).tolist())) for kind in ("text", "natural"))
    if [*names] not in (text, natural) or [*names] == [str(number) for number in range(len(names))]:
        return None
    differing = [i for i, (one, two) in enumerate(zip(text, natural, strict=True)) if one != two]
    return (differing[0], text[differing[0]], natural[differing[0]]) if differing else None
