"""Multi-label report: numbers as JSON and CSV, and one page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources import Source
from vitrail.evaluation.answers import Gathered
from vitrail.evaluation.class_scores import ClassScores
from vitrail.evaluation.multi_label_metrics import HALF, Decisions, MultiLabelMetrics, label_scores
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
from vitrail.imagenet import find_english_names
from vitrail.inference.decision import probabilities
from vitrail.pages.render import pictured, render

TEMPLATE = "label_report.html"
MISTAKES_OF_A_KIND = MISTAKES // 2
"""False positives, and false negatives, in report.json and on the page."""
CLASS_COLUMNS = ("class", "n", "precision", "recall", "F1", "AUROC", "AP", "threshold")
"""Columns of per_class.csv."""


def label_sets_of(source: Source, answers: Gathered) -> NDArray[np.bool_]:
    """Return (n, k), which classes each answered image has."""
    assert source.label_sets is not None
    return source.label_sets[source.labels[answers.indices]]


@dataclass(frozen=True)
class _Answered:
    """The readable images with their classes and answers; row i is the i-th readable image."""

    subject: Subject
    answers: Gathered
    is_true: NDArray[np.bool_]
    """(n, k), whether an image has a class."""
    is_answer: NDArray[np.bool_]
    """(n, k), whether a class reaches its threshold."""
    probabilities: NDArray[np.float64]
    """(n, k), the probability of each class."""
    thresholds: tuple[float, ...]
    scores: ClassScores

    @property
    def classes(self) -> tuple[str, ...]:
        return self.subject.record.classes

    def mistakes(self) -> dict[str, list[tuple[int, int]]]:
        """Return image and class of the most confident false positives and false negatives."""
        logits = self.answers.scores
        return {
            "false_positives": _surest(self.is_answer & ~self.is_true, -logits),
            "false_negatives": _surest(~self.is_answer & self.is_true, logits),
        }


def multi_label_report_files(
    subject: Subject,
    answers: Gathered,
    accuracy: MultiLabelMetrics,
    bad_files: Sequence[tuple[str, str]],
    training: Training | None = None,
) -> dict[str, bytes]:
    """Return the files of a report by name.

    Args:
        subject: The evaluated model and images.
        answers: Answers to the readable images.
        accuracy: Metrics of these answers.
        bad_files: Name and reason of each unreadable image.
        training: The run that ended with this evaluation.
    """
    answered = _bring_together(subject, answers, accuracy.thresholds)
    mistakes = answered.mistakes()
    numbers = plain(_numbers(answered, accuracy, mistakes, bad_files))
    per_class = [list(row.values()) for row in numbers["per_class"]]
    return {
        NUMBERS: to_json(numbers, training),
        "per_class.csv": to_csv(CLASS_COLUMNS, per_class, subject),
        PAGE: _page(answered, numbers, mistakes, training),
    }


def _bring_together(
    subject: Subject, answers: Gathered, thresholds: tuple[float, ...]
) -> _Answered:
    """Compare the answers with the classes of the images."""
    is_true = label_sets_of(subject.source, answers)
    shares = probabilities(answers.scores)
    return _Answered(
        subject=subject,
        answers=answers,
        is_true=is_true,
        is_answer=shares >= np.array(thresholds),
        probabilities=shares,
        thresholds=thresholds,
        scores=label_scores(answers.scores, is_true, thresholds),
    )


def _numbers(
    answered: _Answered,
    accuracy: MultiLabelMetrics,
    mistakes: Mapping[str, Sequence[tuple[int, int]]],
    bad_files: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return the numbers of report.json, in their order there."""
    classes, scores = answered.classes, answered.scores
    numbers = {name: value for name, value in accuracy.numbers().items() if name != "n"}
    numbers |= {
        "n_ok": accuracy.n,
        "n_bad": len(bad_files),
        "macro_auroc": scores.macro("auroc"),
        "classes_per_image": float(answered.is_true.sum(1).mean()),
        "answers_per_image": float(answered.is_answer.sum(1).mean()),
        "precision_recall": _precision_recall(answered),
        "per_class": _per_class(answered),
        "classes_without_images": [classes[label] for label in np.flatnonzero(scores.n == 0)],
    }
    for kind, pairs in mistakes.items():
        numbers[kind] = [_mistake(answered, image, label) for image, label in pairs]
    numbers |= {
        "bad_files": unreadable_images(bad_files),
        "warnings": list(accuracy.warnings),
        **origin(answered.subject, scores.n),
    }
    return numbers


def _precision_recall(answered: _Answered) -> list[dict[str, Any]]:
    """Return the averaged rates, over classes and over all pairs, at the thresholds and at one half."""
    at_thresholds = Decisions.of(answered.is_answer, answered.is_true)
    at_half = Decisions.of(answered.probabilities >= HALF, answered.is_true)
    rows = []
    for average in ("macro", "micro"):
        for at, decisions in (("thresholds", at_thresholds), ("0.5", at_half)):
            precision, recall, f1 = map(_mean, decisions.rates(micro=average == "micro"))
            rows.append(
                {"average": average, "at": at, "precision": precision, "recall": recall, "f1": f1}
            )
    return rows


def _per_class(answered: _Answered) -> list[dict[str, Any]]:
    """Return the scores and the threshold of each class."""
    columns = zip(answered.classes, answered.scores.rows(), answered.thresholds, strict=True)
    return [
        {"class": name, **scores, "threshold": threshold} for name, scores, threshold in columns
    ]


def _mistake(answered: _Answered, image: int, label: int) -> dict[str, Any]:
    """Return path, wrong or missed class, its probability, and the true classes of an image."""
    classes = answered.classes
    return {
        "path": answered.subject.source.name(int(answered.answers.indices[image])),
        "class": classes[label],
        "probability": float(answered.probabilities[image, label]),
        "classes": [classes[true] for true in np.flatnonzero(answered.is_true[image])],
    }


def _page(
    answered: _Answered,
    numbers: Mapping[str, Any],
    mistakes: Mapping[str, Sequence[tuple[int, int]]],
    training: Training | None,
) -> bytes:
    subject = answered.subject
    shown = thumbnails(subject, answered.answers, [image for image, _ in chain(*mistakes.values())])
    pictures, maps = {}, {}
    for kind, pairs in mistakes.items():
        pictures[kind] = [shown[image] for image, _ in pairs]
        to_explain = [(image, (label,)) for image, label in pairs]
        maps[kind] = explain_mistakes(subject, answered.answers, to_explain)
    return render(
        TEMPLATE,
        name=subject.name,
        found=numbers,
        pictures=pictures,
        maps=maps,
        **about_maps(subject),
        size=subject.preprocess.size,
        pictured=pictured(subject.preprocess.pixels),
        english=find_english_names(subject.record.classes),
        training=training,
    )


def _surest(wrong: NDArray[np.bool_], doubts: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Return image and class of the first wrong pairs by rising doubt."""
    images, labels = np.nonzero(wrong)
    order = np.argsort(doubts[images, labels], kind="stable")[:MISTAKES_OF_A_KIND]
    return [(int(images[pair]), int(labels[pair])) for pair in order]


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    if not len(known):
        return float("nan")
    return float(known.mean())
