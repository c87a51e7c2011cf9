"""What the loss does for classes with few images: class weights and logit adjustment.

Shapes
    k classes
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from vitrail.config.training_sections import BalanceSection
from vitrail.data.audit.findings import IMBALANCED
from vitrail.data.sampling import class_shares
from vitrail.errors import DataError


@dataclass(frozen=True)
class Balance:
    """What each class changes in the training loss; with weights of 1 and offsets of 0, nothing."""

    weights: Float[Tensor, " k"]
    """Of an image's loss."""
    offsets: Float[Tensor, " k"]
    """Added to the logits."""


def build_balance(section: BalanceSection, counts: Int[np.ndarray, " k"], device: torch.device) -> Balance:
    """Return what the settings ask for.

    Args:
        section: The settings; logit adjustment is the loss of Menon et al. 2021 (https://arxiv.org/abs/2007.07314),
            with the prior of the images drawn.
        counts: Training images of each class; where the settings make up for something, at least one.
        device: Of the result.
    """
    weights, tau = class_weights(section, counts), section.logit_adjust
    offsets = np.zeros(len(counts)) if tau is None else tau * np.log(drawn(section, counts))
    return Balance(*(torch.tensor(values, dtype=torch.float32, device=device) for values in (weights, offsets)))


def drawn(section: BalanceSection, counts: Int[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Return the share of each class among the images that the sampler draws."""
    shares = class_shares(counts, section.sampler)
    return np.array(shares, dtype=np.float64) / sum(shares)


def class_weights(section: BalanceSection, counts: Int[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Return the weight of each class, 1 on average over the images drawn, so that a learning rate keeps its meaning.

    Args:
        section: The settings; effective is the class-balanced loss of Cui et al. 2019
            (https://arxiv.org/abs/1901.05555).
        counts: Training images of each class.
    """
    beta = section.effective_beta
    if section.class_weights is None:
        return np.ones(len(counts))
    effective = {"inverse": counts, "sqrt": np.sqrt(counts), "effective": (1 - beta**counts) / (1 - beta)}
    weights = 1 / effective[section.class_weights]
    return weights / (drawn(section, counts) * weights).sum()


def check_counts(section: BalanceSection, counts: Int[np.ndarray, " k"], classes: Sequence[str]) -> None:
    """Refuse to make up for a class that has no image.

    Raises:
        DataError: With its name.
    """
    if section.active() and not counts.all():
        raise DataError(
            f"{section.active()[0]}: class {classes[int(counts.argmin())]!r} has no training image; add some, or "
            "remove the class"
        )


def advice(section: BalanceSection, counts: Int[np.ndarray, " k"], classes: Sequence[str]) -> list[str]:
    """Return what to warn of: that nothing makes up for an imbalance, or too much does.

    Args:
        section: The settings.
        counts: Training images of each class.
        classes: Their names.
    """
    present = np.where(counts > 0, counts, counts.max())
    most, least = int(counts.argmax()), int(present.argmin())
    active, ratio = section.active(), counts[most] / counts[least]
    sizes = f"{counts[most]:,} of {classes[most]!r} to {counts[least]:,} of {classes[least]!r}"
    if not active and ratio >= IMBALANCED:
        return [
            f"the training images are imbalanced, {sizes}, and nothing makes up for it; try balance.logit_adjust=1, "
            "balance.sampler=sqrt or balance.class_weights=sqrt, and train.monitor=val_balanced_accuracy"
        ]
    if len(active) > 1:
        shown = drawn(section, counts)
        weight = shown * class_weights(section, counts) / shown ** (section.logit_adjust or 0)
        if (excess := weight[least] / weight[most]) > 1.01:
            return [
                f"{' and '.join(active)} make up for the imbalance ({sizes}) more than once: {classes[least]!r} counts "
                f"{excess:.3g} times as much as {classes[most]!r}; drop one, unless that is meant"
            ]
    return []
