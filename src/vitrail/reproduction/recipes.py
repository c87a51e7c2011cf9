"""The recipes of a model: what was published, by which settings, and what was reached here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import RecipeHeader, find_recipe, list_recipes, read_header, read_recipe
from vitrail.config.resolve import Layer, resolve
from vitrail.errors import ConfigError, command, tell_count
from vitrail.models.family import Family
from vitrail.models.registry import build_config, canonical_name, find_family, find_variant

TRAIN_IMAGES = {
    "imagenet": 1_281_167,
    "cifar10": 50_000,
    "cifar100": 50_000,
    "oxford-pets": 3_680,
    "flowers102": 2_040,
    "digits": 1_438,
}
"""Training images of the sets of the recipes."""
VAL_IMAGES = {
    "imagenet": 50_000,
    "cifar10": 10_000,
    "cifar100": 10_000,
    "oxford-pets": 3_669,
    "flowers102": 6_149,
    "digits": 359,
}
"""Validation images of the sets of the recipes."""


FIXED = ("model.name", "data.name", "data.list", "data.manifest", "data.unlabelled")
"""Settings that would make it a recipe of another model, or of other images."""


@dataclass(frozen=True)
class RecipeOfModel:
    """A recipe that trains a model as it was published, or on from there."""

    name: str
    config: TrainConfig
    header: RecipeHeader

    @property
    def set_name(self) -> str:
        """Name of the data set that the recipe's own settings are for."""
        return self.config.data.name or "imagenet"


def open_recipes(wanted: str, given: Layer) -> tuple[str, Family[Any], list[RecipeOfModel]]:
    """Return a model's name and family, and its recipes with settings over them, the first one first.

    Args:
        wanted: Name of a model, or of one of its recipes, which is then the first.
        given: Settings over the recipes'.

    Raises:
        ConfigError: No model or recipe is called so, or settings name another model or images.
    """
    for section, content in given.values.items():
        for key, value in content.items():
            if f"{section}.{key}" in FIXED:
                raise ConfigError(
                    f"{section}.{key}={value}: a recipe is shown with its own model and images; "
                    f"drop it, or time your own with `{command('bench-data')}`"
                )
    first = wanted if wanted in list_recipes() else None
    model = wanted
    if first is not None:
        model = str(read_recipe(first).layer.values["model"]["name"])
    model = canonical_name(model)
    family = find_family(model)
    assert family is not None  # as the name is canonical
    names = find_recipes(model)
    if first is not None:
        names = [first, *(name for name in names if name != first)]
    recipes = []
    for name in names:
        layer = read_recipe(name).layer
        config = resolve(TrainConfig, [layer, given]).config
        header = read_header(find_recipe(name)[1].read_text(encoding="utf-8"))
        recipes.append(RecipeOfModel(name, config, header))
    return model, family, recipes


def find_recipes(model: str) -> list[str]:
    """Return the recipes of a model at its published size, that of its published number first."""
    found = []
    for name in list_recipes():
        section = read_recipe(name).layer.values.get("model", {})
        # with options of its own, a recipe trains a small relative of the model
        if section.get("name") == model and not section.get("options"):
            begins = bool(section.get("weights"))
            found.append((not name.endswith("_imagenet") or begins, len(name), name))
    return [name for *_, name in sorted(found)]


def refuse_without_recipe(model: str, family: Family[Any]) -> None:
    """Say which model with a recipe is closest to one that has none.

    Raises:
        ConfigError: Always.
    """
    with_recipe = [name for name in family.variants if find_recipes(name)]
    if not with_recipe:
        raise ConfigError(
            f"{model}: no recipe trains it, nor another model of its family; `{command('config')}` "
            "lists the recipes"
        )
    params = find_variant(model)[1].params or 0
    closest = min(with_recipe, key=lambda name: abs((family.variants[name].params or 0) - params))
    raise ConfigError(
        f"{model}: no recipe trains it; the closest with one is {closest}, by "
        f"{find_recipes(closest)[0]}: `{command('reproduce', closest)}`"
    )


def describe_conditions(recipe: RecipeOfModel) -> list[tuple[str, str]]:
    """Return what a recipe asks for: names and texts."""
    config = recipe.config
    train, schedule, optim = config.train, config.schedule, config.optim
    images = TRAIN_IMAGES[recipe.set_name]
    epochs = f"{train.epochs}"
    if schedule.cooldown_epochs:
        epochs += f", and {schedule.cooldown_epochs} at the lowest rate"
    size = config.model.image_size
    if size is None:
        size = build_config(canonical_name(config.model.name)).image_size
    set_name = "ImageNet-1k" if recipe.set_name == "imagenet" else recipe.set_name
    rate = f"{schedule.name}, {schedule.warmup_epochs:g} epochs of warm-up"
    rows = [
        ("data", f"{set_name}, {images:,} images"),
        ("epochs", epochs),
        ("images of an update", f"{train.batch_size:,}"),
        ("image size", f"{size} pixels"),
        ("augmentation", describe_augmentation(config)),
        ("optimizer", f"{optim.name}, lr {optim.lr:g}, weight decay {optim.weight_decay:g}"),
        ("schedule", rate),
    ]
    if config.ema.decay:
        rows.append(("averaged weights", f"decay {config.ema.decay:g}"))
    if config.model.weights is not None:
        rows.append(("begins with", f"model.weights={config.model.weights}"))
    rows.append(("precision", train.precision))
    processes = tell_count(recipe.header.processes, "process", "processes")
    rows.append(("hardware", f"{processes} by its command"))
    if recipe.header.settings:
        rows.append(("settings from", recipe.header.settings))
    return rows


def describe_augmentation(config: TrainConfig) -> str:
    """Return what changes training images, in the order of the settings."""
    augment = config.augment
    low, high = augment.scale
    parts = [f"crops of {low:g} to {high:g}"]
    if augment.hflip:
        parts.append("mirroring")
    if augment.auto_augment:
        parts.append(augment.auto_augment)
    for name, value in (
        ("colour jitter", augment.color_jitter),
        ("erasing", augment.erase_prob),
        ("Mixup", augment.mixup),
        ("CutMix", augment.cutmix),
        ("label smoothing", augment.label_smoothing),
    ):
        if value:
            parts.append(f"{name} {value:g}" if isinstance(value, float | int) else name)
    if augment.repeats > 1:
        parts.append(f"{augment.repeats} views of each image")
    return ", ".join(parts)


def next_command(recipe: RecipeOfModel, devices: int) -> str:
    """Return what to type to train by a recipe on the devices of this machine."""
    place = "data.root=/path/to/imagenet"
    if recipe.set_name == "digits":
        place = ""
    elif recipe.config.data.name is not None:
        place = "data.download=true"
    words = ["train", recipe.name]
    if place:
        words.append(place)
    return command(*words, processes=devices)
