"""Multi-label metrics: mean average precision, tuned thresholds, macro and micro F1.

Shapes
    n images, k classes
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from vitrail.errors import ConfigError, name_option
from vitrail.evaluation.class_scores import ClassScores, ranking
from vitrail.inference.decision import probabilities

HALF = 0.5
"""Threshold of a class that none could be tuned for."""


@dataclass(frozen=True)
class MultiLabelMetrics:
    """The numbers of a multi-label evaluation; F1 is at the thresholds, or at probability 0.5 where it says so."""

    n: int
    """Images counted."""
    map: float
    """Mean over the classes that have images of their average precision, percent."""
    macro_f1: float
    """Mean of F1 over the classes that have images or were answered, percent."""
    micro_f1: float
    """F1 of all pairs of image and class together, percent."""
    macro_f1_at_half: float
    """Mean of F1 over the classes where each is an answer from probability 0.5, percent."""
    micro_f1_at_half: float
    """F1 of all pairs of image and class where each class is an answer from probability 0.5,
    percent."""
    loss: float
    """Mean over images and classes of the binary cross-entropy."""
    thresholds: tuple[float, ...]
    """Probability of each class from which it is an answer."""
    warnings: tuple[str, ...] = ()

    @property
    def best_first(self) -> tuple[float, float]:
        """A key that sorts evaluations, the best first."""
        return -self.map, self.loss

    @property
    def shown(self) -> dict[str, str]:
        """The numbers that a table shows, by their titles."""
        return {
            "loss": f"{self.loss:.4f}",
            "mAP, %": f"{self.map:.2f}",
            "macro F1, %": f"{self.macro_f1:.2f}",
            "micro F1, %": f"{self.micro_f1:.2f}",
        }

    @property
    def headline(self) -> Literal["mAP"]:
        """The name of the number that evaluations are compared by."""
        return "mAP"

    def numbers(self) -> dict[str, Any]:
        """Return the row of numbers."""
        numbers = dict(vars(self))
        del numbers["thresholds"], numbers["warnings"]
        return numbers

    def numbers_of_all_images(self, unreadable: int) -> dict[str, Any]:
        """Return nothing: an image that was not read is in no ranking."""
        return {}

    def acc_log(self) -> str:
        """Refuse the lines of MindSpore's model zoo, which are for single-label models.

        Raises:
            ConfigError: Always.
        """
        where = name_option("acc_log")
        raise ConfigError(
            f"{where}: the model zoo's lines are for one class an image; leave it out"
        )


@dataclass(frozen=True)
class Decisions:
    """Counts of right and wrong answers, class by class."""

    hits: Int[np.ndarray, " k"]
    """True positives: images of the class that are answered with it."""
    false: Int[np.ndarray, " k"]
    """False positives: other images that are answered with the class."""
    missed: Int[np.ndarray, " k"]
    """False negatives: images of the class that are not answered with it."""

    @classmethod
    def of(cls, answers: Bool[np.ndarray, "n k"], truth: Bool[np.ndarray, "n k"]) -> Decisions:
        """Count the answers (n, k) that are right, wrong and missing."""
        return cls((answers & truth).sum(0), (answers & ~truth).sum(0), (~answers & truth).sum(0))

    def rates(
        self, micro: bool = False
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Return precision, recall and F1 of each class, or of all together as (1,)."""
        counts = np.stack([self.hits, self.false, self.missed]).astype(np.float64)
        if micro:
            counts = counts.sum(axis=1, keepdims=True)
        hits, false, missed = counts
        # a class without images and answers has no rates: 0 / 0 is NaN
        with np.errstate(invalid="ignore"):
            precision = hits / (hits + false)
            recall = hits / (hits + missed)
            f1 = 2 * hits / (2 * hits + false + missed)
        return precision, recall, f1


def compute_multi_label_metrics(
    logits: Float[np.ndarray, "n k"],
    truth: Bool[np.ndarray, "n k"],
    thresholds: tuple[float, ...] | None = None,
) -> MultiLabelMetrics:
    """Measure answers.

    Args:
        logits: Logits of the model.
        truth: Whether each image has each class.
        thresholds: Thresholds of the classes; None tunes them on these images, see `tuned`.
    """
    n, k = logits.shape
    shares = probabilities(logits)
    if thresholds is None:
        thresholds = tuple(tuned(shares[:, label], truth[:, label]) for label in range(k))
    at_thresholds = Decisions.of(shares >= np.array(thresholds), truth)
    at_half = Decisions.of(shares >= HALF, truth)
    _, ap = label_rankings(logits, truth)
    warnings: tuple[str, ...] = ()
    if n and not truth.any():
        warnings = ("no image has any class, so nothing can be ranked",)
    return MultiLabelMetrics(
        n,
        map=100 * _mean(ap[truth.any(0)], skip_nan=False),
        macro_f1=100 * _mean(at_thresholds.rates()[2]),
        micro_f1=100 * _mean(at_thresholds.rates(micro=True)[2]),
        macro_f1_at_half=100 * _mean(at_half.rates()[2]),
        micro_f1_at_half=100 * _mean(at_half.rates(micro=True)[2]),
        loss=_mean_cross_entropy(logits, truth),
        thresholds=thresholds,
        warnings=warnings,
    )


def _mean_cross_entropy(logits: Float[np.ndarray, "n k"], truth: Bool[np.ndarray, "n k"]) -> float:
    """Return the mean binary cross-entropy over images and classes, in float64."""
    if not len(logits):
        return math.nan
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        return float((np.logaddexp(0, x) - np.where(truth, x, 0)).mean())


def label_scores(
    logits: Float[np.ndarray, "n k"], truth: Bool[np.ndarray, "n k"], thresholds: tuple[float, ...]
) -> ClassScores:
    """Score each class: rates at its threshold, and rankings."""
    precision, recall, f1 = Decisions.of(
        probabilities(logits) >= np.array(thresholds), truth
    ).rates()
    auroc, ap = label_rankings(logits, truth)
    return ClassScores(
        n=truth.sum(0), precision=precision, recall=recall, f1=f1, auroc=auroc, ap=ap
    )


def label_rankings(
    logits: Float[np.ndarray, "n k"], truth: Bool[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the area under the ROC curve, and the average precision, of each class."""
    pairs = np.array(
        [ranking(logits[:, label], truth[:, label]) for label in range(logits.shape[1])]
    )
    return pairs[:, 0], pairs[:, 1]


def tuned(shares: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]) -> float:
    """Return the threshold of the largest F1; of several, the one with the fewest answers.

    It lies halfway between the least probability that it lets through and the next below, or 0
    where there is none. A class without images, or without numbers for probabilities, has HALF.
    """
    if not is_positive.any() or np.isnan(shares).any():
        return HALF
    order = np.argsort(-shares, kind="stable")
    ranked, hits = shares[order], np.cumsum(is_positive[order])
    # equal probabilities are let through together, so a threshold lies behind the last of them
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    f1 = 2 * hits[last] / (last + 1 + hits[-1])
    at = int(last[np.argmax(f1)])
    least = float(ranked[at])
    below = float(ranked[at + 1]) if at + 1 < len(ranked) else 0.0
    middle = (least + below) / 2
    # between neighbouring floats there is no middle
    return middle if below < middle else least


def _mean(values: Float[np.ndarray, " m"], *, skip_nan: bool = True) -> float:
    kept = values[~np.isnan(values)] if skip_nan else values
    if not len(kept):
        return math.nan
    return math.fsum(kept) / len(kept)
