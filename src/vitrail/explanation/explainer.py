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
from vitrail.explanation.relevance import Maps
from vitrail.images.pixels import Pixels
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.inference.decision import DecisionRule, to_probabilities
from vitrail.inference.network import Network
from vitrail.inference.predictor import Predictor, read_predictor, view_or_reason

SHOWN_CLASSES = 20
"""Most names of classes that a message lists."""
NOT_FINITE = "the model's logits or their gradients are not finite, so there is nothing to explain"


@dataclass(frozen=True)
class Explained:
    """The explanation of one image, or why the image could not be read."""

    path: str
    classes: tuple[int, ...] = ()
    """Indices of the classes, the most probable first, or those that were asked for."""
    probabilities: tuple[float, ...] = ()
    answer: int = 0
    """Index of the most probable class."""
    maps: Mapping[str, NDArray[np.float32]] | None = None
    """By level, the finest last: a map for each class (k, h, w), or a single one (1, h, w) where the
    method knows of no class."""
    view: Pixels | None = None
    """The image as the model saw it, before it was normalised."""
    logits: Tensor | None = None
    """Logits (1, k) of all classes."""

    error: str | None = None

    @property
    def empty(self) -> list[int]:
        """Indices of the classes whose finest map is 0 everywhere."""
        if not self.maps:
            return []
        *_, finest = self.maps.values()
        pairs = zip(self.classes, finest, strict=False)  # a map of no class stands with the first
        return [index for index, values in pairs if not values.any()]


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
    wanted: tuple[int, ...] = ()
    """Classes that are explained, in this order; none is the most probable ones."""

    def explain(self, path: str | Path) -> Explained:
        """Explain the answer to one image; one that cannot be read gives its error."""
        shown = printable(path)
        view = view_or_reason(os.fspath(path), self.preprocess)
        if isinstance(view, str):
            return Explained(shown, error=view)
        return self.explain_view(view, shown)

    def explain_view(self, view: Pixels, shown: str = "") -> Explained:
        """Explain the answer to one image as the model sees it, before it is normalised.

        Args:
            view: The image (c, h, w).
            shown: Its path, for the result.
        """
        images = normalise(
            view[None].to(self.device), self.preprocess.mean, self.preprocess.std
        ).contiguous()
        try:
            logits, maps = self._answer_and_explain(images)
        except _NotFinite:
            return Explained(shown, error=NOT_FINITE)
        if not all(bool(one.isfinite().all()) for one in maps.values()):
            return Explained(shown, error=NOT_FINITE)
        is_multi_label = self.rule.thresholds is not None
        odds = to_probabilities(logits, is_multi_label=is_multi_label)[0]
        chosen = self._choose(logits)
        return Explained(
            shown,
            tuple(chosen),
            tuple(float(odds[one]) for one in chosen),
            int(odds.argmax()),
            {level: one.float().cpu().numpy() for level, one in maps.items()},
            view,
            logits,
        )

    def _answer_and_explain(self, images: Tensor) -> tuple[Tensor, Maps]:
        """Return the logits (1, k) of one image and its maps, from a single pass where the method makes one."""
        passed: list[Tensor] = []

        def take_first(logits: Tensor) -> Tensor:
            passed.append(_require_finite(logits))
            return torch.tensor(self._choose(passed[0])[:1], device=logits.device)

        is_single = len(self.wanted) == 1 or (not self.wanted and self.rule.topk == 1)
        if is_single or not METHODS[self.method].of_class:
            maps = explain(self.method, self.answer, images, take_first)
            return passed[0], maps
        with torch.no_grad():
            logits = _require_finite(self.answer(images))
        classes = torch.tensor(self._choose(logits), device=self.device)
        repeated = images.expand(len(classes), -1, -1, -1).contiguous()
        return logits, explain(self.method, self.answer, repeated, classes)

    def _choose(self, logits: Tensor) -> list[int]:
        """Return the classes that are explained, the most probable first, or those that were asked for."""
        if self.wanted:
            return [*self.wanted]
        # no class of a multi-label model may reach its threshold; the nearest is explained then
        return self.rule.choose(logits)[0][0] or [int(logits[0].argmax())]


class _NotFinite(Exception):
    """Logits that are NaN or infinite."""


def _require_finite(logits: Tensor) -> Tensor:
    """Return logits in float32 on the CPU.

    Raises:
        _NotFinite: One of them is NaN or infinite.
    """
    if not logits.isfinite().all():
        raise _NotFinite
    return logits.float().cpu()


def open_explainer(
    path: Path | str,
    settings: Sequence[Layer] = (),
    *,
    method: ExplanationMethod | None = None,
    class_names: Sequence[str | int] = (),
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
        class_names: Classes to explain, by name or number; none is the most probable ones.
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
    family = unstarted.record.family.name
    chosen = choose_method(unstarted.path, family, method, is_exported=unstarted.is_exported)
    found = [find_class(unstarted.classes, name, str(path)) for name in class_names]
    if found and not METHODS[chosen].of_class:
        display.note(
            f"{chosen} explains the answer as a whole: its map is the same for all classes"
        )
    predictor = unstarted.start(pick_device(device))
    if unstarted.is_exported:
        display.note(f"{path}: run by {predictor.network.about}")
    return explainer_of(predictor, chosen, found)


def explainer_of(
    predictor: Predictor,
    method: ExplanationMethod,
    wanted: Sequence[int] = (),
    *,
    topk: int | None = None,
) -> Explainer:
    """Return what explains the answers of a predictor, in float32.

    Args:
        predictor: The model, or exported file, that is ready to answer.
        method: A method that suits it.
        wanted: Indices of the classes to explain; none is the most probable ones.
        topk: Most classes to explain; None is as many as the predictor gives.
    """
    network = predictor.network
    return Explainer(
        network.path,
        answer_of(network),
        network.device,
        method,
        predictor.preprocess,
        predictor.classes,
        predictor.rule if topk is None else predictor.rule.limit_to(topk),
        tuple(dict.fromkeys(wanted)),
    )


def answer_of(network: Network) -> Callable[[Tensor], Tensor]:
    """Return what turns images into logits: the module of a weight file, or what runs an exported one."""
    return network if network.model is None else network.model


def find_class(names: Sequence[str], asked: str | int, path: str, where: str | None = None) -> int:
    """Return the index of a class by its name, or by its number where no class is called so.

    Args:
        names: Names of all classes.
        asked: The name, or number, that is looked for.
        path: What messages call the model.
        where: How messages write what was asked for; None is as an option.

    Raises:
        ConfigError: The model has no such class.
    """
    name = str(asked)
    if name in names:
        return list(names).index(name)
    if name.isascii() and name.isdecimal() and int(name) < len(names):
        return int(name)
    where = where or write_option("class" if names_flags() else "class_name", name)
    listed = ", ".join(names[:SHOWN_CLASSES])
    if len(names) > SHOWN_CLASSES:
        listed += f" and {len(names) - SHOWN_CLASSES:,} more"
    near = "" if name.lstrip("-").isdecimal() else suggest(name, names)
    rest = f"{near} It has {listed}" if near else f"; it has {listed}"
    raise ConfigError(f"{where}: {path} has no such class{rest}")
