"""The report of a training without labels: its losses, and how well its features tell labelled images apart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitrail.evaluation.report import NUMBERS, PAGE, Training, plain, to_json
from vitrail.pages.render import pictured, render
from vitrail.training.setup import Job
from vitrail.weights.checkpoint import Record, hash_file


def render_features(
    job: Job, path: Path, record: Record, training: Training, knn: Mapping[str, Any] | None
) -> dict[str, bytes]:
    """Return the files of the report by name.

    Args:
        job: The parts of the run that do not change.
        path: The file of the best weights.
        record: Its description.
        training: The course of the run.
        knn: k-NN accuracies, where there are labelled images.
    """
    taught = record.provenance["teacher"]
    numbers = {
        "checkpoint": {"path": str(path), "sha256": hash_file(path), "model": record.model},
        "data": {"description": job.data.train.description, "n_images": len(job.data.train)},
        "teacher": taught,
        "loss": record.metrics["val_loss"],
        "n": len(job.data.val),
        "knn": None if knn is None else dict(knn),
    }
    page = render(
        "features.html",
        name=path.parent.name,
        numbers=numbers,
        training=training,
        size=job.preprocess.size,
        pictured=pictured(job.preprocess.pixels),
    )
    return {NUMBERS: to_json(plain(numbers), training), PAGE: page}
