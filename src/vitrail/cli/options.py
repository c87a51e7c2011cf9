"""What the options of several commands have in common: their types, their texts, how whole numbers are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter, Token

from vitrail import choices
from vitrail.errors import ConfigError


def read_whole_number(_: type, tokens: Sequence[Token]) -> int:
    """Read a number, where cyclopts would cut off what stands behind a point."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ConfigError(
            f"{tokens[0].keyword} is {tokens[0].value!r}; it must be a whole number"
        ) from None


def read_whole_numbers(kind: type, tokens: Sequence[Token]) -> list[int]:
    """Read several numbers."""
    return [read_whole_number(kind, [token]) for token in tokens]


def read_place(_: type, tokens: Sequence[Token]) -> tuple[int, int]:
    """Read a row and a column, written as 3,5."""
    words = tokens[0].value.split(",")
    if len(words) != 2 or not all(word.isascii() and word.isdecimal() for word in words):
        raise ConfigError(
            f"{tokens[0].keyword} is {tokens[0].value!r}; it must be a row and a column from 0, as 3,5"
        )
    return int(words[0]), int(words[1])


def split_recipe(tokens: Sequence[str], config: str | None) -> tuple[str | None, list[str]]:
    """Tell the one recipe among key=value tokens.

    Raises:
        ConfigError: There are several.
    """
    recipes, settings = [], []
    for token in tokens:
        is_setting = "=" in token and not Path(token).exists()
        (settings if is_setting else recipes).append(token)
    if config is not None:
        recipes.append(config)
    if len(recipes) > 1:
        raise ConfigError(
            f"two recipes are given, {recipes[0]} and {recipes[1]}; settings are written "
            "section.key=value"
        )
    return (recipes[0] if recipes else None), settings


def split_images(inputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell the names of images from settings among them, of other projects too."""
    from vitrail.api.options import SECTIONS
    from vitrail.migrate.translate import KEYS

    images, settings = [], []
    for text in inputs:
        section, _, rest = text.partition(".")
        is_ours = section in SECTIONS and "=" in rest and not Path(text).exists()
        is_theirs = "=" in text and text.partition("=")[0] in KEYS and not Path(text).exists()
        (settings if is_ours or is_theirs else images).append(text)
    return images, settings


Settings = Annotated[
    str,
    Parameter(
        show_default=False,
        help="Settings as section.key=value; docs/config.md and `vitrail config digits` show them.",
    ),
]
RecipeAndSettings = Annotated[
    str,
    Parameter(
        show_default=False, help="A recipe's name or file, and settings as section.key=value."
    ),
]
FileSettings = Annotated[
    str,
    Parameter(
        show_default=False, help="How the file is read: weights.key=value and preprocess.key=value."
    ),
]
Checkpoint = Annotated[
    Path,
    Parameter(
        help="A weight file of any project, what `vitrail export` made of one, or a name that `vitrail weights` lists."
    ),
]
Weights = Annotated[
    Path, Parameter(help="A weight file of any project, or a name that `vitrail weights` lists.")
]
ModelRecipe = Annotated[
    str | None, Parameter(help="A recipe's name or file, for the model and how images are read.")
]
BatchSize = Annotated[
    int, Parameter(converter=read_whole_number, help="Images that are computed together.")
]
JsonFile = Annotated[
    Path | None, Parameter(name="--json", help="Also write the numbers to this file.")
]
Engine = Annotated[
    choices.Engine | None, Parameter(help="What runs an exported file, where two can, as .onnx.")
]
Precision = Annotated[
    choices.Precision | None,
    Parameter(help="Precision of the computation; an exported file's own by default."),
]
Device = Annotated[
    choices.Device,
    Parameter(help="auto takes the accelerator, where there is one; cpu never does."),
]
CsvAsIs = Annotated[
    bool,
    Parameter(
        help="Put no apostrophe before the paths and names in CSV that a spreadsheet would compute, as they begin with "
        "= + - or @."
    ),
]
