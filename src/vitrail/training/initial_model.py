"""The model that a run begins with, new or from given weights, and how images are brought to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from vitrail.classes.matching import find_order_doubt
from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import list_recipes
from vitrail.display import Display
from vitrail.errors import ConfigError, command, list_some
from vitrail.images.preprocess import Preprocess, describe_normalisation, fit_statistics
from vitrail.models.family import TransformerConfig, VisionModel
from vitrail.models.registry import FAMILIES, build_config, create_model, find_family, find_variant
from vitrail.training.start import LeftOptions
from vitrail.weights.checkpoint import Record
from vitrail.weights.config_fields import ADAPTABLE, RATES
from vitrail.weights.loading import open_model
from vitrail.weights.opened import Opened, show_account
from vitrail.weights.request import make_request

VIEW = ("preprocess.crop", "preprocess.resize")
"""Settings of which part of an image a network sees, which a fine-tuning may well choose anew."""


def build_model(config: TrainConfig, name: str, num_classes: int) -> VisionModel:
    """Build the model that the settings describe, for so many classes."""
    return create_model(name, **_model_options(config, num_classes))


def refuse_left_options(left: LeftOptions | None, name: str) -> None:
    """Refuse the sizes that a recipe gives its own model, where the settings name another model.

    Raises:
        ConfigError: The sizes would make something else of the model than its name says.
    """
    if left is None:
        return
    wanted, own = name, left.model
    for family in FAMILIES:
        wanted, own = family.aliases.get(wanted, wanted), family.aliases.get(own, own)
    shared = {field.name for field in fields(TransformerConfig)}
    sizes = [key for key in left.options if key not in shared]
    family = find_family(wanted)
    if wanted == own or family is None or not sizes:
        return
    if family.library_name and wanted.partition(".")[0] == own.partition(".")[0]:
        return  # the tag of a library's name is of its weights, not of its sizes
    other = f"{wanted.removesuffix('_patch16_224')}_imagenet"
    if family.library_name:  # of models of a library none has a recipe; this one sets no sizes
        other = "tnt_s_imagenet"
    example = f", such as {other}" if other in list_recipes() else ""
    is_related = family is find_family(own)  # another family has other options
    raise ConfigError(
        f"model.name is {name}, and recipe {left.recipe} sets model.options ({list_some(sizes)}) "
        f"for its own model, {own}; name another recipe{example}"
        + (", or give these options too" if is_related else "")
    )


def _model_options(config: TrainConfig, num_classes: int) -> dict[str, Any]:
    """Return the fields of the model's configuration that the settings give."""
    model = config.model
    given: dict[str, Any] = {
        "num_classes": num_classes,
        "drop_path_rate": model.drop_path_rate,
        "drop_rate": model.drop_rate,
    }
    if model.image_size is not None:
        given["image_size"] = model.image_size
    if twice := sorted(given.keys() & model.options.keys()):
        raise ConfigError(
            f"model.options.{twice[0]}: is not an option; num_classes follows the data, the others "
            f"are model.{twice[0]}"
        )
    if "in_channels" in model.options:
        raise ConfigError(
            "model.options.in_channels: is not an option; it follows data.channels, so set that"
        )
    return {**given, "in_channels": config.data.channels, **model.options}


def open_initial_weights(
    config: TrainConfig, name: str, classes: Sequence[str], display: Display
) -> Opened:
    """Read the weights that a run begins with, for its classes and image size."""
    assert config.model.weights is not None
    request = make_request(
        config.weights,
        model=name,
        options=_model_options(config, len(classes)),
        classes=classes,
        by_order=config.data.match_classes == "by-order",
    )
    opened = open_model(config.model.weights, request, display)
    show_account(opened, display, trains_head=True)
    if opened.order_is_assumed and (doubt := find_order_doubt(classes, config.data.class_order)):
        display.warn(f"{opened.account.path}: {doubt}")
    _tell_of_other_settings(config, opened, display)
    return opened


def _tell_of_other_settings(config: TrainConfig, opened: Opened, display: Display) -> None:
    """Say where the settings are other than what the weights were trained with.

    Which part of an image is seen is null unless somebody chose it, which is worth a note. What
    changes the network or the scale of its pixels, or is a default, is worth a warning.
    """
    numerics = opened.account.numerics
    preprocess = opened.record.preprocess
    compared = [
        (key, value, numerics.get(key, value)) for key, value in config.model.options.items()
    ]
    for key, value in vars(config.preprocess).items():
        if value is not None:
            compared.append((f"preprocess.{key}", value, getattr(preprocess, key)))
    compared.append(("data.bits", config.data.bits, preprocess.bits))
    for key, value, expected in compared:
        if value != expected:
            tell = display.note if key in VIEW else display.warn
            tell(
                f"{opened.account.path}: expects {key}={expected}; the settings say {value}, which "
                "is taken"
            )


def adopt_recorded_settings(config: TrainConfig, record: Record, display: Display) -> TrainConfig:
    """Put into the settings what a weight file decides and they leave open: numerics, image size, preprocessing."""
    usual = find_variant(record.model)[1].config
    published_options = usual.list_options()
    recorded_options = {}
    for key, value in build_config(record.model, **record.options).list_options().items():
        if key not in (*ADAPTABLE, *RATES) and value != published_options.get(key):
            recorded_options[key] = value
    image_size = config.model.image_size
    if image_size is None and record.options["image_size"] != usual.image_size:
        image_size = record.options["image_size"]
    published = published_preprocess(
        record.model, record.preprocess.size, record.preprocess.channels
    )
    recorded_preprocess = {}
    for key, value in vars(config.preprocess).items():
        recorded = getattr(record.preprocess, key)
        if value is None and recorded != getattr(published, key):
            recorded_preprocess[key] = recorded
    adopted = []
    for key, value in recorded_options.items():
        if key not in config.model.options:
            adopted.append(f"model.options.{key}={value}")
    adopted += [f"preprocess.{key}={value}" for key, value in recorded_preprocess.items()]
    if adopted:
        display.note(f"{config.model.weights}: decides {', '.join(adopted)}")
    options = {**recorded_options, **config.model.options}
    return replace(
        config,
        model=replace(config.model, image_size=image_size, options=options),
        preprocess=replace(config.preprocess, **recorded_preprocess),
    )


def build_preprocess(config: TrainConfig, name: str, model: VisionModel) -> Preprocess:
    """Return how images are brought to the model: as it was published, unless the settings say otherwise."""
    published = published_preprocess(name, model.config.size, config.data.channels)
    given = {key: value for key, value in vars(config.preprocess).items() if value is not None}
    return replace(published, bits=config.data.bits, **given)


def published_preprocess(name: str, size: tuple[int, int], channels: int) -> Preprocess:
    """Return how images are brought to a model that was published with RGB, for so many channels."""
    variant = find_variant(name)[1]
    mean, std = fit_statistics(channels, variant.mean, variant.std)
    return Preprocess(
        size=size,
        crop=variant.crop,
        interpolation=variant.interpolation,
        resize=variant.resize,
        mean=mean,
        std=std,
        channels=channels,
    )


def tell_statistics(config: TrainConfig, preprocess: Preprocess, display: Display) -> None:
    """Say what images are normalised by, where it is neither published nor given."""
    if preprocess.pixels.is_picture or None not in (config.preprocess.mean, config.preprocess.std):
        return
    pixels = [f"data.channels={preprocess.channels}", f"data.bits={preprocess.bits}"]
    normalised = describe_normalisation(preprocess.mean, preprocess.std)
    note = f"{' '.join(pixels)}: {normalised}; preprocess.mean and .std change that"
    if config.data.name is None and config.data.root is not None:
        note += f", and this measures them: {command('check-data', f'data.root={config.data.root}', *pixels)}"
    display.note(note)
