"""Values of settings: read as YAML, converted to the type of the setting, or refused with what is allowed. No torch."""

from __future__ import annotations

import math
import os
import types
from collections.abc import Mapping
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from vitrail.errors import shorten, suggest

MAX_WHOLE = 2**63 - 1
"""Largest whole number of a setting."""
PLAIN_TYPES = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Any: "any value",
}
"""Words for the types that are not made of others, in messages and in the reference."""


class Text(str):
    """A value of the command line, to be read as YAML where the setting is not itself text."""


# Reading


def read_value(value: Any, kind: Any) -> Any:
    """Return a value as the type of its setting.

    Args:
        value: As Python or YAML has it; Text of the command line is read as YAML first.
        kind: Annotation of the setting.

    Raises:
        ValueError: The value is of another type; the message says what it must be.
    """
    return _convert(_parse_text(value, kind), kind)


def quote(value: Any) -> str:
    """Return a refused value as it is shown: in quotes where it was text, and never long."""
    if isinstance(value, Text):
        value = str(value)
    return shorten(value, 200)


def _parse_text(value: Any, kind: Any) -> Any:
    """Read Text as YAML, unless text is wanted: a name may look like a number or a date."""
    if isinstance(value, dict):
        return {key: _parse_text(item, Any) for key, item in value.items()}
    if not isinstance(value, Text):
        return value
    kinds = get_args(kind) if _is_union(kind) else (kind,)
    if str in kinds:
        if type(None) in kinds and value in ("null", "none", "~"):
            return None
        if Literal[False] in kinds and value == "false":
            return False
        return str(value)
    try:
        return yaml.safe_load(value)
    except (yaml.YAMLError, ValueError):  # PyYAML lets a bad date through as ValueError
        return str(value)


def _convert(value: Any, kind: Any) -> Any:
    """Return `value` as `kind`; a ValueError says what it must be."""
    origin = get_origin(kind)
    if kind is Any:
        return tuple(value) if isinstance(value, list) else value
    if _is_union(kind):
        return _convert_to_union(value, kind)
    if origin is Literal:
        return _convert_to_literal(value, get_args(kind))
    if origin is tuple:
        return _convert_to_tuple(value, get_args(kind))
    if origin is dict:
        return _convert_to_dict(value, get_args(kind)[1])
    if kind is float and not isinstance(value, bool):
        return _convert_to_float(value)
    # a folder or a class may be called 3, which YAML reads as a number
    if kind is str and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= MAX_WHOLE:  # true of NaN too
            raise ValueError("text")
        return str(value)
    # the exact type, since a bool is an int to isinstance
    if type(value) is not kind:
        raise ValueError(type_name(kind))
    if kind is int and abs(value) > MAX_WHOLE:
        raise ValueError("a whole number below 2^63")
    if isinstance(value, str) and not is_plain(value):
        raise ValueError("text without characters that no name or path has")
    return value


def is_plain(text: str) -> bool:
    """Tell whether a name or path can be made of a text: no byte 0, which ends it, and no halves of letters."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def _convert_to_union(value: Any, kind: Any) -> Any:
    """Return `value` as the first alternative that takes it."""
    alternatives = [arg for arg in get_args(kind) if arg is not type(None)]
    is_optional = type(None) in get_args(kind)
    if value is None and is_optional:
        return None
    for alternative in alternatives:
        try:
            return _convert(value, alternative)
        except ValueError as error:
            # a single alternative's own message says more than its type's name
            if len(alternatives) == 1:
                raise ValueError(f"{error}, or null" if is_optional else str(error)) from None
    raise ValueError(type_name(kind))


def _convert_to_literal(value: Any, allowed: tuple[Any, ...]) -> Any:
    # 0 equals false, and is none
    if value in allowed and not (allowed == (False,) and value is not False):
        return value
    names = list(map(str, allowed))
    hint = suggest(value, names) if isinstance(value, str) else ""
    raise ValueError(f"one of {', '.join(names)}{hint}")


def _convert_to_tuple(value: Any, kinds: tuple[Any, ...]) -> tuple[Any, ...]:
    is_list = isinstance(value, list | tuple)
    if kinds[-1] is Ellipsis:
        if not is_list:
            raise ValueError(f"a list such as [{type_name(kinds[0]).split()[-1]}]")
        return tuple(_convert(item, kinds[0]) for item in value)
    if not is_list or len(value) != len(kinds):
        example = ", ".join(["0.5"] * len(kinds))
        raise ValueError(f"a list of {len(kinds)} numbers such as [{example}]")
    return tuple(_convert(item, kind) for item, kind in zip(value, kinds, strict=True))


def _convert_to_dict(value: Any, kind: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError("a mapping of names to values")
    return {str(key): _convert(item, kind) for key, item in value.items()}


def _convert_to_float(value: Any) -> float:
    try:
        number = float(value)  # YAML reads 5e-4 as text
    except (TypeError, ValueError):
        raise ValueError("a number") from None
    except OverflowError:
        raise ValueError("a finite number") from None
    if not math.isfinite(number):
        raise ValueError("a finite number")
    return number


def _is_union(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


# Writing


def type_name(kind: Any) -> str:
    """Return what a type is called in messages and in the reference."""
    origin = get_origin(kind)
    args = get_args(kind)
    if _is_union(kind):
        return ", or ".join(type_name(arg) for arg in args)
    if args == (False,):
        return "false"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple and args[-1] is Ellipsis:
        return "a list of numbers" if args[0] in (int, float) else f"a list of {type_name(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)} numbers"
    if origin is dict:
        return "a mapping"
    return PLAIN_TYPES[kind]


def to_plain(value: Any) -> Any:
    """Return a value with lists for its tuples, as YAML and JSON hold it."""
    if isinstance(value, dict):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return list(map(to_plain, value))
    return value
