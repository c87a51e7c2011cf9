"""Arguments of the public functions: checked against their annotations, and refused in one line that names them."""

from __future__ import annotations

import inspect
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from typing import (
    Any,
    Literal,
    NoReturn,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from vitrail.config.values import is_plain, read_value
from vitrail.display import Display
from vitrail.errors import ConfigError, name_option, names_flags, shorten, suggest

P = ParamSpec("P")
R = TypeVar("R")
WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "text",
    Path: "a path",
    Display: "an object with the methods of vitrail.display.Display",
}
"""Words for the types that are not made of others."""
LISTS = {int: "a list of whole numbers", float: "a list of numbers"}
"""Words for several values of a type; those of others are texts."""
ADVICE = {
    "images": "an image in memory goes through the model of vitrail.load_model(FILE) itself, as "
    "model(model.preprocess(image).unsqueeze(0))",
    "verify.files": "several are given one by one, as verify(*files)",
}
"""What to do instead, by the argument that was given something else than a path, of one function or
of any."""


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function check its arguments against their annotations before it begins.

    A number of numpy is taken as one of Python, and any iterable where several values are taken.

    Raises:
        ConfigError: By the function that is returned, for an argument that is unknown, missing or
            of the wrong kind; one line with the function, the argument, what it is and what it must
            be.
    """
    signature = inspect.signature(function)

    @cache
    def kinds() -> Mapping[str, Any]:
        return get_type_hints(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            _refuse_call(function.__name__, signature, kwargs, error)
        for name, value in bound.arguments.items():
            parameter = signature.parameters[name]
            if parameter.kind is parameter.VAR_POSITIONAL:
                each = [
                    _read(function.__name__, name, one, kinds()[name], signature) for one in value
                ]
                bound.arguments[name] = tuple(each)
            elif parameter.kind is not parameter.VAR_KEYWORD and value is not parameter.default:
                bound.arguments[name] = _read(
                    function.__name__, name, value, kinds()[name], signature
                )
        return function(*bound.args, **bound.kwargs)

    return call


def _refuse_call(
    function: str, signature: inspect.Signature, keywords: Mapping[str, Any], error: TypeError
) -> NoReturn:
    """Say which argument of a call is unknown or missing, or that too many are given by position."""
    parameters = signature.parameters
    if unknown := [name for name in keywords if name not in parameters]:
        known = [name for name, one in parameters.items() if one.kind is not one.VAR_KEYWORD]
        near = suggest(unknown[0], known) or f"; it has {', '.join(known)}"
        raise ConfigError(f"{function} has no argument {unknown[0]!r}{near}") from error
    raise ConfigError(
        f"{function}: {error}; help(vitrail.{function}) shows its arguments"
    ) from error


def _read(function: str, name: str, value: Any, kind: Any, signature: inspect.Signature) -> Any:
    """Return an argument as its function takes it.

    Raises:
        ConfigError: It is none of the kinds that the annotation allows.
    """
    try:
        return read_argument(value, kind)
    except ValueError as error:
        where = name_option(name) if names_flags() else f"{function}: {name}"
        advice = ""
        if isinstance(value, Mapping) and "settings" in signature.parameters:
            advice = "; settings are given as settings={'section.key': value}"
        elif not isinstance(value, str | bytes | int | float | None):
            known = ADVICE.get(f"{function}.{name}") or ADVICE.get(name)
            advice = f"; {known}" if known else ""
        raise ConfigError(f"{where} is {_show(value)}; it must be {error}{advice}") from None


def read_argument(value: Any, kind: Any) -> Any:
    """Return a value of Python as one of the kinds of an annotation.

    Args:
        value: Anything.
        kind: An annotation: a type, a Literal, an iterable of one kind, a function, or several of
            these.

    Raises:
        ValueError: The value is none of them; the message says what it must be.
    """
    kinds, is_optional = _alternatives(kind)
    # settings have a reader of their own, which says more
    if any(get_origin(one) is Mapping for one in kinds):
        return value
    if value is None and is_optional:
        return None
    value = _unwrap(value)
    problems = []
    for one in kinds:
        try:
            return _read_one(value, one)
        except ValueError as error:
            problem = str(error) or _describe(one, kinds)
            if problems and problem.startswith(problems[-1]):  # of one of several values
                problems.pop()
            if problem not in ", or ".join(problems):
                problems.append(problem)
    if is_optional:
        problems.append("None")
    raise ValueError(", or ".join(problems))


def _alternatives(kind: Any) -> tuple[list[Any], bool]:
    """Return the kinds that an annotation allows, and whether None is allowed too.

    A path may be written as text, which then is no kind of its own.
    """
    kinds = list(get_args(kind)) if get_origin(kind) in (Union, types.UnionType) else [kind]
    is_optional = type(None) in kinds
    dropped = {type(None), str} if Path in kinds else {type(None)}
    return [one for one in kinds if one not in dropped], is_optional


def _unwrap(value: Any) -> Any:
    """Return a single number of numpy or torch as one of Python, and any other value as it is."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        return value.item()
    return value


def _read_one(value: Any, kind: Any) -> Any:
    """Return a value as one kind; a ValueError says what it must be."""
    origin = get_origin(kind)
    if origin in (Sequence, Iterable):
        return _read_several(value, get_args(kind)[0])
    if kind is Path:
        return _read_path(value)
    if origin is Literal:
        return _read_choice(value, get_args(kind))
    if kind in (int, float, bool, str):
        # a setting may be a name that is 5
        if not isinstance(value, kind if kind in (bool, str) else int | float):
            raise ValueError(WORDS[kind])
        return read_value(value, kind)
    is_fitting = callable(value) if origin is Callable else isinstance(value, origin or kind)
    if not is_fitting:
        raise ValueError
    return value


def _read_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    """Return a value that is one of some choices; True is not taken for 1."""
    if isinstance(value, str | int) and not isinstance(value, bool) and value in choices:
        return value
    names = list(map(str, choices))
    near = suggest(value, names) if isinstance(value, str) else ""
    raise ValueError(f"one of {', '.join(names)}{near}")


def _read_several(value: Any, kind: Any) -> tuple[Any, ...]:
    """Return the values of an iterable, each as one kind."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ValueError
    items = []
    for item in value:
        is_empty_path = isinstance(item, str) and not item and Path in get_args(kind)
        # whoever looks for the images says more of a name that is empty, as of a shell's variable
        # that is not set
        items.append(item if is_empty_path else read_argument(item, kind))
    return tuple(items)


def _read_path(value: Any) -> str | Path:
    """Return a path as it is, and any other object that names one as a path."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or not is_plain(text):
        raise ValueError
    return value if isinstance(value, str | Path) else Path(text)


def _describe(kind: Any, kinds: Sequence[Any]) -> str:
    """Return the words for one of several kinds."""
    if get_origin(kind) in (Sequence, Iterable):
        of_each = LISTS.get(get_args(kind)[0], "a list of texts")
        return of_each if len(kinds) == 1 else "several of them"
    if get_origin(kind) is Callable:
        return "a function"
    kind = get_origin(kind) or kind  # of a class with parameters
    return WORDS.get(kind, f"of type {kind.__module__}.{kind.__qualname__}")


def _show(value: Any) -> str:
    """Return a refused value in a few characters; an object that is no plain value by its type."""
    if value is None or isinstance(value, str | bytes | int | float | list | tuple | dict | Path):
        return shorten(value)
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    return f"of type {name.removeprefix('builtins.')}"
