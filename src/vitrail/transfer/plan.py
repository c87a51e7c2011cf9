"""Plan a fine-tuning: look at the data, measure the floor, choose what is left open, and write it as a recipe.

A plan is two files: NAME.yaml, an ordinary recipe in which every automatic value stands beside its
reason, and NAME-probe.safetensors, with which it begins: the given weights with a linear probe as
their head, or with their own where that is better. The second is a model that can be used as it is.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import CHOSEN, Layer, flatten, resolve
from vitrail.config.values import to_plain
from vitrail.data.opening import Data
from vitrail.display import Display
from vitrail.distributed.processes import choose_precision, processes
from vitrail.errors import ConfigError, name_option
from vitrail.files import refusal_told, write_whole
from vitrail.models.family import VisionModel
from vitrail.training.initial_model import (
    adopt_recorded_settings,
    build_model,
    build_preprocess,
    open_initial_weights,
)
from vitrail.training.setup import open_training_data
from vitrail.transfer.budget import fit_epochs, measure_speed
from vitrail.transfer.floor import Floor, embed_data, measure_floor, save_probe
from vitrail.transfer.memory import count_fitting_images
from vitrail.transfer.rules import MODELS, Choice, Circumstances, Size, choose_settings
from vitrail.transfer.survey import Survey, survey_data
from vitrail.weights.checkpoint import model_options
from vitrail.weights.loading import open_model
from vitrail.weights.published.catalogue import WORD
from vitrail.weights.request import make_request

ENOUGH_FOR_SCRATCH = 100_000
"""Images from which on a training without trained weights may do well; these models were published
for 1.28 million."""
ELSEWHERE = "choose another folder with output.root"
RESERVED = "# `vitrail finetune` plans this recipe\n"
UNDECIDED = Layer("auto", {"schedule": {"warmup_epochs": 0.0, "warmup_lr": 0.0, "min_lr": 0.0}})
"""Settings that go with any others, in the place of those that are chosen later."""


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
    given: Layer, *, name: str, size: Size, budget_s: float | None, display: Display
) -> Plan:
    """Look at the data, measure the floor, choose settings and write the recipe.

    Args:
        given: Settings that the user gave, which are never changed.
        name: Name of the recipe, where `output.name` gives none.
        size: Size of the model, where neither a model nor weights are given.
        budget_s: Seconds that training may take, which epochs are counted for; None takes the
            rule's.
        display: Where progress is shown.

    Raises:
        ConfigError: Settings that do not fit together or the data, or a budget too small for one
            epoch.
        DataError: The images are not there, or not as they should be.
        CheckpointError: The weights cannot be read, or the plan cannot be written.
    """
    settings = resolve(TrainConfig, [UNDECIDED, given]).config
    if budget_s is not None and "epochs" in given.values.get("train", {}):
        raise ConfigError(
            f"{name_option('budget')} and train.epochs both say how long to train; give one of them"
        )
    given_values = read_given_values(given, settings)
    precision = choose_precision(settings.train.precision, settings.train.device)
    folder = Path(settings.output.root).expanduser()
    with (
        reserved_name(folder, settings.output.name or name) as name,
        processes(precision, settings.train.device) as accelerator,
    ):
        # Images
        settings, data = open_training_data(settings, accelerator, display)
        images = survey_data(data, settings.data)
        for line in images.lines():
            display.note(line)

        # Weights, and what their features reach
        start = choose_start(settings, given_values, size)
        floor, probe = None, None
        begun = resolve(TrainConfig, [UNDECIDED, given, _as_layer(start)]).config
        if begun.model.weights is not None:
            probe = folder / f"{name}-probe.safetensors"
            floor, model = probe_weights(begun, data, accelerator, probe, display)
            reason = f"{begun.model.weights}, with {floor.head} as the head"
            start = [one for one in start if one.key != "model.weights"]
            start.append(Choice("model.weights", str(probe), reason))
        else:
            display.warn(tell_scratch(images))
            model = build_model(begun, begun.model.name, len(data.classes)).to(accelerator.device)

        # Settings
        known = Circumstances(
            num_features=model.num_features,
            most_at_once=count_fitting_images(model),
            reached=None if floor is None else floor.start.value,
            knows_classes=floor is not None and floor.own is not None,
            on_cpu=accelerator.device.type == "cpu",
            has_bfloat16=accelerator.device.type == "cuda"
            and torch.cuda.is_bf16_supported(including_emulation=False),
            given=given_values,
        )
        choices = [*start, *choose_settings(images, known)]
        kept = dict(given_values)
        if floor is not None:
            kept = {key: value for key, value in kept.items() if not _is_of_weights(key)}
        if budget_s is not None:
            config = resolve(TrainConfig, [_as_layer(kept), _as_layer(choices)]).config
            speed = measure_speed(config, given_values, accelerator, precision, display)
            allowed = replace(known, epochs=fit_epochs(speed, budget_s, probe))
            choices = [*start, *choose_settings(images, allowed)]

        # Recipe
        recipe = folder / f"{name}.yaml"
        values = {**kept, **{one.key: one.value for one in choices}, "output.name": name}
        resolve(TrainConfig, [_as_layer(values)])  # all of it fits together
        write_whole(recipe, write_recipe(values, choices).encode(), ELSEWHERE)
    return Plan(
        recipe=recipe,
        survey=images,
        floor=floor,
        probe=probe,
        choices=tuple(choices),
        given=kept,
    )


def choose_start(settings: TrainConfig, given: Mapping[str, Any], size: Size) -> list[Choice]:
    """Choose the model and the weights to begin with, as far as they are left open.

    Raises:
        CheckpointError: The given weights cannot be read.
    """
    if settings.model.weights is not None and "model.name" not in given:
        request = make_request(settings.weights)
        name = open_model(settings.model.weights, request).record.model
        return [Choice("model.name", name, "the model of the given weights")]
    choices = []
    name = settings.model.name
    if "model.name" not in given:
        name = MODELS[size]
        choices.append(
            Choice("model.name", name, f"the {size} model of the highest published accuracy")
        )
    if "model.weights" not in given:
        choices.append(Choice("model.weights", WORD, f"published weights of {name}"))
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
    floor = measure_floor(features, model, begun)
    for line in floor.lines():
        display.note(line)
    record = replace(
        opened.record, options=model_options(model), classes=data.classes, preprocess=preprocess
    )
    save_probe(path, model, record, floor, features)
    return floor, model


@contextmanager
def reserved_name(folder: Path, name: str) -> Iterator[str]:
    """Yield a name for which neither a run nor a plan is in the folder yet: NAME, or NAME-2 and so on.

    Its recipe is there from then on, still without settings, so that no other process takes the
    name; it is removed where planning fails.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    recipe = _take_free_recipe(folder, name)
    try:
        yield recipe.stem
    except BaseException:
        recipe.unlink(missing_ok=True)
        raise


def _take_free_recipe(folder: Path, name: str) -> Path:
    """Create the first recipe that neither a run nor a plan has the name of."""
    for number in itertools.count(1):
        free = name if number == 1 else f"{name}-{number}"
        recipe = folder / f"{free}.yaml"
        if (folder / free).exists() or (folder / f"{free}-probe.safetensors").exists():
            continue
        with refusal_told(recipe, None, ELSEWHERE):
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError), recipe.open("x", encoding="utf-8") as file:
                file.write(RESERVED)
                return recipe
    raise AssertionError


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
