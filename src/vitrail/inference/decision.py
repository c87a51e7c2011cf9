"""Decision rules: which classes an image is given, from the logits of a model.

A single-label model gives its most probable classes, by the softmax of its logits. A multi-label
model gives all classes whose probability, the sigmoid of the logit, reaches the threshold of the
class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

Choices = tuple[list[int], list[float]]
"""Class indices of an image, the most probable first, and their probabilities."""


class DecisionRule(Protocol):
    """Chooses the classes of each image."""

    @property
    def topk(self) -> int:
        """The most classes that an image is given."""
        ...

    @property
    def thresholds(self) -> Sequence[float] | None:
        """The probability from which each class is given; None for a single-label model."""
        ...

    def choose(self, logits: Float[Tensor, "n k"]) -> list[Choices]:
        """Return the classes and probabilities of each image, the most probable first."""
        ...

    def limit_to(self, topk: int) -> DecisionRule:
        """Return the same rule with at most so many classes."""
        ...


@dataclass(frozen=True)
class TopClasses:
    """The rule of single-label models: the `topk` most probable classes."""

    topk: int

    @property
    def thresholds(self) -> None:
        """None: the most probable classes are given however improbable they are."""
        return None

    def choose(self, logits: Float[Tensor, "n k"]) -> list[Choices]:
        """Return the most probable classes of each image by softmax."""
        best = to_probabilities(logits, is_multi_label=False).topk(min(self.topk, logits.shape[1]))
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def limit_to(self, topk: int) -> TopClasses:
        """Return the same rule with at most so many classes."""
        return TopClasses(min(topk, self.topk))


@dataclass(frozen=True)
class ReachedThresholds:
    """The rule of multi-label models: all classes that reach their thresholds, `topk` of them at most."""

    thresholds: Sequence[float]
    topk: int

    def choose(self, logits: Float[Tensor, "n k"]) -> list[Choices]:
        """Return the classes of each image whose sigmoid reaches their thresholds."""
        choices: list[Choices] = []
        for row in probabilities(logits.cpu().numpy()):
            order = [int(index) for index in np.argsort(-row, kind="stable")]
            reached = [index for index in order if row[index] >= self.thresholds[index]]
            chosen = reached[: self.topk]
            choices.append((chosen, [float(row[index]) for index in chosen]))
        return choices

    def limit_to(self, topk: int) -> ReachedThresholds:
        """Return the same rule with at most so many classes."""
        return ReachedThresholds(self.thresholds, min(topk, self.topk))


def to_probabilities(logits: Float[Tensor, "n k"], *, is_multi_label: bool) -> Float[Tensor, "n k"]:
    """Return the probability of each class, by the softmax or, of a multi-label model, the sigmoid of its logits."""
    return logits.sigmoid() if is_multi_label else logits.softmax(dim=1)


def probabilities(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return the probability of each class of a multi-label model, its sigmoid, in float64."""
    # a logit may be infinite or no number, and its probability is then 0, 1 or no number
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
