"""The end of a training without labels: k-NN accuracy of its best weights, beside that before it and the teacher's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vitrail.training.run.open_run import Run
from vitrail.training.run.report import open_on_first_rank, place_like_training
from vitrail.training.run.state import TrainState
from vitrail.training.setup import Job
from vitrail.weights.checkpoint import save_model

KNN = "knn"
"""Entry of a weight file's provenance."""


def measure_after(job: Job, state: TrainState, run: Run) -> dict[str, Any]:
    """Measure the best weights of a run, unless their file says so already; return the numbers of their row.

    They are written into the provenance of the file and into metrics.jsonl. Collective.

    Raises:
        CheckpointError: The file of the best weights cannot be read or written.
    """
    if job.neighbours is None or not state.best:
        return {}
    path = run.folder / "best.safetensors"
    opened = open_on_first_rank(job, path)
    known = opened.record.provenance.get(KNN)
    if known is None:
        run.watchdog.move("measuring k-NN of the best weights")
        model = place_like_training(job, opened)
        after = job.neighbours.measure(model, job.preprocess, job.accelerator, run.watchdog.stir)
        first = state.rows[0]
        known = {
            "images": job.neighbours.where,
            "metric": after.metric,
            "before": first.get(f"knn_{after.metric}"),
            "after": after.value,
            "teacher": first.get(f"teacher_knn_{after.metric}"),
            "n": after.images,
            "how": after.how,
        }
        if job.is_main:
            provenance = {**opened.record.provenance, KNN: known}
            save_model(path, opened.weights, replace(opened.record, provenance=provenance))
    numbers = {f"knn_{known['metric']}": known["after"]}
    if run.files is not None:
        run.files.log.amend(state.best["epoch"], numbers)
        run.outbox.put("metrics.jsonl", run.files.log.write)
    return numbers
