"""The teacher: any model that answers, shown a student's views in its own size, with the student's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt
from torch import Tensor
from torch.nn.functional import interpolate

from vitrail.choices import Precision
from vitrail.classes.matching import match_by_name
from vitrail.devices import autocast
from vitrail.display import Display
from vitrail.distillation.tokens import make_targets
from vitrail.errors import ConfigError, DataError, TrainingError, tell_count
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.inference.engines import start_module
from vitrail.inference.network import (
    Artifact,
    Network,
    read_artifact,
    require_classes,
    tell_program,
)
from vitrail.models.family import VisionModel
from vitrail.weights.checkpoint import Record, hash_file
from vitrail.weights.digest import digest_weights
from vitrail.weights.opened import show_account

PLACES = 32
"""Images that a teacher computes at once: kernels differ by the size of a batch, and so would the
last digits of its answers."""
DIGITS = 32
"""Hexadecimal digits of a teacher's digest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """A trained model that answers for the classes of a student."""

    path: str
    record: Record
    digest: str
    """Hexadecimal digits that change with any of its weights."""
    network: Network
    """Gives logits of its own classes."""
    order: tuple[int, ...]
    """Index among its classes of each of the student's."""
    model: VisionModel | None
    """The network where its features are wanted, else None."""
    size: tuple[int, int] | None = None
    """Height and width of the student's last map, where the teacher's is wanted too."""

    @property
    def preprocess(self) -> Preprocess:
        """How it reads images."""
        return self.record.preprocess

    @property
    def num_vector(self) -> int:
        """Numbers of its vectors; 0 where they are not wanted."""
        return 0 if self.model is None else self.model.num_features

    @property
    def num_channels(self) -> int:
        """Channels of its last map; 0 where that is not wanted."""
        if self.model is None or self.size is None:
            return 0
        return self.model.feature_levels[-1].num_channels

    @property
    def num_features(self) -> int:
        """Numbers of its features of an image: the vector, and behind it the map on the student's grid."""
        height, width = self.size or (0, 0)
        return self.num_vector + self.num_channels * height * width

    @property
    def description(self) -> dict[str, Any]:
        """All that decides its answers to an image, as plain values for JSON."""
        about = {
            "digest": self.digest,
            "engine": self.network.engine,
            "precision": self.network.precision,
            "preprocess": self.preprocess.to_dict(),
            "features": self.num_features,
        }
        return about if self.size is None else {**about, "map": list(self.size)}

    def choose(self, logits: Float[Tensor, "b all"]) -> Float[Tensor, "b k"]:
        """Return the logits of the student's classes, in its order.

        Raises:
            TrainingError: One of them is NaN or Inf.
        """
        return self._finite(logits[:, list(self.order)])

    def _finite(self, answers: Tensor) -> Tensor:
        if not answers.isfinite().all():
            raise TrainingError(
                f"distill.teacher {self.path}: answers with NaN or Inf; give a teacher whose "
                "evaluation is finite, or train.precision=float32"
            )
        return answers

    def answer(self, pixels: UInt[Tensor, "b c h w"]) -> tuple[Tensor, Tensor | None]:
        """Return the logits of the student's classes, and vectors where they are wanted, of a student's views.

        Args:
            pixels: The views as the student's loader gives them, on the device that computes.

        Raises:
            TrainingError: An answer is NaN or Inf.
        """
        resized = resize_views(pixels, self.preprocess)
        return self.compute(normalise(resized, self.preprocess.mean, self.preprocess.std))

    def answer_normalised(
        self, images: Float[Tensor, "b c h w"], seen_by: Preprocess
    ) -> tuple[Tensor, Tensor | None]:
        """Return the same of images as the student's network reads them, such as mixed ones.

        Args:
            images: Images that were normalised for the student.
            seen_by: The student's preprocessing.
        """
        own = self.preprocess
        std = _channels(seen_by.std, images)
        levels = images * std + _channels(seen_by.mean, images)
        if tuple(images.shape[2:]) != own.size:
            levels = interpolate(levels, own.size, mode=own.interpolation, antialias=True)
        return self.compute((levels - _channels(own.mean, images)) / _channels(own.std, images))

    def compute(self, images: Float[Tensor, "b c h w"]) -> tuple[Tensor, Tensor | None]:
        """Return logits and vectors of normalised images, each computed among a fixed number of them.

        Black images fill up the last batch, so that an answer does not depend on how many views a
        rank has, or on which of them are known already.
        """
        logits, vectors = [], []
        for part in images.split(PLACES):
            filled = torch.cat([part, part.new_zeros(PLACES - len(part), *part.shape[1:])])
            of_part, vectors_of_part = self._compute_batch(filled)
            logits.append(of_part[: len(part)])
            if vectors_of_part is not None:
                vectors.append(vectors_of_part[: len(part)])
        return self.choose(torch.cat(logits)), self._finite(torch.cat(vectors)) if vectors else None

    def _compute_batch(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        if self.model is None:
            return self.network(images), None
        with torch.inference_mode(), autocast(images.device, self.network.precision):
            if self.size is None:
                tokens, maps = self.model.forward_features(images), []
            else:
                tokens, maps, _ = self.model.forward_maps(images, [-1], norm=True)
            vectors = self.model.forward_head(tokens, pre_logits=True).flatten(1).float()
            logits = self.model.forward_head(tokens).float()
        if self.size is None:
            return logits, vectors
        return logits, make_targets(vectors, maps[-1].float(), self.size)


def resize_views(
    pixels: UInt[Tensor, "b c h w"], wanted: Preprocess
) -> UInt[Tensor, "b c out_h out_w"]:
    """Bring whole views to the size that another model reads, by its filter; none is cropped."""
    if tuple(pixels.shape[2:]) == wanted.size:
        return pixels
    most = 2**wanted.bits - 1
    resized = interpolate(pixels.float(), wanted.size, mode=wanted.interpolation, antialias=True)
    return resized.round_().clamp_(0, most).to(pixels.dtype)


def open_teacher(
    path: str,
    classes: Sequence[str] | None,
    seen_by: Preprocess,
    device: torch.device,
    precision: Precision,
    display: Display,
    *,
    multi_label: bool,
    with_features: bool,
    size: tuple[int, int] | None = None,
) -> Teacher:
    """Open a teacher for a student.

    Args:
        path: A weight file, an exported file, or the name of published weights.
        classes: The student's classes; None where a teacher may have any, or none.
        seen_by: The student's preprocessing.
        device: Device that is wanted; an exported file may be for another.
        precision: Precision of a weight file's products; an exported file has its own.
        display: Told what a file is, where it is not ours.
        multi_label: Whether an image has any number of classes.
        with_features: Whether its features are wanted.
        size: Height and width of the student's last map, where the teacher's is wanted too.

    Raises:
        CheckpointError: The file is missing or damaged.
        ConfigError: It cannot teach this student.
        DataError: It lacks classes of the student.
    """
    tell_program(path, display)
    artifact = read_artifact(path, display=display)
    record, where = artifact.record, f"distill.teacher {path}"
    if classes is not None:
        require_classes(record, path)
    if classes is not None and record.is_multi_label != multi_label:
        kinds = ("one class", "any number of classes")
        raise ConfigError(
            f"{where}: gives an image {kinds[record.is_multi_label]}, and those of the data have "
            f"{kinds[multi_label]}; give a teacher that was trained on such images"
        )
    theirs, ours = record.preprocess, seen_by
    if (theirs.channels, theirs.bits) != (ours.channels, ours.bits):
        raise ConfigError(
            f"{where}: reads images of {tell_count(theirs.channels, 'channel')} and {theirs.bits} bits, and the "
            f"student of {ours.channels} and {ours.bits}; give a teacher of such images"
        )
    if with_features and artifact.weights is None:
        instead = ""
        if classes is not None:
            instead = f", or another distill.loss than {'feature' if size is None else 'feature and tokens'}"
        raise ConfigError(
            f"{where}: is an exported file, which gives logits alone; give the weight file that it "
            f"was made from{instead}"
        )
    order = [] if classes is None else _order_classes(record, classes, where)
    if artifact.weights is not None:
        show_account(artifact.weights, display)
    network = artifact.start(device, precision if artifact.engine == "torch" else None)
    model = None
    if with_features and artifact.weights is not None:
        model = artifact.weights.build(device)
        run = start_module(model, device, precision, torch.get_num_threads())
        network = replace(network, run=run)  # which lets go of the first model
        if size is not None and not model.feature_levels:
            raise ConfigError(
                f"{where}: {record.model} gives no map of its last level; give another teacher, or "
                "set distill.loss=feature"
            )
    return Teacher(
        path=path,
        record=record,
        digest=_digest(artifact),
        network=network,
        order=tuple(order),
        model=model,
        size=size,
    )


def _order_classes(record: Record, classes: Sequence[str], where: str) -> list[int]:
    """Return the index among a teacher's classes of each of the student's.

    Raises:
        DataError: It names none, or lacks some.
    """
    if not record.classes:
        raise DataError(
            f"{where}: names no classes, so they cannot be matched with those of the data; write a "
            "file that does with `vitrail convert` and weights.classes=FILE"
        )
    return list(match_by_name(record.classes, classes, where))


def _digest(artifact: Artifact) -> str:
    """Return what changes with any weight of a file."""
    opened = artifact.weights
    if opened is None:
        return hash_file(Path(artifact.path))[:DIGITS]
    about = {"model": opened.record.model, "options": repr(sorted(opened.record.options.items()))}
    return digest_weights(opened.weights, about)[:DIGITS]


def _channels(values: tuple[float, ...], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(-1, 1, 1)
