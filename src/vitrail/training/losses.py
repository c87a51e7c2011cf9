"""Training losses: soft-target cross-entropy for single-label data, BCE or asymmetric loss for multi-label data.

Shapes
    b images, k classes
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from vitrail.config.commands import TrainConfig
from vitrail.config.training_sections import MultiLabelSection
from vitrail.data.sources import Source
from vitrail.errors import ConfigError
from vitrail.images.batch_augment import make_soft_targets
from vitrail.training.class_balance import Balance, build_balance, imbalance_warnings
from vitrail.training.given_loss import GivenLoss
from vitrail.training.imitation import NoLabels

SINGLE_LABEL_MONITORS = (
    "val_top1",
    "val_top5",
    "val_balanced_accuracy",
    "val_head_top1",
    "val_medium_top1",
    "val_tail_top1",
    "train_top1",
)
"""Values of train.monitor that multi-label training does not have."""
MULTI_LABEL_MONITORS = ("val_map", "val_micro_f1")
"""Values of train.monitor that single-label training does not have."""


class Objective(Protocol):
    """The training loss for one kind of labels, with the settings and the numbers that go with it."""

    labels_in_words: ClassVar[str]
    """The kind of labels, as messages say it."""
    default_monitor: ClassVar[str]
    """The number that makes an epoch the best where train.monitor names none."""

    @classmethod
    def build(
        cls, config: TrainConfig, source: Source, counts: NDArray[np.int64], device: torch.device
    ) -> Self:
        """Return the loss that the settings ask for.

        Args:
            config: All settings.
            source: The training images.
            counts: Training images of each class.
            device: Where the loss is computed.
        """
        ...

    @classmethod
    def problems(cls, config: TrainConfig) -> list[str]:
        """Return the settings that mean nothing for these labels, each with what to do."""
        ...

    def targets(self, labels: Int[Tensor, " b"], device: torch.device) -> Float[Tensor, "b k"]:
        """Return the targets of labels that lie on the CPU; Mixup and CutMix may mix them before the loss."""
        ...

    def loss(
        self, logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        """Return the sum over the images."""
        ...

    def row_numbers(self, correct: float, images: float) -> Mapping[str, float | None]:
        """Return what an epoch's row has of the training images beside their loss, by name.

        Args:
            correct: Images whose likeliest class is the one with the largest target.
            images: Images that were trained on; without any, the numbers are None.
        """
        ...

    def live_numbers(self, correct: float, images: float) -> Mapping[str, str]:
        """Return what the live line shows of the same numbers."""
        ...

    def warnings(
        self, config: TrainConfig, counts: NDArray[np.int64], classes: Sequence[str]
    ) -> list[str]:
        """Return what to warn of before the first update, for so many training images of each class."""
        ...


@dataclass(frozen=True)
class SingleLabelLoss:
    """Cross-entropy with one class an image.

    Without label smoothing these are the targets and weights of `cross_entropy(weight=...)`. With
    it, the share that is given away keeps the weight of the image's own class: by the weights of
    the others, a rare class would take it all.
    """

    labels_in_words: ClassVar[str] = "the images have one class each"
    default_monitor: ClassVar[str] = "val_top1"

    balance: Balance
    smoothing: float
    given: GivenLoss | None = None
    """The user's own loss of each image, in the place of cross-entropy."""

    @classmethod
    def build(
        cls, config: TrainConfig, source: Source, counts: NDArray[np.int64], device: torch.device
    ) -> Self:
        """Return the loss with the settings' class weights, logit adjustment and label smoothing."""
        return cls(build_balance(config.balance, counts, device), config.augment.label_smoothing)

    @classmethod
    def problems(cls, config: TrainConfig) -> list[str]:
        """Return the settings that only multi-label training has."""
        problems = []
        if config.multi_label != MultiLabelSection():
            problems.append(
                "multi_label.*: is for images with any number of classes, see docs/multi_label.md"
            )
        if config.train.monitor in MULTI_LABEL_MONITORS:
            problems.append(
                f"train.monitor={config.train.monitor}: set it to val_top1 or val_macro_f1"
            )
        return problems

    def targets(self, labels: Int[Tensor, " b"], device: torch.device) -> Float[Tensor, "b k"]:
        """Return soft targets times the weights of the classes."""
        labels = labels.to(device, non_blocking=True)
        weights = self.balance.weights
        return make_soft_targets(labels, len(weights), self.smoothing) * weights[labels][:, None]

    def loss(
        self, logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        """Return the sum over the images of the cross-entropy, or of the user's own loss."""
        logits = logits + self.balance.offsets
        if self.given is not None:
            return self.given(logits, targets).sum()
        return cross_entropy(logits, targets, reduction="sum")

    def row_numbers(self, correct: float, images: float) -> Mapping[str, float | None]:
        """Return the top-1 accuracy in percent; a mixed image counts for the class of its larger part."""
        if not images:
            return {"train_top1": None}
        return {"train_top1": 100 * correct / images}

    def live_numbers(self, correct: float, images: float) -> Mapping[str, str]:
        """Return the top-1 accuracy for the live line."""
        return {"top_1": f"{100 * correct / max(images, 1):.1f} %"}

    def warnings(
        self, config: TrainConfig, counts: NDArray[np.int64], classes: Sequence[str]
    ) -> list[str]:
        """Return whether nothing makes up for an imbalance of the classes, or too much does."""
        return imbalance_warnings(config.balance, counts, classes)


@dataclass(frozen=True)
class MultiLabelLoss:
    """A binary loss for each class, whose mean over the classes is the loss of an image."""

    labels_in_words: ClassVar[str] = "the images have any number of classes each"
    default_monitor: ClassVar[str] = "val_map"

    label_sets: NDArray[np.bool_]
    section: MultiLabelSection
    given: GivenLoss | None = None
    """The user's own loss of each image, in the place of the binary ones."""

    @classmethod
    def build(
        cls, config: TrainConfig, source: Source, counts: NDArray[np.int64], device: torch.device
    ) -> Self:
        """Return the binary cross-entropy or asymmetric loss that the settings ask for."""
        assert source.label_sets is not None
        return cls(source.label_sets, config.multi_label)

    @classmethod
    def problems(cls, config: TrainConfig) -> list[str]:
        """Return the settings that only single-label training has."""
        problems = [
            f"{setting}: makes up for classes of which an image has one"
            for setting in config.balance.active()
        ]
        if config.augment.label_smoothing:
            problems.append(
                f"augment.label_smoothing={config.augment.label_smoothing:g}: shares an image out "
                "over the classes, of which each has a target of its own here; set it to 0"
            )
        if config.train.monitor in SINGLE_LABEL_MONITORS:
            problems.append(
                f"train.monitor={config.train.monitor}: set it to val_map, val_macro_f1, "
                "val_micro_f1 or a loss"
            )
        return problems

    def targets(self, labels: Int[Tensor, " b"], device: torch.device) -> Float[Tensor, "b k"]:
        """Return 1 for each class of an image, 0 for the others."""
        return torch.from_numpy(self.label_sets[labels.numpy()]).to(
            device, torch.float32, non_blocking=True
        )

    def loss(
        self, logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]
    ) -> Float[Tensor, ""]:
        """Return the sum over the images of the mean over the classes."""
        section = self.section
        if self.given is not None:
            return self.given(logits, targets).sum()
        if section.loss == "bce":
            losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        else:
            losses = asymmetric_loss(
                logits, targets, section.gamma_negative, section.gamma_positive, section.clip
            )
        return losses.mean(1).sum()

    def row_numbers(self, correct: float, images: float) -> Mapping[str, float | None]:
        """Return nothing: mAP and F1 need the answers to all images, which training does not keep."""
        return {}

    def live_numbers(self, correct: float, images: float) -> Mapping[str, str]:
        """Return nothing: mAP and F1 need the answers to all images."""
        return {}

    def warnings(
        self, config: TrainConfig, counts: NDArray[np.int64], classes: Sequence[str]
    ) -> list[str]:
        """Return nothing: what makes up for an imbalance is for single-label training."""
        return []


LossKind = type[SingleLabelLoss] | type[MultiLabelLoss] | type[NoLabels]


def choose_loss(label_sets: NDArray[np.bool_] | None, unlabelled: bool = False) -> LossKind:
    """Return the loss for the labels of images; `label_sets` is None where each image has one class."""
    if unlabelled:
        return NoLabels
    return SingleLabelLoss if label_sets is None else MultiLabelLoss


def check_loss_settings(kind: LossKind, config: TrainConfig) -> None:
    """Refuse settings that mean nothing for the labels that the images have.

    Raises:
        ConfigError: All of them in one line.
    """
    if problems := kind.problems(config):
        raise ConfigError(f"{kind.labels_in_words}; {'; '.join(problems)}")


def asymmetric_loss(
    logits: Float[Tensor, "b k"],
    targets: Float[Tensor, "b k"],
    gamma_negative: float,
    gamma_positive: float,
    clip: float,
) -> Float[Tensor, "b k"]:
    """Return the asymmetric loss of each class (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119).

    Targets between 0 and 1, of mixed images, take both halves in that proportion.
    """
    positive_terms = (-logits).sigmoid() ** gamma_positive * logsigmoid(logits)
    shifted = (logits.sigmoid() - clip).clamp(min=0)
    # without the shift, log(1 - sigmoid) has a form that does not underflow
    log_negative = torch.log1p(-shifted) if clip else logsigmoid(-logits)
    return -(targets * positive_terms + (1 - targets) * shifted**gamma_negative * log_negative)
