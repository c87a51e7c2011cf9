"""Class imbalance: class weights and logit adjustment in the training loss, and warnings about them.

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
from vitrail.data.sampling import compute_class_shares
from vitrail.errors import DataError


@dataclass(frozen=True)
class Balance:
    """Weight and logit offset of each class in the training loss; weights of 1 and offsets of 0 change nothing."""

    weights: Float[Tensor, " k"]
    """Weight of the loss of an image of each class."""
    offsets: Float[Tensor, " k"]
    """Number added to the logit of each class."""


def build_balance(
    section: BalanceSection, counts: Int[np.ndarray, " k"], device: torch.device
) -> Balance:
    """Return the class weights and the logit adjustment that the settings ask for.

    Args:
        section: The settings; logit adjustment is the loss of Menon et al. 2021
            (https://arxiv.org/abs/2007.07314), with the prior of the images drawn.
        counts: Training images of each class; where the settings make up for something, at least
            one.
        device: Where the loss is computed.
    """
    weights = class_weights(section, counts)
    if section.logit_adjust is None:
        offsets = np.zeros(len(counts))
    else:
        offsets = section.logit_adjust * np.log(drawn_shares(section, counts))
    return Balance(
        weights=torch.tensor(weights, dtype=torch.float32, device=device),
        offsets=torch.tensor(offsets, dtype=torch.float32, device=device),
    )


def drawn_shares(
    section: BalanceSection, counts: Int[np.ndarray, " k"]
) -> Float64[np.ndarray, " k"]:
    """Return the share of each class among the images that the sampler draws."""
    shares = compute_class_shares(counts, section.sampler)
    return np.array(shares, dtype=np.float64) / sum(shares)


def class_weights(
    section: BalanceSection, counts: Int[np.ndarray, " k"]
) -> Float64[np.ndarray, " k"]:
    """Return the weight of each class, 1 on average over the images drawn, so that a learning rate keeps its meaning.

    Args:
        section: The settings; effective is the class-balanced loss of Cui et al. 2019
            (https://arxiv.org/abs/1901.05555).
        counts: Training images of each class.
    """
    if section.class_weights is None:
        return np.ones(len(counts))
    beta = section.effective_beta
    effective_counts = {
        "inverse": counts,
        "sqrt": np.sqrt(counts),
        "effective": (1 - beta**counts) / (1 - beta),
    }
    weights = 1 / effective_counts[section.class_weights]
    return weights / (drawn_shares(section, counts) * weights).sum()


def check_counts(
    section: BalanceSection, counts: Int[np.ndarray, " k"], classes: Sequence[str]
) -> None:
    """Refuse to make up for a class that has no image.

    Raises:
        DataError: With the name of the class.
    """
    if section.active() and not counts.all():
        raise DataError(
            f"{section.active()[0]}: class {classes[int(counts.argmin())]!r} has no training "
            "image; add some, or remove the class"
        )


def imbalance_warnings(
    section: BalanceSection, counts: Int[np.ndarray, " k"], classes: Sequence[str]
) -> list[str]:
    """Warn where nothing makes up for an imbalance of the classes, or where settings make up for it twice.

    Args:
        section: The settings.
        counts: Training images of each class.
        classes: Names of the classes.
    """
    present = np.where(counts > 0, counts, counts.max())
    most = int(counts.argmax())
    least = int(present.argmin())
    sizes = f"{counts[most]:,} of {classes[most]!r} to {counts[least]:,} of {classes[least]!r}"
    active = section.active()
    if not active and counts[most] / counts[least] >= IMBALANCED:
        return [
            f"the training images are imbalanced, {sizes}, and nothing makes up for it; try "
            "balance.logit_adjust=1, balance.sampler=sqrt or balance.class_weights=sqrt, and "
            "train.monitor=val_balanced_accuracy"
        ]
    if len(active) < 2:
        return []
    # how much all images of a class count together; equal ones make up for an imbalance exactly
    shares = drawn_shares(section, counts)
    total_weights = shares * class_weights(section, counts) / shares ** (section.logit_adjust or 0)
    excess = total_weights[least] / total_weights[most]
    if excess <= 1.01:
        return []
    return [
        f"{' and '.join(active)} make up for the imbalance ({sizes}) more than once: "
        f"{classes[least]!r} counts "
        f"{excess:.3g} times as much as {classes[most]!r}; drop one, unless that is meant"
    ]
