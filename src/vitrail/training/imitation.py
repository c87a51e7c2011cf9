"""Training without labels: the loss that leaves all to the teacher, and how near its features are on validation images.

Settings of losses that need labels are refused or told like those of other kinds of labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from vitrail.choices import Precision
from vitrail.config.commands import TrainConfig
from vitrail.data.loader import ImageLoader
from vitrail.data.sources import Source
from vitrail.devices import autocast
from vitrail.distillation.distill import Distillation
from vitrail.distillation.projection import project
from vitrail.distributed.processes import gather_texts, sum_over_processes
from vitrail.errors import DataError
from vitrail.images.preprocess import normalise
from vitrail.models.family import VisionModel

VAL_VIEW = -1
"""Number of the view that validation images are shown in, which no epoch has."""
MONITORS = ("val_loss", "train_loss")
"""Values of train.monitor that a training without labels has."""


@dataclass(frozen=True)
class NoLabels:
    """The loss of images without labels, which is none: a teacher's is all that there is."""

    labels_in_words: ClassVar[str] = "the images have no labels, as data.unlabelled says"
    default_monitor: ClassVar[str] = "val_loss"

    @classmethod
    def build(
        cls, config: TrainConfig, source: Source, counts: NDArray[np.int64], device: torch.device
    ) -> Self:
        """Return the loss."""
        return cls()

    @classmethod
    def problems(cls, config: TrainConfig) -> list[str]:
        """Return the settings that only images with labels have."""
        problems = [
            f"{setting}: makes up for classes, of which there are none"
            for setting in config.balance.active()
        ]
        if config.augment.label_smoothing:
            problems.append(
                f"augment.label_smoothing={config.augment.label_smoothing:g}: smooths labels; set it "
                "to 0"
            )
        if config.train.loss is not None:
            problems.append(
                f"train.loss={config.train.loss}: takes targets of classes; leave the loss out"
            )
        if config.train.monitor not in (None, *MONITORS):
            problems.append(
                f"train.monitor={config.train.monitor}: set it to {' or '.join(MONITORS)}"
            )
        return problems

    def targets(self, labels: Int[Tensor, " b"], device: torch.device) -> Float[Tensor, "b k"]:
        """Return targets without a number."""
        return torch.zeros(len(labels), 0, device=device)

    def loss(
        self, logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        """Return 0."""
        return torch.zeros((), device=logits.device)

    def row_numbers(self, correct: float, images: float) -> Mapping[str, float | None]:
        """Return nothing beside the loss."""
        return {}

    def live_numbers(self, correct: float, images: float) -> Mapping[str, str]:
        """Return nothing beside the loss."""
        return {}

    def warnings(
        self, config: TrainConfig, counts: NDArray[np.int64], classes: Sequence[str]
    ) -> list[str]:
        """Return nothing."""
        return []


@dataclass(frozen=True)
class ImitationMetrics:
    """How near a student's features are to its teacher's."""

    n: int
    """Images."""
    loss: float
    """Mean loss over them."""
    thresholds: None = None
    warnings: tuple[str, ...] = ()

    def numbers(self) -> dict[str, Any]:
        """Return the numbers by name."""
        return {"loss": self.loss}


@dataclass(frozen=True)
class Imitation:
    """The outcome of an evaluation without labels."""

    metrics: ImitationMetrics
    bad_files: list[tuple[str, str]]
    """Name and reason of each image that could not be read, sorted."""


def measure_imitation(
    model: VisionModel,
    batches: ImageLoader,
    distillation: Distillation,
    accelerator: Accelerator,
    *,
    precision: Precision,
    advance: Callable[[], None],
) -> Imitation:
    """Measure how near a student's features are to its teacher's on validation images, as the student sees them.

    Collective: every process calls it with its own batches.

    Args:
        model: The student, or the average of its weights, with its projections.
        batches: This process's share of the images.
        distillation: The teacher.
        accelerator: The processes.
        precision: Precision of matrix products.
        advance: Called after each batch, equally often in all processes.

    Raises:
        DataError: No image could be read.
    """
    device, preprocess = accelerator.device, distillation.preprocess
    sums = torch.zeros(2, dtype=torch.float64)
    bad: list[tuple[str, str]] = []
    most = max(gather_texts(accelerator, [len(batches)]))
    head, grid, was_training = model.get_classifier(), distillation.grid, model.training
    distillation.begin_view(VAL_VIEW)
    model.eval()
    try:
        for batch in batches:
            bad += batch.bad
            if len(batch.labels):
                targets = distillation.make_val_targets(batch)
                images = batch.images.to(device, non_blocking=True)
                images = normalise(images, preprocess.mean, preprocess.std)
                with torch.no_grad(), autocast(device, precision):
                    features = model.forward_features(images)
                    vectors = model.forward_head(features, pre_logits=True)
                    tokens = None if grid is None else grid.read(features)
                    projected = project(head, vectors, tokens).float()
                sums[0] += distillation.feature_loss(projected, targets).item()
                sums[1] += len(batch.labels)
            advance()
        for _ in range(most - len(batches)):  # other processes may still have batches
            advance()
    finally:
        model.train(was_training)
    bad = sorted(gather_texts(accelerator, bad))
    if accelerator.num_processes > 1:
        (sums,) = sum_over_processes(accelerator, sums.to(device))
    loss, images_in_all = sums.tolist()
    if not images_in_all:
        name, reason = bad[0]
        raise DataError(
            f"none of the {len(bad)} images could be read; the first is {name} ({reason})"
        )
    return Imitation(ImitationMetrics(int(images_in_all), loss / images_in_all), bad)
