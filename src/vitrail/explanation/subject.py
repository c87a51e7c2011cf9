"""Subject: a model whose methods are to be scored, with what they need of its file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vitrail.choices import Device, Engine, ExplanationMethod
from vitrail.config.resolve import Layer
from vitrail.devices import pick_device
from vitrail.display import Display
from vitrail.explanation.explainer import answer_of, find_class
from vitrail.explanation.methods import choose_method, list_methods
from vitrail.images.preprocess import Preprocess
from vitrail.inference.predictor import read_predictor
from vitrail.weights.checkpoint import Record


@dataclass(frozen=True)
class Subject:
    """A model that is ready to be explained by several methods."""

    answer: Callable[[Tensor], Tensor]
    """The model, or what runs an exported file."""
    device: torch.device
    record: Record
    preprocess: Preprocess
    is_multi_label: bool
    methods: tuple[ExplanationMethod, ...]
    """Methods that are asked for, or all that suit the model."""
    wanted: int | None
    """Class that is explained; None is the most probable one of each image."""


def open_subject(
    path: Path | str,
    settings: Sequence[Layer] = (),
    *,
    methods: Sequence[ExplanationMethod] | None = None,
    class_name: str | int | None = None,
    engine: Engine | None = None,
    device: Device = "auto",
    display: Display,
) -> Subject:
    """Open a weight file or an exported file, ready to be explained by several methods.

    Args:
        path: The file; its ending says what it is.
        settings: Layers of settings in the sections `weights` and `preprocess`.
        methods: Methods that are wanted; None is all that suit the model.
        class_name: Class to explain, by its name or its number; None is the most probable one.
        engine: Engine that is to run an exported file; None is the usual one.
        device: "auto" takes the accelerator, where there is one.
        display: Told what the user should know of the file.

    Raises:
        CheckpointError: The file is missing or damaged, or says nothing of its classes.
        ConfigError: A setting is wrong, or the model has no such class or method.
        MissingExtra: The engine is not installed.
    """
    unstarted = read_predictor(path, settings, engine=engine, display=display)
    family = unstarted.record.family.name
    is_exported = unstarted.is_exported
    if methods is None:
        chosen = list_methods(family, is_exported=is_exported)
    else:
        for one in methods:
            choose_method(unstarted.path, family, one, is_exported=is_exported)
        chosen = dict.fromkeys(methods)
    wanted = None if class_name is None else find_class(unstarted.classes, class_name, str(path))
    predictor = unstarted.start(pick_device(device))
    if is_exported:
        display.note(f"{path}: run by {predictor.network.about}")
    return Subject(
        answer_of(predictor.network),
        predictor.network.device,
        unstarted.record,
        unstarted.preprocess,
        unstarted.rule.thresholds is not None,
        tuple(chosen),
        wanted,
    )
