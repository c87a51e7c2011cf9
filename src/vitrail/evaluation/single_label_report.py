"""The report of a single-label evaluation: numbers as JSON and CSV, the confusion matrix, and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.evaluation.answers import Gathered
from vitrail.evaluation.class_scores import (
    BINS,
    CONFIDENCE,
    ClassScores,
    calibration,
    class_scores,
    most_confused,
    wilson,
)
from vitrail.evaluation.confusion import draw_confusion, shades
from vitrail.evaluation.report import (
    MISTAKES,
    NUMBERS,
    PAGE,
    Subject,
    Training,
    origin,
    plain,
    thumbnail,
    to_csv,
    to_json,
)
from vitrail.evaluation.single_label_metrics import SHOTS, SingleLabelMetrics
from vitrail.imagenet import english
from vitrail.pages.render import data_uri, pictured, render

PAIRS, PAIRS_SHOWN, OF_A_PAIR = 50, 12, 3
"""Confused pairs in report.json, on the page, and pictures of each there."""

TABLE_UP_TO = 20
"""Classes up to which the page has the confusion matrix as a table of numbers."""


@dataclass(frozen=True)
class _Found:
    """What the answers come to."""

    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    """Of the predictions."""
    confusion: NDArray[np.int64]
    scores: ClassScores
    numbers: dict[str, Any] = field(default_factory=dict)


def single_label_report_files(
    subject: Subject,
    answers: Gathered,
    accuracy: SingleLabelMetrics,
    bad_files: Sequence[tuple[str, str]],
    training: Training | None = None,
) -> dict[str, bytes]:
    """Return the files of a report by name.

    Args:
        subject: What was evaluated.
        answers: To its readable images.
        accuracy: Counted by all processes; loss and warnings are taken from it.
        bad_files: Name and reason of each unreadable image.
        training: The run that ended with this evaluation.
    """
    found = _find(subject, answers, accuracy, bad_files)
    classes = subject.record.classes
    image = draw_confusion(found.confusion, classes)
    rows = [list(row.values()) for row in found.numbers["per_class"]]
    return {
        NUMBERS: to_json(found.numbers, training),
        "per_class.csv": to_csv(["class", "n", "accuracy", "precision", "recall", "F1", "AUROC", "AP"], rows, subject),
        "confusion.csv": to_csv(
            ["true / answer", *classes],
            [[name, *row] for name, row in zip(classes, found.confusion.tolist(), strict=True)],
            subject,
        ),
        "confusion.png": image,
        PAGE: _page(subject, answers, found, image, training),
    }


def _find(
    subject: Subject, answers: Gathered, accuracy: SingleLabelMetrics, bad_files: Sequence[tuple[str, str]]
) -> _Found:
    source, classes = subject.source, subject.record.classes
    k, n = len(classes), len(answers.indices)
    labels, predictions = source.labels[answers.indices].astype(np.int64), answers.choices[:, 0]
    confusion = np.bincount(labels * k + predictions, minlength=k * k).reshape(k, k)
    probabilities = np.exp(answers.scores[np.arange(n), predictions].astype(np.float64))
    is_right = labels == predictions
    right, right5 = int(is_right.sum()), int((answers.choices == labels[:, None]).sum())
    scores = class_scores(confusion, labels, answers.scores)
    bins = calibration(probabilities, is_right)
    images = n + len(bad_files)
    assert n == accuracy.n, "an image was lost or counted twice"
    numbers = {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "loss": accuracy.loss,
        "n_ok": n,
        "n_bad": len(bad_files),
        "n_right": right,
        "n_right5": right5,
        "top1_all_images": 100 * right / images,
        "top5_all_images": 100 * right5 / images,
        "intervals": {
            "kind": f"{CONFIDENCE:.0%} Wilson score interval, percent",
            "top1": _percent(wilson(right, n)),
            "top5": _percent(wilson(right5, n)),
            "top1_all_images": _percent(wilson(right, images)),
            "top5_all_images": _percent(wilson(right5, images)),
        },
        "balanced_accuracy": accuracy.balanced_accuracy,
        "macro_f1": accuracy.macro_f1,
        **{f"{name}_top1": getattr(accuracy, f"{name}_top1") for name in SHOTS},
        "macro_auroc": scores.macro("auroc"),
        "macro_ap": scores.macro("ap"),
        "ece": bins.ece,
        "reliability": [
            {"from": i / BINS, "to": (i + 1) / BINS, "n": count, "confidence": confidence, "accuracy": share}
            for i, (count, confidence, share) in enumerate(
                zip(bins.n.tolist(), bins.confidence.tolist(), bins.accuracy.tolist(), strict=True)
            )
        ],
        "per_class": [
            {"class": name, "n": count, "accuracy": 100 * recall, "precision": precision, "recall": recall, "f1": f1,
             "auroc": auroc, "ap": ap}
            for name, count, precision, recall, f1, auroc, ap in zip(
                classes, *(values.tolist() for values in vars(scores).values()),
                strict=True,
            )
        ],
        "classes_without_images": [classes[i] for i in np.flatnonzero(scores.n == 0)],
        "most_confused": [
            {"true": classes[label], "answer": classes[answer], "n": count, "of": int(scores.n[label])}
            for label, answer, count in most_confused(confusion, PAIRS)
        ],
        "most_confident_mistakes": [
            {"path": source.name(int(answers.indices[i])), "true": classes[labels[i]],
             "answer": classes[predictions[i]], "probability": float(probabilities[i])}
            for i in _surest(np.flatnonzero(~is_right), probabilities)[:MISTAKES]
        ],
        "bad_files": [{"path": name, "error": reason} for name, reason in bad_files],
        "warnings": list(accuracy.warnings),
        **origin(subject, scores.n),
    }  # fmt: skip
    return _Found(labels, predictions, probabilities, confusion, scores, plain(numbers))


def _page(subject: Subject, answers: Gathered, found: _Found, image: bytes, training: Training | None) -> bytes:
    wrong = np.flatnonzero(found.labels != found.predictions)
    sure = _surest(wrong, found.probabilities)
    pairs = most_confused(found.confusion, PAIRS_SHOWN)
    of_pair: dict[tuple[int, int], list[int]] = {(label, answer): [] for label, answer, _ in pairs}
    for i in sure:
        of = of_pair.get((int(found.labels[i]), int(found.predictions[i])))
        if of is not None and len(of) < OF_A_PAIR:
            of.append(i)
    shown = {i: thumbnail(subject, int(answers.indices[i])) for i in {*sure[:MISTAKES], *chain(*of_pair.values())}}
    small = len(found.confusion) <= TABLE_UP_TO
    return render(
        PAGE,
        name=subject.name,
        found=found.numbers,
        confusion=found.confusion.tolist() if small else None,
        shades=shades(found.confusion).round(2).tolist() if small else None,
        image=data_uri(image),
        pictures_of_pairs=[[(shown[i], float(found.probabilities[i])) for i in of] for of in of_pair.values()],
        pictures_of_mistakes=[shown[i] for i in sure[:MISTAKES]],
        size=subject.preprocess.size,
        pictured=pictured(subject.preprocess.pixels),
        english=english(subject.record.classes),
        training=training,
    )


def _surest(chosen: NDArray[np.int64], probabilities: NDArray[np.float64]) -> list[int]:
    """Return some answers by falling probability, those without one last."""
    return chosen[np.argsort(-probabilities[chosen], kind="stable")].tolist()


def _percent(interval: tuple[float, float]) -> list[float]:
    return [100 * bound for bound in interval]
