"""Recipes: YAML files of settings, found by the name of one that comes with the package or by path. No torch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from vitrail.config.resolve import Layer, read_yaml
from vitrail.errors import ConfigError, suggest
from vitrail.files import MISSING, describe_absent, is_there

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True)
class Recipe:
    """Settings to train with, read from a file."""

    name: str
    """Name that the folder of a run gets, where `output.name` does not say."""
    path: str
    """The file; `flags` where settings were typed without a file."""
    layer: Layer
    """The settings, as the file has them."""


def list_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def find_recipe(name: str) -> tuple[str, Path]:
    """Return the short name and the file of a recipe, given by name or by path.

    Raises:
        ConfigError: Neither a recipe of the package nor a file.
    """
    if not name:  # a shell's variable that is not set; as a path it would be the folder here
        raise ConfigError("'' names no recipe; `vitrail config` lists the recipes")
    known = list_recipes()
    if name in known:
        return name, RECIPES / f"{name}.yaml"
    path = Path(name)
    is_there(path)  # or may not be looked at, which is no reason to look for a recipe of that name
    # the folder of a run is a recipe too, and has the name of the run
    if path.is_dir() and (path / "config.yaml").is_file():
        path = path / "config.yaml"
    if path.is_file() and path.name == "config.yaml":
        return path.resolve().parent.name, path
    if path.is_file():
        return path.stem, path
    if path.is_dir():
        raise ConfigError(
            f"{name} is a folder, not a recipe; to train on its images, write data.root={name}"
        )
    absent = describe_absent(path)
    if absent and absent != MISSING:
        raise ConfigError(
            f"{name}: {absent}; give a recipe's name or its YAML file, `vitrail config` lists the "
            "recipes"
        )
    hint = suggest(name, known) or ";"
    raise ConfigError(
        f"unknown recipe {name!r}{hint} `vitrail config` lists all {len(known)}; a path to a YAML "
        "file works too"
    )


def read_recipe(name: str) -> Recipe:
    """Read a recipe, given by name or by path; a file of another project is read as it is.

    Raises:
        ConfigError: There is no such file, or it cannot be read.
    """
    short, path = find_recipe(name)
    return Recipe(short, str(path), read_yaml(path, short))


@dataclass(frozen=True)
class RecipeHeader:
    """What the comments above the settings of a recipe say, field by field; empty where it does not."""

    title: str
    published: str
    reproduced: str
    settings: str
    """Where the settings come from, and what is decided otherwise."""
    processes: int
    """Processes that its command starts."""
    commands: tuple[str, ...]
    """What to type, line by line."""
    notes: tuple[str, ...]
    """Each other line, from the title with its source on, as long as it goes on."""


def read_header(text: str) -> RecipeHeader:
    """Read the comments above the settings of a recipe, given as the text of its file."""
    header = re.match(r"(#.*\n)+", text)
    if header is None:
        return RecipeHeader("", "", "", "", 1, (), ())
    joined = re.sub(r"\n# ?(?![A-Z ])", " ", header[0])  # what goes on in the next line
    commands, notes = [], []
    # of notes, a full stop at the end of a line ends one
    for line in re.sub(r"(?<!\.)\n# ?(?![A-Z ])", " ", header[0]).splitlines():
        text = line.removeprefix("#").strip()
        if line.startswith("#   "):
            commands.append(text)
        elif text and not text.startswith(("Published: ", "Reproduced: ")):
            notes.append(text)
    processes = re.search(r"--nproc-per-node (\d+)", joined)
    return RecipeHeader(
        title=joined.splitlines()[0].removeprefix("# ").split(" (")[0].rstrip("."),
        published=_read_field(joined, "Published"),
        reproduced=_read_field(joined, "Reproduced"),
        settings=_read_field(joined, "Settings"),
        processes=int(processes[1]) if processes else 1,
        commands=tuple(commands),
        notes=tuple(notes),
    )


def _read_field(header: str, label: str) -> str:
    """Return what a line of a header that begins with a label says; empty where there is none."""
    found = re.search(rf"^# {label}: (.*?)\.?$", header, re.MULTILINE)
    return found[1] if found else ""
