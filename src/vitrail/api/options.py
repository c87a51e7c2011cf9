"""What the functions of this room have in common: their settings, where they show progress, the files they write."""

from __future__ import annotations

import inspect
import json as json_text
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import Layer
from vitrail.display import Display, Quiet, Terminal
from vitrail.distributed.launch import is_main_process
from vitrail.errors import ConfigError, name_option, suggest, write_option
from vitrail.files import write_whole
from vitrail.migrate.given import Given, Settings, read_given
from vitrail.migrate.recipes import read_part
from vitrail.migrate.rules import Say

OF_WEIGHTS = ("weights", "preprocess")
"""Sections that say how a weight file and images are read."""
SECTIONS = (*(section.name for section in fields(TrainConfig)), "evaluate")
"""Names that a keyword with settings may have."""


def read_settings(
    verb: Callable[..., Any], settings: Settings | None, sections: Mapping[str, Any]
) -> Given:
    """Read a function's settings and its keywords that are sections.

    Args:
        verb: The function, whose options are known by its signature.
        settings: Its settings.
        sections: Its other keywords.

    Raises:
        ConfigError: A keyword is no section, or a key is set twice.
    """
    for name, content in sections.items():
        if isinstance(content, Mapping) and name in SECTIONS:
            continue
        if name in SECTIONS:
            raise ConfigError(f"{name} is a section; write {name}={{'key': value}}, a mapping")
        options = []
        for option, one in inspect.signature(verb).parameters.items():
            if one.kind != one.VAR_KEYWORD:
                options.append(option)
        near = suggest(name, [*options, *SECTIONS])
        raise ConfigError(
            f"{verb.__name__} has no option {name!r}{near}; settings are given as a mapping such "
            "as {'train.epochs': 3}, or by section as train={'epochs': 3}"
        )
    given = read_given({} if settings is None else settings)
    if not sections:
        return given
    values = {**given.layer.values}
    for name, content in read_given(sections).layer.values.items():
        before = values.get(name, {})
        if twice := sorted(before.keys() & content.keys()):
            raise ConfigError(f"settings: {name}.{twice[0]} is set twice; set it once")
        values[name] = {**before, **content}
    return Given(Layer("settings", values), given.keys)


def settings_alone(given: Given) -> Layer:
    """Return settings where no keys of other projects are taken.

    Raises:
        ConfigError: There is one.
    """
    for key, value in given.keys.items():
        raise ConfigError(
            f"{given.layer.origin}: '{key}={value}' is not a setting; write section.key=value, "
            "such as optim.lr=1e-3"
        )
    return given.layer


def with_recipe(
    config: str | Path | None, given: Given, sections: Sequence[str]
) -> tuple[list[Layer], list[tuple[Say, str]]]:
    """Return the layers of some sections of a recipe and of the settings, and what its translation says."""
    part = read_part(None if config is None else str(config), given.keys, sections)
    if part is None:
        return [given.layer], []
    remarks = part.translation.remarks(sections) if part.translation else []
    return [part.layer, given.layer], remarks


class Warnings(Quiet):
    """A display that shows no progress, and gives warnings to Python's `warnings`."""

    def warn(self, text: str) -> None:
        warnings.warn(text, UserWarning, stacklevel=2)


@contextmanager
def shown(display: Display | None, progress: bool) -> Iterator[Display]:
    """Yield where a function reports to: the display given, or else a terminal or notebook, where there is one.

    Args:
        display: What the caller has; it is not ended here.
        progress: Whether progress is shown at all.
    """
    if display is not None:
        yield display
        return
    terminal = Terminal(silent=not is_main_process())
    own = terminal if progress and terminal.is_seen else Warnings()
    try:
        yield own
    finally:
        own.end()


def tell_remarks(display: Display, remarks: Sequence[tuple[Say, str]]) -> None:
    """Say what is to be said about settings that were translated."""
    for kind, text in remarks:
        if kind == "warning":
            display.warn(text)
        else:
            display.note(text)


def write_json(path: Path, values: Any, display: Display) -> None:
    """Write numbers to a file that was named for them."""
    text = json_text.dumps(values, indent=1) + "\n"
    write_whole(path, text.encode(), f"choose another file with {write_option('json')}")
    display.note(f"numbers: {path}")


def require_at_least(least: int, **options: float | None) -> None:
    """Refuse options that are too small.

    Raises:
        ConfigError: The first that is.
    """
    for name, value in options.items():
        if value is not None and value < least:
            where = name_option(name)
            raise ConfigError(f"{where} is {value}; it must be at least {least}")


def path_or_none(path: str | Path | None) -> Path | None:
    """Return a path of an option that may be left out."""
    return None if path is None else Path(path)
