"""Recipes of ours, and files or flags of other projects, opened alike as settings. No torch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import Recipe, find_recipe, read_recipe
from vitrail.config.resolve import Layer, read_yaml
from vitrail.distributed.launch import count_processes
from vitrail.errors import ConfigError, shorten
from vitrail.migrate.official import PROGRAMS, find_program
from vitrail.migrate.rules import NO_DEFAULT, Case, format_value
from vitrail.migrate.search import SPACE
from vitrail.migrate.translate import PROJECTS, Translation, find_key, find_project, translate

YAML = (".yaml", ".yml")
"""Endings of files of settings."""
SECTIONS = {section.name for section in fields(TrainConfig)}
"""Sections that a file of ours may have."""
FORMATS = ("file_format", "export_format")
"""Keys of theirs that say which format their program exports."""
MEASURES = ("evaluate", "eval")
"""Flags of theirs that ask for an evaluation, as `vitrail evaluate` does by itself."""


@dataclass(frozen=True)
class OpenedRecipe(Recipe):
    """Settings to train with, read from a file of ours or of another project, or from flags."""

    translation: Translation | None = None
    """How the keys of another project were translated; None for a recipe of ours."""


def split_keys(tokens: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Tell the keys of other projects, which have no section (`epoch_size=3`), from our settings and all else."""
    keys = {}
    rest = []
    for token in tokens:
        match = re.fullmatch(r"(\w+)=(.*)", token, re.DOTALL)
        if match:
            keys[match[1]] = _parse_value(match[2])
        else:
            rest.append(token)
    return keys, rest


def open_recipe(
    recipe: str | None, keys: Mapping[str, Any], tried: Mapping[str, Any] | None = None
) -> OpenedRecipe:
    """Open a recipe of ours, a file of another project with `keys` put over it, or keys alone.

    Args:
        recipe: Name or file of a recipe.
        keys: Keys of another project that were typed.
        tried: Keys of another project with the values that a search tries, as if they stood in its
            file; the space that stands there is then passed over. None where nothing is searched.

    Raises:
        ConfigError: There is no such file, it is of no known kind, or the keys do not go with it.
    """
    # keys that name a model are the command of a program without files
    model = str(keys.get("model", keys.get("transfer_model", "")))
    if model and (recipe is None or _is_image_folder(recipe)):
        if recipe is not None:
            keys = {"data_dir": recipe, **keys}
        translation = translate({}, "flags", keys, processes=count_processes())
        return OpenedRecipe(Path(model).stem, "flags", translation.layer, translation)

    opened = read_recipe("digits" if recipe is None else recipe)
    if is_foreign(opened.layer.values):
        content = dict(opened.layer.values)
        if tried is not None:
            content.pop(SPACE, None)
            content |= tried
        translation = translate(content, opened.name, keys, processes=count_processes())
        return OpenedRecipe(opened.name, opened.path, translation.layer, translation)

    if "compat" in keys:
        raise ConfigError("compat is for files of other projects; drop it")
    for key, value in keys.items():
        ours = _find_our_setting(key) or "section.key"
        raise ConfigError(
            f"{key}={format_value(value)}: goes with files of other projects alone; write "
            f"{ours}=..., `vitrail config {opened.name}` shows all settings"
        )
    return OpenedRecipe(opened.name, opened.path, opened.layer)


def read_part(
    config: str | None, keys: Mapping[str, Any], sections: Sequence[str]
) -> OpenedRecipe | None:
    """Read the settings that a command other than train takes from a recipe or flags: some sections, and the model.

    `evaluate.batch_size` and `evaluate.device` follow from the settings that another project trains
    with.
    """
    if config is None and not keys:
        return None
    names_model = config is not None or "model" in keys
    if not names_model:
        # the weight file knows the model; any of the program's makes its flags readable
        keys = {"model": find_program(keys).models[0], **keys}
    keys = {key: value for key, value in keys.items() if key not in MEASURES}
    recipe = open_recipe(config, keys)
    values = dict(recipe.layer.values)
    if recipe.translation is not None:
        values["evaluate"] = _evaluation_like(values.get("train", {}))
    model = values.get("model", {})
    if not isinstance(model, Mapping):
        raise ConfigError(
            f"{recipe.name}: model is a section, and is {shorten(model)} there; give a file of "
            "settings"
        )
    model = dict(model)
    if not names_model:
        model.pop("name", None)
    part = {name: content for name, content in values.items() if name in sections}
    layer = Layer(recipe.layer.origin, part, model)
    return OpenedRecipe(recipe.name, recipe.path, layer, recipe.translation)


def find_export_format(config: str) -> str | None:
    """Return the format that the program of a file exports, by the file or by default; None where it is not known."""
    name, path = find_recipe(config)
    content = read_yaml(path, name).values
    if not is_foreign(content):
        return None
    keys = find_project(content, name).keys
    for key in FORMATS:
        if content.get(key):
            return str(content[key])
    for key in FORMATS:
        if key in keys and keys[key].default is not NO_DEFAULT:
            return str(keys[key].default)
    return None


def is_foreign(content: Mapping[str, Any]) -> bool:
    """Tell whether a file holds plain values where ours has sections; two keys of Twins' files hold mappings."""
    mappings = {key for key, value in content.items() if isinstance(value, Mapping)}
    return not (content.keys() <= SECTIONS or mappings - {"params", SPACE})


def _evaluation_like(train: Mapping[str, Any]) -> dict[str, Any]:
    """Return our section `evaluate` with the batch of one process and the device of a training."""
    values = {}
    if "batch_size" in train:
        micro_batches = count_processes() * train.get("accumulate", 1)
        values["batch_size"] = train["batch_size"] // micro_batches
    if "device" in train:
        values["device"] = train["device"]
    return values


def _is_image_folder(recipe: str) -> bool:
    """Tell whether the word in the place of a recipe is the folder of images of a command without a file."""
    path = Path(recipe)
    is_recipe = path.suffix in YAML or path.is_file() or (path / "config.yaml").is_file()
    return not is_recipe and (path.is_dir() or len(path.parts) > 1)


def _find_our_setting(key: str) -> str:
    """Return our setting that a key of any project would set, or nothing."""
    for project in (*PROJECTS, *PROGRAMS):
        known = project.keys.get(find_key(key, project))
        if known is None:
            continue
        case = Case(project, {"batch_size": 1}, frozenset(), 1, as_written=True)
        try:
            settings = known.rule(1, case).settings
        except (ValueError, TypeError, KeyError):  # of values that 1 is none of
            continue
        if settings:
            return next(iter(settings))
    return ""


def _parse_value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # PyYAML lets a bad date through as ValueError
        return text
