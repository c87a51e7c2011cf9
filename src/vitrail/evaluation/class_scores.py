"""Scores of each class: precision, recall, F1, AUROC and average precision; calibration, and Wilson intervals.

Shapes
    n images, k classes
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from vitrail.evaluation.single_label_metrics import class_rates

CONFIDENCE = 0.95
"""Confidence of the intervals."""
BINS = 15
"""Bins of equal width in which probabilities are compared with accuracies."""


@dataclass(frozen=True)
class ClassScores:
    """Scores of each class, from 0 to 1; NaN where there is nothing to divide by."""

    n: Int[np.ndarray, " k"]
    """Images of the class."""
    precision: Float[np.ndarray, " k"]
    """Share of the class's images among those called so; NaN where none was."""
    recall: Float[np.ndarray, " k"]
    """Share of the class's images that were called so: the accuracy on the class. NaN where it has
    none."""
    f1: Float[np.ndarray, " k"]
    auroc: Float[np.ndarray, " k"]
    """Area under the ROC curve of the class against the rest."""
    ap: Float[np.ndarray, " k"]
    """Average precision of the class against the rest."""

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield the scores of each class by name, as plain values."""
        names = [field.name for field in fields(self)]
        columns = [getattr(self, name).tolist() for name in names]
        for values in zip(*columns, strict=True):
            yield dict(zip(names, values, strict=True))

    def macro(self, name: str) -> float:
        """Return the mean over the classes that have images, as far as it is defined for them."""
        values = getattr(self, name)[self.n > 0]
        values = values[~np.isnan(values)]
        return float(values.mean()) if len(values) else math.nan


def class_scores(
    confusion: Int[np.ndarray, "k k"],
    labels: Int[np.ndarray, " n"],
    scores: Float[np.ndarray, "n k"],
) -> ClassScores:
    """Score each class.

    Args:
        confusion: Images by (label, prediction).
        labels: Labels of the images.
        scores: Scores of each image and class: probabilities, or anything that rises with them.
    """
    rates = class_rates(torch.from_numpy(confusion))
    n, called = rates.images, rates.answers
    auroc, ap = rankings(labels, scores)
    return ClassScores(
        n=n,
        precision=np.where(called > 0, rates.precision, np.nan),
        recall=np.where(n > 0, rates.recall, np.nan),
        f1=np.where(n + called > 0, rates.f1, np.nan),
        auroc=auroc,
        ap=ap,
    )


def rankings(
    labels: Int[np.ndarray, " n"], scores: Float[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the area under the ROC curve, and the average precision, of each class against the rest."""
    pairs = np.array(
        [ranking(scores[:, label], labels == label) for label in range(scores.shape[1])]
    )
    return pairs[:, 0], pairs[:, 1]


def ranking(
    scores: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]
) -> tuple[float, float]:
    """Return the area under the ROC curve, and the average precision, of one class; NaN where it is not defined.

    Equal scores count as scikit-learn counts them. One sort, where scikit-learn's two functions
    take three and more, so that 1,000 classes take seconds.
    """
    column = np.ascontiguousarray(scores)
    positives = np.sort(column[is_positive])
    n, count = len(column), len(positives)
    if count == 0 or np.isnan(column).any():
        return math.nan, math.nan
    everyone = np.sort(column)
    # images, and positives, of a lower score than each positive
    below = np.searchsorted(everyone, positives, "left")
    positives_below = np.searchsorted(positives, positives, "left")
    ap = float(np.mean((count - positives_below) / (n - below)))
    if count == n:
        return math.nan, ap
    # negatives of a score up to that of each positive; those of an equal score count half
    up_to = np.searchsorted(everyone, positives, "right") - np.searchsorted(
        positives, positives, "right"
    )
    auroc = float(np.mean(below - positives_below + up_to) / 2 / (n - count))
    return auroc, ap


@dataclass(frozen=True)
class Calibration:
    """How well the probability of the answer tells how often it is right, by bins of that probability."""

    n: Int[np.ndarray, " bins"]
    """Images in each bin."""
    confidence: Float[np.ndarray, " bins"]
    """Mean probability; NaN in an empty bin."""
    accuracy: Float[np.ndarray, " bins"]
    """Share of right answers; NaN in an empty bin."""

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean distance of confidence and accuracy, over the images."""
        filled = self.n > 0
        if not filled.any():
            return math.nan
        return float(
            np.abs(self.accuracy - self.confidence)[filled] @ self.n[filled] / self.n.sum()
        )


def calibration(
    probabilities: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
) -> Calibration:
    """Sort answers into BINS of equal width by their probability; one that is not a number is left out."""
    known = ~np.isnan(probabilities)
    probabilities, right = probabilities[known], right[known]
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probabilities)
    n = np.bincount(bins, minlength=BINS)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bins, probabilities, BINS) / n
        accuracy = np.bincount(bins, right, BINS) / n
    return Calibration(n, confidence, accuracy)


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the Wilson score interval of a share, from 0 to 1, as if the images were drawn one by one."""
    if n == 0:
        return math.nan, math.nan
    share, z = right / n, NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, (middle - half) / (1 + z * z / n)), min(1.0, (middle + half) / (1 + z * z / n))


def most_confused(confusion: Int[np.ndarray, "k k"], most: int) -> list[tuple[int, int, int]]:
    """Return (label, prediction, images) of the pairs that were confused most often."""
    label, prediction = np.nonzero(confusion)
    wrong = label != prediction
    label, prediction = label[wrong], prediction[wrong]
    counts = confusion[label, prediction]
    order = np.lexsort((prediction, label, -counts))[:most]
    return [(int(label[i]), int(prediction[i]), int(counts[i])) for i in order]
