"""What a training step makes small: targets from labels, and a loss; for one class an image, and for any number.

Shapes
    b images, k classes
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, logsigmoid

from vitrail.config.commands import TrainConfig
from vitrail.config.training_sections import MultiLabelSection
from vitrail.errors import ConfigError
from vitrail.images.batch_augment import soft_targets
from vitrail.training.class_balance import Balance

ONE_CLASS_ONLY = ("val_top1", "val_top5", "val_balanced_accuracy", "val_head_top1", "val_medium_top1", "val_tail_top1")
SEVERAL_ONLY = ("val_map", "val_micro_f1")
"""Numbers that only one of the two kinds of evaluation has; train_top1 is of the first as well."""


class Objective(Protocol):
    """What turns labels into targets, and logits beside them into a loss."""

    def targets(self, labels: Int[Tensor, " b"], device: torch.device) -> Float[Tensor, "b k"]:
        """Return what the logits should come to, which may be mixed; labels lie on the CPU."""
        ...

    def loss(self, logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Return the sum over the images."""
        ...


@dataclass(frozen=True)
class OneClass:
    """Cross-entropy with one class an image.

    Without label smoothing these are the targets and weights of `cross_entropy(weight=...)`. With it, the share that is
    given away keeps the weight of the image's own class: by the weights of the others, a rare class would take it all.
    """

    balance: Balance
    smoothing: float

    def targets(self, labels: Int[Tensor, " b"], device: torch.device) -> Float[Tensor, "b k"]:
        """Return soft targets times the weights of the classes."""
        labels = labels.to(device, non_blocking=True)
        weights = self.balance.weights
        return soft_targets(labels, len(weights), self.smoothing) * weights[labels][:, None]

    def loss(self, logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Return the sum over the images of the cross-entropy."""
        return cross_entropy(logits + self.balance.offsets, targets, reduction="sum")


@dataclass(frozen=True)
class SeveralClasses:
    """A binary loss for each class, whose mean over the classes is the loss of an image."""

    label_sets: NDArray[np.bool_]
    section: MultiLabelSection

    def targets(self, labels: Int[Tensor, " b"], device: torch.device) -> Float[Tensor, "b k"]:
        """Return 1 for each class of an image, 0 for the others."""
        return torch.from_numpy(self.label_sets[labels.numpy()]).to(device, torch.float32, non_blocking=True)

    def loss(self, logits: Float[Tensor, "b k"], targets: Float[Tensor, "b k"]) -> Float[Tensor, ""]:
        """Return the sum over the images of the mean over the classes."""
        section = self.section
        if section.loss == "bce":
            losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")
        else:
            losses = asymmetric(logits, targets, section.gamma_negative, section.gamma_positive, section.clip)
        return losses.mean(1).sum()


def asymmetric(
    logits: Float[Tensor, "b k"],
    targets: Float[Tensor, "b k"],
    gamma_negative: float,
    gamma_positive: float,
    clip: float,
) -> Float[Tensor, "b k"]:
    """Return the asymmetric loss of each class (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119).

    Targets between 0 and 1, of mixed images, take both halves in that proportion.
    """
    of_positives = (-logits).sigmoid() ** gamma_positive * logsigmoid(logits)
    shifted = (logits.sigmoid() - clip).clamp(min=0)
    log_rest = torch.log1p(-shifted) if clip else logsigmoid(-logits)
    return -(targets * of_positives + (1 - targets) * shifted**gamma_negative * log_rest)


def check_objective(config: TrainConfig, several: bool) -> None:
    """Refuse settings that mean nothing for the labels that the images have.

    Args:
        config: All settings.
        several: Whether an image may have several classes.

    Raises:
        ConfigError: All of them in one line.
    """
    found, monitor = [], config.train.monitor
    if several:
        found += [f"{setting}: makes up for classes of which an image has one" for setting in config.balance.active()]
        if config.augment.label_smoothing:
            found.append(
                f"augment.label_smoothing={config.augment.label_smoothing:g}: shares an image out over the classes, of "
                "which each has a target of its own here; set it to 0"
            )
        if monitor in (*ONE_CLASS_ONLY, "train_top1"):
            found.append(f"train.monitor={monitor}: set it to val_map, val_macro_f1, val_micro_f1 or a loss")
        kind = "the images have any number of classes each"
    else:
        if config.multi_label != MultiLabelSection():
            found.append("multi_label.*: is for images with any number of classes, see docs/multi_label.md")
        if monitor in SEVERAL_ONLY:
            found.append(f"train.monitor={monitor}: set it to val_top1 or val_macro_f1")
        kind = "the images have one class each"
    if found:
        raise ConfigError(f"{kind}; {'; '.join(found)}")


def default_monitor(several: bool) -> str:
    """Return the number that makes an epoch the best where the settings name none."""
    return "val_map" if several else "val_top1"
