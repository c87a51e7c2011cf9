"""Settings as they are given, as words of the command line or as a mapping in Python, read into one layer."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from vitrail.config.resolve import Layer, find_excess, parse_command_line
from vitrail.config.values import Text
from vitrail.errors import ConfigError, shorten
from vitrail.migrate.recipes import split_keys

Settings = Mapping[str, Any] | Sequence[str]
"""`section.key=value` words, or {"section.key": value, "section": {"key": value}}; keys of other
projects without a section go with files of theirs."""


@dataclass(frozen=True)
class Given:
    """Settings that were given, and keys of other projects among them."""

    layer: Layer
    """Our settings, section by section."""
    keys: Mapping[str, Any]
    """Keys of other projects, which have no section."""


def read_given(settings: Settings) -> Given:
    """Read settings of the command line or of Python.

    Raises:
        ConfigError: They are neither words nor a mapping, or set the same key twice.
    """
    if excess := find_excess(settings):
        raise ConfigError(f"settings: {excess}, which no setting is")
    if isinstance(settings, Mapping):
        return _read_mapping(settings)
    if isinstance(settings, str | bytes) or not isinstance(settings, Sequence):
        raise ConfigError(
            f"settings are {shorten(settings)}; they must be a mapping such as {{'train.epochs': "
            "3}, or a list of section.key=value texts"
        )
    for word in settings:
        if not isinstance(word, str):
            raise ConfigError(
                f"settings: {shorten(word)} is no text; write 'section.key=value', such as "
                "'optim.lr=1e-3'"
            )
    keys, tokens = split_keys(settings)
    return Given(parse_command_line(tokens), keys)


def _read_mapping(settings: Mapping[str, Any]) -> Given:
    """Read a mapping whose keys are dotted, or sections with mappings of their own."""
    values: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for name, value in settings.items():
        if not isinstance(name, str):
            raise ConfigError(
                f"settings: {shorten(name)} is no key; write 'section.key', such as 'optim.lr'"
            )
        if isinstance(value, Mapping):
            _set_all(values, name, value)
        elif "." in name:
            _set(values, name, value)
        else:
            keys[name] = value
    return Given(Layer("settings", values), keys)


def _set_all(values: dict[str, Any], before: str, content: Mapping[Any, Any]) -> None:
    """Set what a section, or options within one, hold."""
    _place(values, before.split("."), before)  # an empty section is one too
    for key, value in content.items():
        name = f"{before}.{key}"
        if isinstance(value, Mapping):
            _set_all(values, name, value)
        else:
            _set(values, name, value)


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    """Set one key.

    Raises:
        ConfigError: It is set already.
    """
    *sections, key = name.split(".")
    place = _place(values, sections, name)
    if key in place:
        raise ConfigError(f"settings: {name} is set twice; set it once")
    place[key] = _plain(value)


def _place(values: dict[str, Any], sections: Sequence[str], name: str) -> dict[str, Any]:
    """Return the mapping that a dotted name leads to."""
    place = values
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(
                f"settings: {name} sets a part of what another setting sets whole; set one of them"
            )
    return place


def _plain(value: Any) -> Any:
    """Return a value of Python as one of YAML: a path as text, a number of numpy as a number."""
    if isinstance(value, Text):  # of the command line, read as YAML once it is known what is wanted
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    if isinstance(value, list | tuple):
        return list(map(_plain, value))
    return value
