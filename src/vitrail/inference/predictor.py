"""Predictor: a model that is ready to classify images, with its preprocessing, class names and decision rule.

    predictor = open_predictor("runs/digits/best.safetensors", topk=3)
    for prediction in predictor.predict(["seven.png", "eight.png"]):
        print(prediction.path, prediction.choices, prediction.probabilities)

The command line, the server and Python all open models here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from vitrail.choices import Device, Precision
from vitrail.config.commands import PredictConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.devices import pick_device
from vitrail.display import Display, Quiet
from vitrail.errors import ConfigError, name_option, printable
from vitrail.files import no_file
from vitrail.images.decoding import decode, read_image
from vitrail.images.pixels import UnreadableImage
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.images.silence import nothing_printed
from vitrail.inference.decision import Choices, DecisionRule, ReachedThresholds, TopClasses
from vitrail.inference.network import (
    Artifact,
    Network,
    read_artifact,
    require_classes,
    tell_program,
)
from vitrail.weights.checkpoint import Record
from vitrail.weights.loading import override_preprocess
from vitrail.weights.opened import show_account
from vitrail.weights.request import resolve_request

MOST_READERS = 8
"""Threads that decode images, at most: one network needs no more."""


@dataclass(frozen=True)
class Prediction:
    """The classes of one image, or why the image could not be read."""

    path: str
    """The path as it was given; bytes that are no text are escaped."""
    choices: tuple[int, ...] = ()
    """Class indices, the most probable first; any number of them from a multi-label model."""
    probabilities: tuple[float, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Predictor:
    """A model that is ready to classify images."""

    network: Network
    preprocess: Preprocess
    classes: tuple[str, ...]
    """Class names in the order of the logits; numbers where the file names no classes."""
    rule: DecisionRule
    """The choice of classes from the logits."""

    @property
    def topk(self) -> int:
        """The most classes that an image is given."""
        return self.rule.topk

    @property
    def thresholds(self) -> Sequence[float] | None:
        """The probability from which each class is given; None for a single-label model."""
        return self.rule.thresholds

    @property
    def is_multi_label(self) -> bool:
        """Whether an image is given any number of classes."""
        return self.rule.thresholds is not None

    def classify(self, views: list[Tensor]) -> list[Choices]:
        """Return the classes and probabilities of each image, the most probable first.

        Args:
            views: Images as `Preprocess.view` returns them: cut to size, and not normalised.
        """
        with torch.inference_mode():
            batch = torch.stack(views).to(self.network.device)
            logits = self.network(normalise(batch, self.preprocess.mean, self.preprocess.std))
            return self.rule.choose(logits.float())

    def predict(self, paths: Iterable[str | Path], *, batch_size: int = 32) -> Iterator[Prediction]:
        """Yield one prediction for each path, in order; an unreadable image gives its error.

        Threads decode the next batch while the model computes this one; memory does not grow with
        the number of paths.

        Args:
            paths: Paths of images.
            batch_size: Images that are computed together.

        Raises:
            ConfigError: So many images of such a size have no place in memory.
        """
        self.preprocess.check_batch(batch_size)
        source = iter(paths)
        with ThreadPoolExecutor(min(MOST_READERS, _usable_processors())) as pool:

            def submit() -> list[tuple[str, Future[Tensor | str]]]:
                batch = [os.fspath(path) for path in islice(source, batch_size)]
                return [
                    (path, pool.submit(view_or_reason, path, self.preprocess)) for path in batch
                ]

            coming = submit()
            while coming:
                current, coming = coming, submit()
                yield from self._predict_batch(
                    [(path, future.result()) for path, future in current]
                )

    def _predict_batch(self, images: Sequence[tuple[str, Tensor | str]]) -> Iterator[Prediction]:
        """Yield the predictions of one batch: of each path, the image or why it cannot be read."""
        views = [image for _, image in images if isinstance(image, Tensor)]
        rows = iter(self.classify(views)) if views else iter(())
        for path, image in images:
            if isinstance(image, str):
                yield Prediction(printable(path), error=image)
            else:
                choices, probabilities = next(rows)
                yield Prediction(printable(path), tuple(choices), tuple(probabilities))


@dataclass(frozen=True)
class UnstartedPredictor:
    """A predictor whose file has been read and checked, and whose engine has not been started.

    An engine may keep its threads and memory by the thread that starts it, as in a server.
    """

    path: str
    artifact: Artifact
    preprocess: Preprocess
    classes: tuple[str, ...]
    rule: DecisionRule

    @property
    def record(self) -> Record:
        """Model, class names, preprocessing and provenance, as the file has them."""
        return self.artifact.record

    @property
    def is_exported(self) -> bool:
        """Whether the file is an exported one, and no weight file."""
        return self.artifact.weights is None

    def start(self, device: torch.device, precision: Precision | None = None) -> Predictor:
        """Load the model into its engine.

        Args:
            device: Device that is wanted; an engine that cannot compute there takes the CPU.
            precision: Precision of the computation; None is the file's own.

        Raises:
            CheckpointError: The file is damaged.
            ConfigError: The engine cannot compute so.
            MissingExtra: The engine is not installed.
        """
        network = self.artifact.start(device, precision)
        return Predictor(network, self.preprocess, self.classes, self.rule)


def open_predictor(
    path: Path | str,
    settings: Sequence[Layer] = (),
    *,
    engine: str | None = None,
    device: Device = "auto",
    precision: Precision | None = None,
    topk: int | None = None,
    default_topk: int = 1,
    display: Display | None = None,
) -> Predictor:
    """Open a weight file or an exported file, ready to classify images.

    Args:
        path: The file; its ending says what it is.
        settings: Layers of settings in the sections `weights` and `preprocess`, the later ones
            winning.
        engine: Engine that is to run an exported file; None is the usual one.
        device: "auto" takes the accelerator, where there is one and the engine can use it.
        precision: Precision of the computation; None is the file's own, float32 for weight files.
        topk: Classes to give for each image; for a multi-label model, the most of those that reach
            their thresholds.
        default_topk: Classes that a single-label model gives where `topk` is None; a multi-label
            model gives all.
        display: Told what the user should know of the file, and of settings that differ from it.

    Raises:
        CheckpointError: The file is missing or damaged, or says nothing of its classes and
            preprocessing.
        ConfigError: A setting is wrong, the model tells no classes apart, or the engine cannot run
            it so.
        MissingExtra: The engine is not installed.
    """
    display = display or Quiet()
    unstarted = read_predictor(
        path, settings, engine=engine, topk=topk, default_topk=default_topk, display=display
    )
    predictor = unstarted.start(pick_device(device), precision)
    if unstarted.is_exported:
        display.note(f"{path}: run by {predictor.network.about}")
    return predictor


def read_predictor(
    path: Path | str,
    settings: Sequence[Layer] = (),
    *,
    engine: str | None = None,
    topk: int | None = None,
    default_topk: int = 1,
    display: Display | None = None,
) -> UnstartedPredictor:
    """Read and check a file for classifying images, and start no engine; arguments are those of `open_predictor`.

    Raises:
        CheckpointError: The file is missing or damaged, or says nothing of its classes and
            preprocessing.
        ConfigError: A setting is wrong, the model tells no classes apart, or the engine cannot run
            it.
    """
    display = display or Quiet()
    if topk is not None and topk < 1:
        where = name_option("topk")
        raise ConfigError(f"{where} is {topk}; it must be at least 1")
    overrides = resolve(PredictConfig, settings).config.preprocess
    artifact = read_artifact(path, engine, resolve_request(settings), display=display)
    record = artifact.record
    require_classes(record, path)
    if artifact.weights is not None:
        show_account(artifact.weights, display)
    preprocess = override_preprocess(record.preprocess, overrides, display)
    tell_program(path, display)
    classes = record.classes or tuple(map(str, range(record.options["num_classes"])))
    rule = _choose_rule(record, len(classes), topk, default_topk, display)
    return UnstartedPredictor(str(path), artifact, preprocess, classes, rule)


def _choose_rule(
    record: Record, num_classes: int, topk: int | None, default_topk: int, display: Display
) -> DecisionRule:
    """Return how a model gives classes to an image; warn of a topk that it cannot fulfil."""
    if record.thresholds is not None:
        # topk is only a limit here, so a large one is nothing to warn of
        most = num_classes if topk is None else min(topk, num_classes)
        return ReachedThresholds(record.thresholds, most)
    if topk is not None and topk > num_classes:
        display.warn(
            f"{name_option('topk')} is {topk} but the model has {num_classes} classes; all are "
            "given"
        )
    return TopClasses(min(topk or default_topk, num_classes))


def read_view(data: bytes, preprocess: Preprocess) -> Tensor:
    """Return an image file as the model is to see it, before normalisation.

    Raises:
        UnreadableImage: The image cannot be decoded.
    """
    return preprocess.view(decode(data, preprocess.pixels))


def view_or_reason(path: str, preprocess: Preprocess) -> Tensor | str:
    """Return an image as the model is to see it, or why it cannot be read."""
    try:
        # a text file may name a device or a pipe, which might block whoever opens it
        if odd := no_file(path):
            return f"is {odd}, no image"
        data = read_image(path)
        with nothing_printed():
            return read_view(data, preprocess)
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
