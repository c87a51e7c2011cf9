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

from vitrail.errors import ConfigError
from vitrail.evaluation.class_scores import ClassScores, ranking
from vitrail.inference.decision import probabilities

HALF = 0.5
"""Threshold of a class that none could be tuned for."""


@dataclass(frozen=True)
class MultiLabelMetrics:
    """What an evaluation found; F1 at the thresholds and, where it says so, at probability 0.5 for every class."""

    n: int
    """Images counted."""
    map: float
    """Mean over the classes that have images of their average precision, percent."""
    macro_f1: float
    """Mean of F1 over the classes that have images or were answered, percent."""
    micro_f1: float
    """F1 of all pairs of image and class together, percent."""
    macro_f1_at_half: float
    micro_f1_at_half: float
    loss: float
    """Mean over images and classes of the binary cross-entropy."""
    thresholds: tuple[float, ...]
    """Probability of each class from which it is an answer."""
    warnings: tuple[str, ...] = ()

    @property
    def best_first(self) -> tuple[float, float]:
        """What sorts evaluations, the best first."""
        return -self.map, self.loss

    @property
    def shown(self) -> dict[str, str]:
        """The numbers that a table shows, by their titles."""
        percent = {"mAP, %": self.map, "macro F1, %": self.macro_f1, "micro F1, %": self.micro_f1}
        return {"loss": f"{self.loss:.4f}", **{title: f"{value:.2f}" for title, value in percent.items()}}

    @property
    def headline(self) -> Literal["mAP"]:
        """The name of the number that evaluations are compared by."""
        return "mAP"

    def numbers(self) -> dict[str, Any]:
        """Return the row of numbers."""
        return {name: value for name, value in vars(self).items() if name not in ("thresholds", "warnings")}

    def numbers_of_all_images(self, unreadable: int) -> dict[str, Any]:
        """Return nothing: an image that was not read is in no ranking."""
        return {}

    def acc_log(self) -> str:
        """Refuse the lines of MindSpore's model zoo, which are for single-label models.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("--acc-log: the model zoo's lines are for one class an image; leave it out")


@dataclass(frozen=True)
class Decisions:
    """How many images of each class were answered so, others were, and how many were missed."""

    hits: Int[np.ndarray, " k"]
    false: Int[np.ndarray, " k"]
    missed: Int[np.ndarray, " k"]

    @classmethod
    def of(cls, answers: Bool[np.ndarray, "n k"], truth: Bool[np.ndarray, "n k"]) -> Decisions:
        """Count."""
        return cls((answers & truth).sum(0), (answers & ~truth).sum(0), (~answers & truth).sum(0))

    def rates(
        self, micro: bool = False
    ) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Return precision, recall and F1 of each class, or of all together as (1,)."""
        hits, false, missed = (
            (count.sum(keepdims=True) if micro else count).astype(np.float64)
            for count in (self.hits, self.false, self.missed)
        )
        with np.errstate(invalid="ignore"):
            return hits / (hits + false), hits / (hits + missed), 2 * hits / (2 * hits + false + missed)


def compute_multi_label_metrics(
    logits: Float[np.ndarray, "n k"],
    truth: Bool[np.ndarray, "n k"],
    thresholds: tuple[float, ...] | None = None,
) -> MultiLabelMetrics:
    """Measure answers.

    Args:
        logits: Of the model.
        truth: Which classes each image has.
        thresholds: Of each class; None tunes them on these images, see `tuned`.
    """
    shares, n = probabilities(logits), len(logits)
    if thresholds is None:
        thresholds = tuple(tuned(shares[:, label], truth[:, label]) for label in range(logits.shape[1]))
    at_thresholds = Decisions.of(shares >= np.array(thresholds), truth)
    at_half = Decisions.of(shares >= HALF, truth)
    _, ap = label_rankings(logits, truth)
    x = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):
        loss = float((np.logaddexp(0, x) - np.where(truth, x, 0)).mean()) if n else math.nan
    return MultiLabelMetrics(
        n,
        map=100 * _mean(ap[truth.any(0)], skip_nan=False),
        macro_f1=100 * _mean(at_thresholds.rates()[2]),
        micro_f1=100 * _mean(at_thresholds.rates(micro=True)[2]),
        macro_f1_at_half=100 * _mean(at_half.rates()[2]),
        micro_f1_at_half=100 * _mean(at_half.rates(micro=True)[2]),
        loss=loss,
        thresholds=thresholds,
        warnings=("no image has any class, so nothing can be ranked",) if n and not truth.any() else (),
    )


def label_scores(
    logits: Float[np.ndarray, "n k"], truth: Bool[np.ndarray, "n k"], thresholds: tuple[float, ...]
) -> ClassScores:
    """Score each class."""
    rates = Decisions.of(probabilities(logits) >= np.array(thresholds), truth).rates()
    auroc, ap = label_rankings(logits, truth)
    return ClassScores(truth.sum(0), *rates, auroc, ap)


def label_rankings(
    logits: Float[np.ndarray, "n k"], truth: Bool[np.ndarray, "n k"]
) -> tuple[Float[np.ndarray, " k"], Float[np.ndarray, " k"]]:
    """Return the area under the ROC curve, and the average precision, of each class."""
    found = np.array([ranking(logits[:, label], truth[:, label]) for label in range(logits.shape[1])])
    return found[:, 0], found[:, 1]


def tuned(shares: Float[np.ndarray, " n"], is_positive: Bool[np.ndarray, " n"]) -> float:
    """Return the threshold of the largest F1; of several, the one with the fewest answers.

    It lies halfway between the least probability that it lets through and the next below, or 0 where there is none.
    A class without images, or without numbers for probabilities, has HALF.
    """
    if not is_positive.any() or np.isnan(shares).any():
        return HALF
    order = np.argsort(-shares, kind="stable")
    ranked, hits = shares[order], np.cumsum(is_positive[order])
    last = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))  # equal ones are let through together
    at = int(last[np.argmax(2 * hits[last] / (last + 1 + hits[-1]))])
    least, below = float(ranked[at]), float(ranked[at + 1]) if at + 1 < len(ranked) else 0.0
    middle = (least + below) / 2
    return middle if below < middle else least


def _mean(values: Float[np.ndarray, " m"], *, skip_nan: bool = True) -> float:
    kept = values[~np.isnan(values)] if skip_nan else values
    return math.fsum(kept) / len(kept) if len(kept) else math.nan
