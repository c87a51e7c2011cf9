"""Proxies: a small run for each family, by settings that nobody may change, so that its curve is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import RECIPES, read_recipe
from vitrail.config.resolve import Layer, resolve
from vitrail.config.sections import DataSection
from vitrail.data.opening import open_data
from vitrail.errors import ConfigError, DataError, command, name_option, tell_count, write_option
from vitrail.models.family import Family
from vitrail.models.registry import find_family
from vitrail.reproduction.curves import Band, Curves, compute_band, read_curves

SHIPPED = RECIPES / "proxies" / "cifar10.json"
"""The curves that come with the package."""
OF_FAMILIES = ("cifar10_tnt", "cifar10_t2t", "cifar10_twins", "cifar10_ptnt")
"""Recipe of each family's proxy."""
PLACES = (
    "data.root",
    "data.download",
    "data.workers",
    "output.",
    "train.device",
    "train.precision",
)
"""Beginnings of the settings that say where a proxy is run; with any other it would be none."""


@dataclass(frozen=True)
class Proxy:
    """A small run whose curve is known."""

    recipe: str
    settings: Mapping[str, Any]
    """Settings over the recipe's, by section."""
    folder: Path
    """Folder of the run, begun or gone on with."""
    band: Band
    made: Mapping[str, str]
    """What the band was measured with."""
    notes: tuple[str, ...]


def choose_proxy(model: str, family: Family[Any], given: Layer, expected: Path | None) -> Proxy:
    """Return the proxy of a model's family, with settings that say where it is run.

    Args:
        model: Name of the model.
        family: Its family.
        given: Settings of the user.
        expected: File of curves of other runs than those that come with the package.

    Raises:
        ConfigError: There is no proxy, or settings would change it.
        DataError: The images are others.
    """
    curves = read_curves(SHIPPED if expected is None else expected)
    recipe = _find_recipe(model, family, curves, expected)
    _refuse_changes(recipe, given)
    values: dict[str, dict[str, Any]] = {}
    for key, value in curves.settings.items():
        section, _, name = key.partition(".")
        values.setdefault(section, {})[name] = value
    for section, content in given.values.items():
        values[section] = {**values.get(section, {}), **content}

    layer = read_recipe(recipe).layer
    config = resolve(TrainConfig, [layer, Layer(given.origin, values)]).config
    notes = []
    if is_laid_out(config.data):
        values["data"] = {**values.get("data", {}), "name": None, "val_split": "test"}
        config = resolve(TrainConfig, [layer, Layer(given.origin, values)]).config
        notes.append(
            f"{config.data.root}: read as image folders, train/ to train on and test/ to validate with"
        )
    refuse_gaps(config, recipe)
    if config.data.name is None:
        refuse_other_images(config.data, recipe, curves.images)
    name = config.output.name or f"{Path(recipe).stem}_proxy"
    folder = Path(config.output.root).expanduser() / name
    # the option that names the folder, not these, says where the run is
    values["output"] = {**values.get("output", {})}
    values["output"].pop("root", None)
    values["output"].pop("name", None)
    band = compute_band(curves, recipe)
    for epoch in range(1, len(band.mean) + 1):
        if band.ends(epoch) == (0.0, 100.0):
            notes.append(
                f"after epoch {epoch} every accuracy is inside the band, so that it shows nothing: the "
                "curves are too few, or differ too much"
            )
    return Proxy(recipe, values, folder, band, curves.made, tuple(notes))


def _find_recipe(model: str, family: Family[Any], curves: Curves, expected: Path | None) -> str:
    """Return the recipe of a family that there are curves of.

    Raises:
        ConfigError: There is none, with those that there are.
    """
    for recipe in curves.by_recipe:
        if family_of(recipe) == family.name:
            return recipe
    there = ", ".join(curves.by_recipe) or "no recipe"
    kind = family.title or family.name
    if expected is not None:
        raise ConfigError(
            f"{write_option('expected', expected)}: it has curves of {there}, and {model} is a "
            f"{kind}; give a file with curves of one"
        )
    for recipe in OF_FAMILIES:
        if family_of(recipe) == family.name:
            raise ConfigError(
                f"{model}: its proxy {recipe} has no band yet (there is one of {there}); "
                f"`{command('train', recipe)}` trains it without, and "
                f"{name_option('expected')} takes curves of your own runs"
            )
    raise ConfigError(
        f"{model}: its family has no proxy; there is one of {there}, and {name_option('expected')} "
        "takes curves of your own runs"
    )


def family_of(recipe: str) -> str:
    """Return the name of the family that a recipe trains a model of; empty where no model is called so."""
    model = read_recipe(recipe).layer.values.get("model", {}).get("name", "")
    family = find_family(str(model))
    return "" if family is None else family.name


def _refuse_changes(recipe: str, given: Layer) -> None:
    """Refuse settings that would make a proxy another run.

    Raises:
        ConfigError: The first of them.
    """
    for section, content in given.values.items():
        for key, value in content.items():
            if not f"{section}.{key}".startswith(PLACES):
                whole = f"{section}.{key}={value}"
                other = command("train", recipe, whole)
                allowed = ", ".join(place.rstrip(".") for place in PLACES)
                raise ConfigError(
                    f"{whole}: the curve of a proxy is known for its own settings alone; drop it, "
                    f"or train without a band: {other}. Allowed are {allowed}"
                )


def is_laid_out(section: DataSection) -> bool:
    """Say whether data.root has the images of a named set in folders train/<class>/ and test/<class>/."""
    if section.name is None or section.root is None:
        return False
    root = Path(section.root).expanduser()
    return (root / "train").is_dir() and (root / "test").is_dir()


def refuse_gaps(config: TrainConfig, recipe: str) -> None:
    """Refuse a recipe whose run has other epochs, or other numbers, than a curve has accuracies.

    Raises:
        ConfigError: With the setting that says so.
    """
    cooldown, every = config.schedule.cooldown_epochs, config.train.eval_every
    for key, value, wanted in (
        ("schedule.cooldown_epochs", cooldown, 0),
        ("train.eval_every", every, 1),
        ("data.unlabelled", config.data.unlabelled, False),
    ):
        if value != wanted:
            raise ConfigError(
                f"{recipe}: a curve has top-1 after each of train.epochs, and {key} is {value}; "
                f"measure curves of a recipe with {key}={wanted}"
            )


def refuse_other_images(section: DataSection, recipe: str, images: Mapping[str, int]) -> None:
    """Refuse images in folders that are not as many as the curves were measured with.

    Raises:
        DataError: With both numbers.
    """
    data = open_data(section)
    for name, source in (("train", data.train), ("val", data.val)):
        if len(source) != images[name]:
            raise DataError(
                f"data.root {section.root}: {source.description} has "
                f"{tell_count(len(source), 'image')} and the curves of {recipe} were measured with "
                f"{images[name]:,}; give the whole set, or leave out data.root and write "
                "data.download=true"
            )


def list_shipped() -> list[str]:
    """Return the recipes of the proxies that come with the package with a band."""
    return list(read_curves(SHIPPED).by_recipe)
