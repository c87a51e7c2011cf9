"""Equal to scikit-learn on any labels and scores: absent classes, ties, one class, and to the last digits."""

from __future__ import annotations

import math
import time
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from vitrail.evaluation.class_scores import (
    BINS,
    Calibration,
    calibration,
    class_scores,
    most_confused,
    rankings,
    wilson,
)


@st.composite
def cases(draw: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions and scores of few values, so that many tie; some classes have no image or no answer."""
    k, n = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    present = draw(st.lists(st.integers(0, k - 1), min_size=1, max_size=k))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    labels = generator.choice(present, n)
    levels = draw(st.sampled_from([2, 5, 1000]))
    scores = (generator.integers(0, levels, (n, k)) / levels).astype(np.float32)
    return labels.astype(np.int64), scores.argmax(1), scores


def confusion_of(labels: np.ndarray, predictions: np.ndarray, k: int) -> np.ndarray:
    return np.bincount(labels * k + predictions, minlength=k * k).reshape(k, k)


@given(cases())
def test_class_scores_equal_those_of_scikit_learn(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, predictions, scores = case
    k = scores.shape[1]
    found = class_scores(confusion_of(labels, predictions, k), labels, scores)
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predictions, labels=range(k), zero_division=np.nan
    )
    np.testing.assert_array_equal(found.n, support)
    np.testing.assert_allclose(found.precision, precision, rtol=1e-15)
    np.testing.assert_allclose(found.recall, recall, rtol=1e-15)
    np.testing.assert_allclose(found.f1, f1, rtol=1e-15)
    present = np.flatnonzero(found.n)
    assert found.macro("f1") == pytest.approx(f1_score(labels, predictions, labels=present, average="macro"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of answers that no label has, which are mistakes
        assert found.macro("recall") == pytest.approx(balanced_accuracy_score(labels, predictions))


@given(cases())
def test_rankings_equal_those_of_scikit_learn(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    labels, _, scores = case
    auroc, ap = rankings(labels, scores)
    for label in range(scores.shape[1]):
        truth = labels == label
        if not truth.any():
            assert math.isnan(auroc[label])
            assert math.isnan(ap[label])
            continue
        assert ap[label] == pytest.approx(average_precision_score(truth, scores[:, label]), rel=1e-12)
        if truth.all():
            assert math.isnan(auroc[label])
        else:
            assert auroc[label] == pytest.approx(roc_auc_score(truth, scores[:, label]), rel=1e-12)


def test_a_mean_over_classes_leaves_out_those_without_images() -> None:
    labels, predictions = np.array([0, 0, 1]), np.array([0, 2, 1])
    scores = np.eye(4, dtype=np.float32)[predictions]
    found = class_scores(confusion_of(labels, predictions, 4), labels, scores)
    assert found.macro("recall") == 0.75
    assert found.macro("f1") == pytest.approx((2 / 3 + 1) / 2)
    assert math.isnan(found.precision[3])
    assert found.precision[2] == 0


def test_a_mean_of_nothing_is_not_a_number() -> None:
    labels = np.zeros(3, dtype=np.int64)
    found = class_scores(np.array([[3]]), labels, np.ones((3, 1), dtype=np.float32))
    assert math.isnan(found.macro("auroc"))


def test_scores_that_are_not_numbers_rank_nothing() -> None:
    scores = np.array([[0.1, 0.9], [np.nan, 0.1]], dtype=np.float32)
    auroc, ap = rankings(np.array([1, 0]), scores)
    assert math.isnan(auroc[0])
    assert math.isnan(ap[0])
    assert (auroc[1], ap[1]) == (1.0, 1.0)


@given(st.integers(1, 200), st.integers(0, 2**32))
def test_calibration_bins_equal_those_of_scikit_learn(n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities, right = generator.integers(0, 31, n) / 30, generator.random(n) < 0.5
    found = calibration(probabilities, right)
    accuracy, confidence = calibration_curve(right, probabilities, n_bins=BINS)
    filled = found.n > 0
    np.testing.assert_allclose(found.accuracy[filled], accuracy)
    np.testing.assert_allclose(found.confidence[filled], confidence)
    assert found.n.sum() == n
    assert found.ece == pytest.approx(np.sum(found.n[filled] * np.abs(accuracy - confidence)) / n)


def test_calibration_leaves_out_what_is_not_a_number() -> None:
    found = calibration(np.array([0.9, np.nan]), np.array([True, False]))
    assert found.n.sum() == 1
    assert found.ece == pytest.approx(0.1)
    empty = np.full(BINS, np.nan)
    assert math.isnan(Calibration(np.zeros(BINS, dtype=np.int64), empty, empty).ece)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 100, 0.7222, 0.8749), (500, 1000, 0.4691, 0.5309)],
)
def test_wilson_intervals_are_those_of_the_tables(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right, n) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_of_no_image_is_not_a_number() -> None:
    assert all(map(math.isnan, wilson(0, 0)))


def test_the_most_confused_pairs_come_by_their_number_then_in_the_order_of_the_classes() -> None:
    confusion = np.array([[9, 2, 0], [2, 9, 3], [0, 1, 9]])
    assert most_confused(confusion, 3) == [(1, 2, 3), (0, 1, 2), (1, 0, 2)]
    assert most_confused(np.diag([3, 4]), 3) == []


def test_a_thousand_classes_take_seconds(without_shape_checks: None) -> None:
    generator = np.random.default_rng(0)
    scores = generator.random((10_000, 1000), dtype=np.float32)
    labels = generator.integers(0, 1000, 10_000)
    began = time.perf_counter()
    auroc, _ = rankings(labels, scores)
    assert time.perf_counter() - began < 10
    assert np.nanmean(auroc) == pytest.approx(0.5, abs=0.01)
