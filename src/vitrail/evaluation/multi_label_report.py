"""The report of a multi-label evaluation: numbers as JSON and CSV, and one page that shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitrail.data.sources import Source
from vitrail.evaluation.answers import Gathered
from vitrail.evaluation.multi_label_metrics import HALF, Decisions, MultiLabelMetrics, label_scores
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
from vitrail.imagenet import english
from vitrail.inference.decision import probabilities
from vitrail.pages.render import pictured, render

TEMPLATE = "label_report.html"


def label_sets_of(source: Source, answers: Gathered) -> NDArray[np.bool_]:
    """Return (n, k), which classes each answered image has."""
    assert source.label_sets is not None
    return source.label_sets[source.labels[answers.indices]]


def multi_label_report_files(
    subject: Subject,
    answers: Gathered,
    accuracy: MultiLabelMetrics,
    bad_files: Sequence[tuple[str, str]],
    training: Training | None = None,
) -> dict[str, bytes]:
    """Return the files of a report by name.

    Args:
        subject: What was evaluated.
        answers: To its readable images.
        accuracy: What was found in them.
        bad_files: Name and reason of each unreadable image.
        training: The run that ended with this evaluation.
    """
    classes, logits, is_true = subject.record.classes, answers.scores, label_sets_of(subject.source, answers)
    shares, thresholds = probabilities(logits), np.array(accuracy.thresholds)
    is_answer = shares >= thresholds
    scores = label_scores(logits, is_true, accuracy.thresholds)
    has_images = scores.n > 0
    wrong = {
        "false_positives": _surest(is_answer & ~is_true, -logits),
        "false_negatives": _surest(~is_answer & is_true, logits),
    }
    numbers: dict[str, Any] = {
        **{name: value for name, value in accuracy.numbers().items() if name != "n"},
        "n_ok": accuracy.n,
        "n_bad": len(bad_files),
        "macro_auroc": scores.macro("auroc"),
        "classes_per_image": float(is_true.sum(1).mean()),
        "answers_per_image": float(is_answer.sum(1).mean()),
        "precision_recall": [
            {"average": average, "at": at, **_averaged(Decisions.of(shares >= least, is_true), average)}
            for average in ("macro", "micro")
            for at, least in (("thresholds", thresholds), ("0.5", HALF))
        ],
        "per_class": [
            {"class": name, "n": n, "precision": precision, "recall": recall, "f1": f1, "auroc": auroc, "ap": ap,
             "threshold": threshold}
            for name, n, precision, recall, f1, auroc, ap, threshold in zip(
                classes, *(values.tolist() for values in vars(scores).values()), accuracy.thresholds, strict=True
            )
        ],
        "classes_without_images": [classes[i] for i in np.flatnonzero(~has_images)],
        **{
            name: [
                {"path": subject.source.name(int(answers.indices[i])), "class": classes[label],
                 "probability": float(shares[i, label]), "classes": [classes[c] for c in np.flatnonzero(is_true[i])]}
                for i, label in pairs
            ]
            for name, pairs in wrong.items()
        },
        "bad_files": [{"path": name, "error": reason} for name, reason in bad_files],
        "warnings": list(accuracy.warnings),
        **origin(subject, scores.n),
    }  # fmt: skip
    numbers = plain(numbers)
    shown = {i: thumbnail(subject, int(answers.indices[i])) for pairs in wrong.values() for i, _ in pairs}
    page = render(
        TEMPLATE,
        name=subject.name,
        found=numbers,
        pictures={name: [shown[i] for i, _ in pairs] for name, pairs in wrong.items()},
        size=subject.preprocess.size,
        pictured=pictured(subject.preprocess.pixels),
        english=english(classes),
        training=training,
    )
    columns = ["class", "n", "precision", "recall", "F1", "AUROC", "AP", "threshold"]
    return {
        NUMBERS: to_json(numbers, training),
        "per_class.csv": to_csv(columns, [list(row.values()) for row in numbers["per_class"]], subject),
        PAGE: page,
    }


def _surest(wrong: NDArray[np.bool_], doubts: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Return image and class of the first wrong pairs by rising doubt."""
    images, labels = np.nonzero(wrong)
    order = np.argsort(doubts[images, labels], kind="stable")[: MISTAKES // 2]
    return [(int(images[i]), int(labels[i])) for i in order]


def _averaged(decisions: Decisions, average: str) -> dict[str, float]:
    rates = decisions.rates(micro=average == "micro")
    return dict(zip(("precision", "recall", "f1"), map(_mean, rates), strict=True))


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
