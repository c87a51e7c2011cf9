"""The report of an evaluation: numbers as JSON and CSV, the confusion matrix, and one page that shows them all."""

from __future__ import annotations

import csv
import io
import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.data.sources import Source
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
from vitrail.evaluation.metrics import SHOTS, Accuracy
from vitrail.imagenet import english
from vitrail.images.pixels import UnreadableImage
from vitrail.images.preprocess import Preprocess
from vitrail.pages.render import Chart, data_uri, picture, pictured, render
from vitrail.weights.checkpoint import Record, hash_classes, hash_file, provenance

PAGE = "report.html"
FILES = frozenset(("report.json", "per_class.csv", "confusion.csv", "confusion.png", PAGE))
PAIRS, PAIRS_SHOWN, OF_A_PAIR = 50, 12, 3
"""Confused pairs in report.json, on the page, and pictures of each there."""
MISTAKES = 24
"""Most confident mistakes, in report.json and on the page."""
TABLE_UP_TO = 20
"""Classes up to which the page has the confusion matrix as a table of numbers."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was evaluated, on which images and how."""

    name: str
    """What the page is called."""
    path: Path
    """Of the weight file."""
    record: Record
    """Of the model; its classes are those of the logits."""
    source: Source
    """Its labels are the model's."""
    preprocess: Preprocess
    settings: Mapping[str, Any]
    device: torch.device
    engine: str = "torch"
    """What computed."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What the page of a run shows beside the evaluation of its best weights."""

    rows: Sequence[Mapping[str, Any]]
    best: Mapping[str, Any]
    charts: Sequence[Chart]
    samples: Sequence[tuple[str, str]]
    """Picture and class of training images as the model saw them."""
    config: str
    seconds: float


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


def report_files(
    subject: Subject,
    answers: Gathered,
    accuracy: Accuracy,
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
        "report.json": (json.dumps(found.numbers, indent=1) + "\n").encode(),
        "per_class.csv": to_csv(["class", "n", "accuracy", "precision", "recall", "F1", "AUROC", "AP"], rows),
        "confusion.csv": to_csv(
            ["true / answer", *classes],
            [[name, *row] for name, row in zip(classes, found.confusion.tolist(), strict=True)],
        ),
        "confusion.png": image,
        PAGE: _page(subject, answers, found, image, training),
    }


def _find(subject: Subject, answers: Gathered, accuracy: Accuracy, bad_files: Sequence[tuple[str, str]]) -> _Found:
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


def origin(subject: Subject, images: NDArray[np.int64]) -> dict[str, Any]:
    """Return where the numbers of a report come from.

    Args:
        subject: What was evaluated.
        images: Of each class.
    """
    source, record = subject.source, subject.record
    return {
        "checkpoint": {
            "path": str(subject.path),
            "sha256": hash_file(subject.path),
            "model": record.model,
            "options": dict(record.options),
            "classes_hash": hash_classes(record.classes),
            "written_by": {key: value for key, value in record.provenance.items() if key != "sketch"},
        },
        "data": {
            "description": source.description,
            "notes": list(source.notes),
            "n_images": len(source),
            "n_classes": len(record.classes),
            "smallest_class": min(images[images > 0].tolist(), default=0),
            "largest_class": int(images.max()),
        },
        "preprocess": subject.preprocess.to_dict(),
        "settings": dict(subject.settings),
        "versions": {**versions(subject.device), "engine": subject.engine},
    }


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


def thumbnail(subject: Subject, index: int) -> str | None:
    """Return an image as the model saw it, read once more; None where that is no longer possible."""
    try:
        return picture(subject.preprocess.view(subject.source.image(index, subject.preprocess.pixels)))
    except (OSError, UnreadableImage):
        return None


def versions(device: torch.device) -> dict[str, str]:
    """Return what the numbers were computed by and on."""
    made_by = {name: value for name, value in provenance().items() if name != "written"}
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {**made_by, "python": platform.python_version(), "numpy": np.__version__, "device": named}


def _percent(interval: tuple[float, float]) -> list[float]:
    return [100 * bound for bound in interval]


def plain(value: Any) -> Any:
    """Return values with null for what is not a number, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    """Return a table as a file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue().encode()
