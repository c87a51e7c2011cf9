"""The name of a plan, which no other process takes meanwhile, and the files that are called by it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vitrail.config.resolve import CHOSEN, UNFINISHED
from vitrail.display import Display
from vitrail.errors import ConfigError
from vitrail.files import refusal_told

ELSEWHERE = "choose another folder with output.root"
RESERVED = f"{CHOSEN}: {UNFINISHED}\n"
"""Content of a recipe that is being planned."""


class KeepProbe(ConfigError):
    """No training fits; the weights with the linear probe are kept all the same, as they are a model already."""


@contextmanager
def reserved_name(folder: Path, given: str | None, name: str, display: Display) -> Iterator[str]:
    """Yield a name for which neither a run nor a plan is in the folder yet: NAME, or NAME-2 and so on.

    Its recipe is there from then on, still without settings, so that no other process takes the
    name. Where planning fails, the files of the plan are removed.

    Args:
        folder: Folder of plans and runs.
        given: Name that the user gave, which is taken as it is.
        name: Name where none is given.
        display: Where it is said what is kept of an interrupted plan.

    Raises:
        ConfigError: There is a run or a plan of the given name.
        CheckpointError: The folder cannot be written.
    """
    if given is None:
        name = _take_free_name(folder, name)
    elif _take_name(folder, given):
        name = given
    else:
        raise ConfigError(
            f"output.name={given}: {folder} has a run or plan of that name; give another, or none"
        )
    try:
        yield name
    except BaseException as error:
        recipe_of(folder, name).unlink(missing_ok=True)
        if not isinstance(error, KeepProbe):
            probe_of(folder, name).unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt):
            display.note("features that were computed are kept: the same command goes on with them")
        raise


def recipe_of(folder: Path, name: str) -> Path:
    """Return where the recipe of a plan is written."""
    return folder / f"{name}.yaml"


def probe_of(folder: Path, name: str) -> Path:
    """Return where the weights are written that a plan's training begins with."""
    return folder / f"{name}-probe.safetensors"


def _take_free_name(folder: Path, name: str) -> str:
    """Return the first name that no run and no plan has, which is this one's from then on."""
    for number in itertools.count(1):
        free = name if number == 1 else f"{name}-{number}"
        if _take_name(folder, free):
            return free
    raise AssertionError


def _take_name(folder: Path, name: str) -> bool:
    """Create the recipe of a plan, unless a run or a plan has the name; say whether it did."""
    recipe = recipe_of(folder, name)
    if (folder / name).exists() or probe_of(folder, name).exists():
        return False
    with refusal_told(recipe, None, ELSEWHERE):
        recipe.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError), recipe.open("x", encoding="utf-8") as file:
            file.write(RESERVED)
            return True
    return False
