"""Single-label report: numbers as JSON and CSV, the confusion matrix, and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.evaluation.answers import Gathered
from vitrail.evaluation.class_scores import (
    BINS,
    CONFIDENCE,
    Calibration,
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
    about_maps,
    explain_mistakes,
    origin,
    plain,
    thumbnails,
    to_csv,
    to_json,
    unreadable_images,
)
from vitrail.evaluation.single_label_metrics import SHOTS, SingleLabelMetrics
from vitrail.imagenet import find_english_names
from vitrail.pages.render import data_uri, pictured, render

PAIRS = 50
"""Confused pairs of classes in report.json."""
PAIRS_SHOWN = 12
"""Confused pairs of classes on the page."""
PICTURES_OF_A_PAIR = 3
"""Pictures of each confused pair on the page."""
TABLE_UP_TO = 20
"""Classes up to which the page has the confusion matrix as a table of numbers."""
CLASS_COLUMNS = ("class", "n", "accuracy", "precision", "recall", "F1", "AUROC", "AP")
"""Columns of per_class.csv."""


@dataclass(frozen=True)
class _Answered:
    """The readable images with their labels and answers; index i is the i-th readable image."""

    subject: Subject
    answers: Gathered
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    """Probabilities of the predictions."""
    confusion: NDArray[np.int64]
    """Images by (label, prediction)."""
    scores: ClassScores

    @property
    def classes(self) -> tuple[str, ...]:
        return self.subject.record.classes

    @cached_property
    def is_right(self) -> NDArray[np.bool_]:
        return self.labels == self.predictions

    @cached_property
    def mistakes(self) -> list[int]:
        """The wrongly answered images by falling probability, those without a probability last."""
        wrong = np.flatnonzero(~self.is_right)
        return wrong[np.argsort(-self.probabilities[wrong], kind="stable")].tolist()


def single_label_report_files(
    subject: Subject,
    answers: Gathered,
    accuracy: SingleLabelMetrics,
    bad_files: Sequence[tuple[str, str]],
    training: Training | None = None,
) -> dict[str, bytes]:
    """Return the files of a report by name.

    Args:
        subject: The evaluated model and images.
        answers: Answers to the readable images.
        accuracy: Metrics counted by all processes; loss and warnings are taken from them.
        bad_files: Name and reason of each unreadable image.
        training: The run that ended with this evaluation.
    """
    assert len(answers.indices) == accuracy.n, "an image was lost or counted twice"
    answered = _bring_together(subject, answers)
    numbers = plain(_numbers(answered, accuracy, bad_files))
    image = draw_confusion(answered.confusion, answered.classes)
    per_class = [list(row.values()) for row in numbers["per_class"]]
    confusion = []
    for name, row in zip(answered.classes, answered.confusion.tolist(), strict=True):
        confusion.append([name, *row])
    return {
        NUMBERS: to_json(numbers, training),
        "per_class.csv": to_csv(CLASS_COLUMNS, per_class, subject),
        "confusion.csv": to_csv(["true / answer", *answered.classes], confusion, subject),
        "confusion.png": image,
        PAGE: _page(answered, numbers, image, training),
    }


def _bring_together(subject: Subject, answers: Gathered) -> _Answered:
    """Compare the answers with the labels, image by image and class by class."""
    k, n = len(subject.record.classes), len(answers.indices)
    labels = subject.source.labels[answers.indices].astype(np.int64)
    predictions = answers.choices[:, 0]
    confusion = np.bincount(labels * k + predictions, minlength=k * k).reshape(k, k)
    return _Answered(
        subject=subject,
        answers=answers,
        labels=labels,
        predictions=predictions,
        probabilities=np.exp(answers.scores[np.arange(n), predictions].astype(np.float64)),
        confusion=confusion,
        scores=class_scores(confusion, labels, answers.scores),
    )


def _numbers(
    answered: _Answered, accuracy: SingleLabelMetrics, bad_files: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """Return the numbers of report.json, in their order there."""
    classes, scores = answered.classes, answered.scores
    bins = calibration(answered.probabilities, answered.is_right)
    return {
        **_right_answers(answered, accuracy, len(bad_files)),
        "balanced_accuracy": accuracy.balanced_accuracy,
        "macro_f1": accuracy.macro_f1,
        **{f"{name}_top1": getattr(accuracy, f"{name}_top1") for name in SHOTS},
        "macro_auroc": scores.macro("auroc"),
        "macro_ap": scores.macro("ap"),
        "ece": bins.ece,
        "reliability": _reliability(bins),
        "per_class": _per_class(classes, scores),
        "classes_without_images": [classes[label] for label in np.flatnonzero(scores.n == 0)],
        "most_confused": _confused_pairs(answered),
        "most_confident_mistakes": [
            _mistake(answered, image) for image in answered.mistakes[:MISTAKES]
        ],
        "bad_files": unreadable_images(bad_files),
        "warnings": list(accuracy.warnings),
        **origin(answered.subject, scores.n),
    }


def _right_answers(answered: _Answered, accuracy: SingleLabelMetrics, n_bad: int) -> dict[str, Any]:
    """Return how many images are answered right, of the readable ones and of all, with intervals."""
    n = accuracy.n
    images = n + n_bad
    right = int(answered.is_right.sum())
    # an image has one label, so at most one of its choices is right
    right5 = int((answered.answers.choices == answered.labels[:, None]).sum())
    return {
        "top1": accuracy.top1,
        "top5": accuracy.top5,
        "loss": accuracy.loss,
        "n_ok": n,
        "n_bad": n_bad,
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
    }


def _reliability(bins: Calibration) -> list[dict[str, Any]]:
    """Return confidence and accuracy of each bin of probabilities."""
    columns = zip(bins.n.tolist(), bins.confidence.tolist(), bins.accuracy.tolist(), strict=True)
    rows = []
    for number, (n, confidence, accuracy) in enumerate(columns):
        edges = {"from": number / BINS, "to": (number + 1) / BINS}
        rows.append({**edges, "n": n, "confidence": confidence, "accuracy": accuracy})
    return rows


def _per_class(classes: tuple[str, ...], scores: ClassScores) -> list[dict[str, Any]]:
    """Return the scores of each class."""
    rows = []
    for name, score in zip(classes, scores.rows(), strict=True):
        # the accuracy on a class is its recall, in percent as accuracies are
        rows.append(
            {"class": name, "n": score.pop("n"), "accuracy": 100 * score["recall"], **score}
        )
    return rows


def _confused_pairs(answered: _Answered) -> list[dict[str, Any]]:
    """Return the pairs of classes that were confused most often."""
    classes, images = answered.classes, answered.scores.n
    return [
        {"true": classes[label], "answer": classes[answer], "n": n, "of": int(images[label])}
        for label, answer, n in most_confused(answered.confusion, PAIRS)
    ]


def _mistake(answered: _Answered, image: int) -> dict[str, Any]:
    """Return path, class, answer and probability of a wrongly answered image."""
    return {
        "path": answered.subject.source.name(int(answered.answers.indices[image])),
        "true": answered.classes[answered.labels[image]],
        "answer": answered.classes[answered.predictions[image]],
        "probability": float(answered.probabilities[image]),
    }


def _page(
    answered: _Answered, numbers: Mapping[str, Any], image: bytes, training: Training | None
) -> bytes:
    subject = answered.subject
    shown = answered.mistakes[:MISTAKES]
    of_pairs = _images_of_pairs(answered)
    pictures = thumbnails(subject, answered.answers, {*shown, *chain(*of_pairs)})
    to_explain = []
    for mistake in shown:
        # the answer, and what should have been the answer
        classes = (int(answered.predictions[mistake]), int(answered.labels[mistake]))
        to_explain.append((mistake, classes))
    confusion = shading = None
    if len(answered.confusion) <= TABLE_UP_TO:
        confusion = answered.confusion.tolist()
        shading = shades(answered.confusion).round(2).tolist()
    pictures_of_pairs = []
    for images in of_pairs:
        pictures_of_pairs.append(
            [(pictures[image], float(answered.probabilities[image])) for image in images]
        )
    return render(
        PAGE,
        name=subject.name,
        found=numbers,
        confusion=confusion,
        shades=shading,
        image=data_uri(image),
        pictures_of_pairs=pictures_of_pairs,
        pictures_of_mistakes=[pictures[image] for image in shown],
        maps_of_mistakes=explain_mistakes(subject, answered.answers, to_explain),
        **about_maps(subject),
        size=subject.preprocess.size,
        pictured=pictured(subject.preprocess.pixels),
        english=find_english_names(subject.record.classes),
        training=training,
    )


def _images_of_pairs(answered: _Answered) -> list[list[int]]:
    """Return the most confident mistakes of each of the pairs of classes that the page shows."""
    pairs = most_confused(answered.confusion, PAIRS_SHOWN)
    images: dict[tuple[int, int], list[int]] = {(label, answer): [] for label, answer, _ in pairs}
    for image in answered.mistakes:
        of_pair = images.get((int(answered.labels[image]), int(answered.predictions[image])))
        if of_pair is not None and len(of_pair) < PICTURES_OF_A_PAIR:
            of_pair.append(image)
    return list(images.values())


def _percent(interval: tuple[float, float]) -> list[float]:
    return [100 * bound for bound in interval]
