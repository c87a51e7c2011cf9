"""Explainer: a file that is ready to explain its answers, with its preprocessing, class names and decision rule."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vitrail.choices import Device, Engine, ExplanationMethod
from vitrail.config.resolve import Layer
from vitrail.devices import pick_device
from vitrail.display import Display
from vitrail.errors import ConfigError, names_flags, printable, suggest, write_option
from vitrail.explanation.methods import METHODS, choose_method, explain
from vitrail.images.pixels import Pixels
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.inference.decision import DecisionRule, to_probabilities
from vitrail.inference.predictor import read_predictor, view_or_reason
from vitrail.models.registry import find_variant

SHOWN_CLASSES = 20
"""Most names of classes that a message lists."""


@dataclass(frozen=True)
class Explained:
    """The explanation of one image, or why the image could not be read."""

    path: str
    classes: tuple[int, ...] = ()
    """Indices of the classes, the most probable first, or the one that was asked for."""
    probabilities: tuple[float, ...] = ()
    answer: int = 0
    """Index of the most probable class."""
    maps: Mapping[str, NDArray[np.float32]] | None = None
    """By level, the finest last: a map for each class (k, h, w), or a single one (1, h, w) where the
    method knows of no class."""
    view: Pixels | None = None
    """The image as the model saw it, before it was normalised."""
    error: str | None = None


@dataclass(frozen=True)
class Explainer:
    """A file that is ready to explain its answers."""

    path: str
    answer: Callable[[Tensor], Tensor]
    """The model, or what runs an exported file."""
    device: torch.device
    method: ExplanationMethod
    preprocess: Preprocess
    names: tuple[str, ...]
    """Class names in the order of the logits; numbers where the file names no classes."""
    rule: DecisionRule
    wanted: int | None
    """Class that is explained instead of the most probable ones."""

    def explain(self, path: str | Path) -> Explained:
        """Explain the answer to one image; one that cannot be read gives its error."""
        shown = printable(path)
        view = view_or_reason(os.fspath(path), self.preprocess)
        if isinstance(view, str):
            return Explained(shown, error=view)
        image = view[None].to(self.device)
        images = normalise(image, self.preprocess.mean, self.preprocess.std)
        with torch.no_grad():
            logits = self.answer(images).float().cpu()
        is_multi_label = self.rule.thresholds is not None
        odds = to_probabilities(logits, is_multi_label=is_multi_label)[0]
        best = int(odds.argmax())
        chosen = [best] if self.wanted is None else [self.wanted]
        if self.wanted is None:
            # no class of a multi-label model may reach its threshold; the nearest is explained then
            chosen = self.rule.choose(logits)[0][0] or chosen
        explained = chosen if METHODS[self.method].of_class else chosen[:1]
        classes = torch.tensor(explained, device=self.device)
        repeated = images.expand(len(classes), -1, -1, -1).contiguous()
        maps = explain(self.method, self.answer, repeated, classes)
        return Explained(
            shown,
            tuple(chosen),
            tuple(float(odds[one]) for one in chosen),
            best,
            {level: one.float().cpu().numpy() for level, one in maps.items()},
            view,
        )


def open_explainer(
    path: Path | str,
    settings: Sequence[Layer] = (),
    *,
    method: ExplanationMethod | None = None,
    class_name: str | None = None,
    topk: int | None = None,
    engine: Engine | None = None,
    device: Device = "auto",
    display: Display,
) -> Explainer:
    """Open a weight file or an exported file, ready to explain its answers.

    Args:
        path: The file; its ending says what it is.
        settings: Layers of settings in the sections `weights` and `preprocess`.
        method: How answers are explained; None is what suits the family.
        class_name: Class to explain, by its name or its number; None is the most probable ones.
        topk: Most classes to explain of an image; None is one, or of a multi-label model all that
            reach their thresholds.
        engine: Engine that is to run an exported file; None is the usual one.
        device: "auto" takes the accelerator, where there is one.
        display: Told what the user should know of the file.

    Raises:
        CheckpointError: The file is missing or damaged, or says nothing of its classes.
        ConfigError: A setting is wrong, or the model has no such class or method.
        MissingExtra: The engine is not installed.
    """
    unstarted = read_predictor(path, settings, engine=engine, topk=topk, display=display)
    family = find_variant(unstarted.record.model)[0].name
    chosen = choose_method(unstarted.path, family, method, is_exported=unstarted.is_exported)
    wanted = None if class_name is None else find_class(unstarted.classes, class_name, str(path))
    if wanted is not None and not METHODS[chosen].of_class:
        display.note(
            f"{chosen} explains the answer as a whole: its map is the same for all classes"
        )
    target = pick_device(device)
    weights = unstarted.artifact.weights
    if weights is not None:
        answer = weights.build(target)
    else:
        network = unstarted.start(target).network
        answer, target = network, network.device
        display.note(f"{path}: run by {network.about}")
    return Explainer(
        unstarted.path,
        answer,
        target,
        chosen,
        unstarted.preprocess,
        unstarted.classes,
        unstarted.rule,
        wanted,
    )


def find_class(names: Sequence[str], name: str, path: str) -> int:
    """Return the index of a class by its name, or by its number where no class is called so.

    Raises:
        ConfigError: The model has no such class.
    """
    if name in names:
        return list(names).index(name)
    if name.isascii() and name.isdecimal() and int(name) < len(names):
        return int(name)
    where = write_option("class" if names_flags() else "class_name", name)
    listed = ", ".join(names[:SHOWN_CLASSES])
    if len(names) > SHOWN_CLASSES:
        listed += f" and {len(names) - SHOWN_CLASSES:,} more"
    near = suggest(name, names)
    rest = f"{near} It has {listed}" if near else f"; it has {listed}"
    raise ConfigError(f"{where}: {path} has no such class{rest}")
