"""Plan a fine-tuning: look at the data, measure the floor, choose what is left open, and write it as a recipe.

A plan is two files: NAME.yaml, an ordinary recipe in which every automatic value stands beside its
reason, and NAME-probe.safetensors, with which it begins: the given weights with a linear probe as
their head, or with their own where that is better. The second is a model that can be used as it is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import CHOSEN, Layer, flatten, resolve
from vitrail.config.training_sections import is_of_training
from vitrail.config.values import to_plain
from vitrail.data.opening import Data
from vitrail.data.sources import count_by_class
from vitrail.display import Display
from vitrail.distributed.processes import choose_precision, processes
from vitrail.errors import ConfigError, name_option
from vitrail.files import write_whole
from vitrail.models.family import VisionModel
from vitrail.training.initial_model import (
    adopt_recorded_settings,
    build_model,
    build_preprocess,
    open_initial_weights,
)
from vitrail.training.setup import build_sampler, open_training_data
from vitrail.transfer.budget import fit_epochs, measure_speed
from vitrail.transfer.floor import Floor, embed_data, measure_floor, save_probe
from vitrail.transfer.memory import count_fitting_images
from vitrail.transfer.names import ELSEWHERE, probe_of, recipe_of, reserved_name
from vitrail.transfer.rules import (
    MODELS,
    Choice,
    Circumstances,
    Size,
    check_optimizer,
    choose_settings,
)
from vitrail.transfer.survey import Survey, survey_data
from vitrail.weights.checkpoint import model_options
from vitrail.weights.loading import open_model
from vitrail.weights.published.catalogue import WORD
from vitrail.weights.request import make_request

ENOUGH_FOR_SCRATCH = 100_000
"""Images from which on a training without trained weights may do well; these models were published
for 1.28 million."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a fine-tuning is to do, and why."""

    recipe: Path
    """File of all settings that are no default."""
    survey: Survey
    floor: Floor | None
    """What the given weights reach without training; None for a training from scratch."""
    probe: Path | None
    """The weights that training begins with: those given, with the better head: a linear probe, or
    their own."""
    choices: tuple[Choice, ...]
    """Settings that were chosen."""
    given: Mapping[str, Any]
    """Settings that were given, by their dotted keys."""


def make_plan(
    given: Layer, *, name: str, size: Size | None, budget_s: float | None, display: Display
) -> Plan:
    """Look at the data, measure the floor, choose settings and write the recipe.

    Args:
        given: Settings that the user gave, which are never changed.
        name: Name of the recipe, where `output.name` gives none.
        size: Size of the model, small where none is given; decided by a model or weights.
        budget_s: Seconds that training may take, which epochs are counted for; None takes the
            rule's.
        display: Where progress is shown.

    Raises:
        ConfigError: Settings that do not fit together or the data, or a budget too small for one
            epoch.
        DataError: The images are not there, or not as they should be.
        CheckpointError: The weights cannot be read, or the plan cannot be written.
    """
    settings = settle_given(given, budget_s)
    given_values = read_given_values(given, settings)
    check_optimizer(given_values)
    start = choose_start(settings, given_values, size, display)
    precision = choose_precision(settings.train.precision, settings.train.device)
    folder = Path(settings.output.root).expanduser()
    with (
        reserved_name(folder, settings.output.name, name, display) as name,
        processes(precision, settings.train.device) as accelerator,
    ):
        # Images
        settings, data = open_training_data(settings, accelerator, display)
        counts = count_by_class(data.train)
        build_sampler(settings, data, counts, accelerator)  # refuses a batch that does not fit
        images = survey_data(data, settings.data)
        for line in images.lines():
            display.note(line)

        # Weights, and what their features reach
        begun = resolve(TrainConfig, [undecided(given), given, _as_layer(start)]).config
        floor, probe = None, None
        if begun.model.weights is not None:
            probe = probe_of(folder, name)
            floor, model = probe_weights(begun, data, accelerator, probe, display)
            reason = f"{begun.model.weights}, with {floor.head} as the head"
            start = [one for one in start if one.key != "model.weights"]
            start.append(Choice("model.weights", str(probe), reason))
        else:
            display.warn(tell_scratch(images))
            model = build_model(begun, begun.model.name, len(data.classes)).to(accelerator.device)

        # Settings
        known = describe_circumstances(model, floor, accelerator, given_values)
        choices = [*start, *choose_settings(images, known)]
        kept = dict(given_values)
        if floor is not None:
            kept = {key: value for key, value in kept.items() if not _is_of_weights(key)}
        if budget_s is not None:
            config = resolve(TrainConfig, [_as_layer(kept), _as_layer(choices)]).config
            speed = measure_speed(config, given_values, accelerator, precision, display)
            usual = next(one.value for one in choices if one.key == "train.epochs")
            allowed = fit_epochs(speed, budget_s, usual, probe)
            choices = [*start, *choose_settings(images, replace(known, epochs=allowed))]

        # Recipe
        recipe = recipe_of(folder, name)
        values = {**kept, **{one.key: one.value for one in choices}, "output.name": name}
        planned = resolve(TrainConfig, [_as_layer(values)]).config  # all of it fits together
        if floor is not None and not planned.train.eval_first:
            display.warn(tell_no_floor(planned))
        write_whole(recipe, write_recipe(values, choices).encode(), ELSEWHERE)
    return Plan(
        recipe=recipe,
        survey=images,
        floor=floor,
        probe=probe,
        choices=tuple(choices),
        given=kept,
    )


def settle_given(given: Layer, budget_s: float | None) -> TrainConfig:
    """Return the settings that the user gave, with others beside them that go with any.

    Raises:
        ConfigError: They do not fit together.
    """
    if budget_s is not None and "epochs" in given.values.get("train", {}):
        raise ConfigError(
            f"{name_option('budget')} and train.epochs both say how long to train; give one of them"
        )
    return resolve(TrainConfig, [undecided(given), given]).config


def undecided(given: Layer) -> Layer:
    """Return settings that go with any others, in the place of those that are chosen later."""
    batch_size = given.values.get("train", {}).get("accumulate", 1)
    return Layer(
        "auto",
        {
            "schedule": {"warmup_epochs": 0.0, "warmup_lr": 0.0, "min_lr": 0.0},
            "train": {"batch_size": batch_size},
        },
    )


def describe_circumstances(
    model: VisionModel, floor: Floor | None, accelerator: Accelerator, given: Mapping[str, Any]
) -> Circumstances:
    """Return what the rules know beside the images."""
    is_cuda = accelerator.device.type == "cuda"
    return Circumstances(
        num_features=model.num_features,
        most_at_once=count_fitting_images(model),
        reached=None if floor is None else floor.start.value,
        knows_classes=floor is not None and floor.own is not None,
        on_cpu=accelerator.device.type == "cpu",
        has_bfloat16=is_cuda and torch.cuda.is_bf16_supported(including_emulation=False),
        given=given,
    )


def tell_no_floor(config: TrainConfig) -> str:
    """Say that the run may end with worse weights than it begins with, and why."""
    monitor = config.train.monitor
    if monitor and is_of_training(monitor):
        why = f"train.monitor={monitor} is not measured before training"
    else:
        why = "train.eval_first=false leaves out what it begins with"
    return f"{why}, so the run may end with worse weights than those"


def choose_start(
    settings: TrainConfig, given: Mapping[str, Any], size: Size | None, display: Display
) -> list[Choice]:
    """Choose the model and the weights to begin with, as far as they are left open, and see that they are there.

    Raises:
        ConfigError: A size is given beside a model or weights, which decide it.
        CheckpointError: The weights cannot be had or read, or are of another model.
    """
    choices = []
    weights, name = settings.model.weights, settings.model.name
    is_named, is_open = "model.name" in given, "model.weights" not in given
    if size is not None and (is_named or weights is not None):
        decides = "model.name" if is_named else "model.weights"
        raise ConfigError(
            f"{name_option('size')} chooses among models, and {decides} is given; leave one out"
        )
    if not is_named and weights is None:
        size = size or "small"
        name = MODELS[size]
        reason = f"the {size} model of the highest published accuracy"
        choices.append(Choice("model.name", name, reason))
    if is_open:
        weights = WORD
        choices.append(Choice("model.weights", WORD, f"published weights of {name}"))
    if weights is None:
        return choices
    known = name if is_named or is_open else None
    opened = open_model(weights, make_request(settings.weights, model=known), display)
    if known is None:
        name = opened.record.model
        choices.append(Choice("model.name", name, "the model of the given weights"))
    return choices


def tell_scratch(images: Survey) -> str:
    """Say what a training without trained weights means."""
    if images.train_images >= ENOUGH_FOR_SCRATCH:
        return f"model.weights is null: {images.train_images:,} images are trained on from nothing, which takes long"
    return (
        f"model.weights is null: {images.train_images:,} images are few to train a network on from "
        "nothing; leave it out for published weights, which know most of what images have in common"
    )


def probe_weights(
    settings: TrainConfig, data: Data, accelerator: Accelerator, path: Path, display: Display
) -> tuple[Floor, VisionModel]:
    """Measure what the features of the given weights reach, and write them with the probe as their head.

    Returns:
        What they reach, and the model with the probe.

    Raises:
        CheckpointError: The weights cannot be read, or the file cannot be written.
    """
    opened = open_initial_weights(settings, settings.model.name, data.classes, display)
    settings = adopt_recorded_settings(settings, opened.record, display)
    model = opened.build(accelerator.device)
    preprocess = build_preprocess(settings, settings.model.name, model)
    begun = time.perf_counter()
    features = embed_data(model, preprocess, data, accelerator, display, settings.data)
    is_head_trained = not opened.account.is_head_new
    floor = measure_floor(features, model, begun, is_head_trained=is_head_trained)
    for line in floor.lines():
        display.note(line)
    record = replace(
        opened.record, options=model_options(model), classes=data.classes, preprocess=preprocess
    )
    save_probe(path, model, record, floor, features)
    return floor, model


def write_recipe(values: Mapping[str, Any], choices: Sequence[Choice]) -> str:
    """Return a recipe as YAML: settings by their dotted keys, and under `auto` why some were chosen."""
    reasons = {one.key: {"value": to_plain(one.value), "reason": one.reason} for one in choices}
    header = (
        "# Written by `vitrail finetune`; a recipe like any other, to be edited and trained with `vitrail train`.\n"
        f"# The part {CHOSEN} has the reason of each chosen value; `vitrail config` shows it while the value stands.\n"
    )
    parts = []
    for section, content in _as_layer(values).values.items():
        parts.append(yaml.safe_dump({section: to_plain(content)}, sort_keys=False))
    parts.append(yaml.safe_dump({CHOSEN: reasons}, sort_keys=False, width=120))
    return header + "\n".join(parts)


def read_given_values(given: Layer, config: TrainConfig) -> dict[str, Any]:
    """Return {dotted key: value} of the settings that were given, with the types of the settings."""
    values = flatten(config)
    keys = [f"{section}.{key}" for section, content in given.values.items() for key in content]
    return {key: values[key] for key in keys}


def _is_of_weights(key: str) -> bool:
    """Say whether a setting is about the weights that were given, of which the file with the probe needs nothing."""
    return key == "model.weights" or key.startswith("weights.")


def _as_layer(values: Mapping[str, Any] | Sequence[Choice]) -> Layer:
    """Return settings by their dotted keys as sections."""
    if not isinstance(values, Mapping):
        values = {one.key: one.value for one in values}
    sections: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        section, key = dotted.split(".")
        sections.setdefault(section, {})[key] = value
    return Layer("auto", sections)
