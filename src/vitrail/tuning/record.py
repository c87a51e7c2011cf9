"""What a study is of: recipe, space, metric and images, kept in its folder, and compared by all who go on with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vitrail.config.resolve import flatten, read_yaml
from vitrail.errors import ConfigError, write_option
from vitrail.files import is_temporary, write_whole
from vitrail.migrate.rules import format_value
from vitrail.training.start import FREE, describe_differences, differences
from vitrail.tuning.space import Space
from vitrail.tuning.subject import Ground, Subject

FILE = "study.yaml"
"""Name of the file in the study's folder."""
HEADER = "# What this study is of; `vitrail tune` with another recipe, space, metric or data is refused.\n"


def describe_study(subject: Subject, space: Space, ground: Ground, *, extend: bool) -> dict:
    """Return what a study is of, as plain values.

    Args:
        subject: The recipe.
        space: The settings that are searched.
        ground: The metric and the images.
        extend: Whether trials are lengthened step by step.
    """
    return {
        "metric": ground.metric,
        "split": ground.split,
        "images": dict(ground.images),
        "extend": extend,
        "space": {dimension.key: dimension.plain() for dimension in space},
        "recipe": flatten(subject.configure({})),
    }


def read_study(folder: Path) -> Mapping[str, Any] | None:
    """Return what the study in a folder is of; None where there is none yet.

    Raises:
        ConfigError: The folder is of something else.
    """
    if (folder / FILE).is_file():
        return read_yaml(folder / FILE).values
    where = write_option("study", folder)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{where}: is a file; give a folder")
    if folder.is_dir():
        others = [path.name for path in folder.iterdir() if not _is_of_a_start(path)]
        if others:
            raise ConfigError(
                f"{where}: holds {sorted(others)[0]} and no {FILE}, so it is no study; give a "
                "folder that is empty or not there yet"
            )
    return None


def _is_of_a_start(path: Path) -> bool:
    """Say whether a file is what a start leaves that was killed at once."""
    return is_temporary(path) or path.name.startswith(".")


def keep_study(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write what a study is of, or refuse to go on with one of something else; the caller holds the study's lock.

    Raises:
        ConfigError: With what differs.
    """
    before = read_study(folder)
    if before is None:
        text = HEADER + yaml.safe_dump(dict(facts), sort_keys=False, width=100)
        write_whole(folder / FILE, text.encode(), f"choose another with {write_option('study')}")
        return
    if problem := _compare(before, facts):
        raise ConfigError(
            f"{write_option('study', folder)}: is of {problem}; give another folder, or the same "
            "command as before"
        )


def _compare(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say what a study is of that differs from what is asked for; nothing where both are the same."""
    recipe = differences(before.get("recipe", {}), now["recipe"], FREE)
    if recipe:
        return f"another recipe: {describe_differences(recipe)}"
    if space := _compare_spaces(before.get("space", {}), now["space"]):
        return f"another space: {space}"
    if before.get("images") != now["images"]:
        return f"other images: there {before.get('split')}, here {now['split']}"
    if before.get("metric") != now["metric"]:
        return f"another metric: {before.get('metric')} there and {now['metric']} here"
    if before.get("extend") != now["extend"]:
        there, here = ("without", "with") if now["extend"] else ("with", "without")
        return f"trials {there} {write_option('extend', True)}, and this is {here}"
    return ""


def _compare_spaces(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say which settings of two spaces differ."""
    texts = []
    for key in (*before, *(key for key in now if key not in before)):
        if before.get(key) != now.get(key):
            there, here = (
                format_value(space[key]) if key in space else "not searched"
                for space in (before, now)
            )
            texts.append(f"{key} is {there} there and {here} here")
    return ", ".join(texts[:5])
