"""The average of a run's best weights, evaluated like them and kept beside them, never in their place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vitrail.distributed.processes import share
from vitrail.errors import CheckpointError
from vitrail.evaluation.measure import measure
from vitrail.evaluation.task import task_of
from vitrail.training.run.open_run import Run
from vitrail.training.run.report import open_on_first_rank, place_like_training
from vitrail.training.run.state import TrainState
from vitrail.training.setup import Job
from vitrail.weights.checkpoint import read_metrics, save_model

AVERAGE = "average.safetensors"


def average_best(job: Job, state: TrainState, run: Run) -> None:
    """Average the best weights that a finished run keeps, evaluate them and write their file. Collective.

    Where that fails it is warned of, as the run itself is done and saved.
    """
    epochs = [row["epoch"] for row in state.bests]
    if len(epochs) < 2:
        job.display.note(
            "output.average_best: one epoch alone was the best so far, so there is nothing to "
            "average"
        )
        return
    names = ["best.safetensors"]
    for number in range(2, len(epochs) + 1):
        names.append(f"best-{number}.safetensors")
    run.watchdog.move("evaluating the average of the best weights")
    try:
        files = [open_on_first_rank(job, run.folder / name) for name in names]
        averaged = replace(files[0], weights=mean_weights([file.weights for file in files]))
        measured = measure(
            place_like_training(job, averaged),
            job.val_loader,
            task_of(job.data.val, training_counts=job.training_counts),
            job.preprocess,
            job.accelerator,
            precision=job.precision,
            advance=run.watchdog.stir,
        )
        numbers = {f"val_{name}": value for name, value in measured.metrics.numbers().items()}
        row = {"epoch": max(epochs), "epochs": epochs, "updates": job.updates(state), **numbers}
        record = replace(files[0].record, metrics=row, thresholds=measured.metrics.thresholds)
        if job.is_main:
            save_model(run.folder / AVERAGE, averaged.weights, record)
    except CheckpointError as error:
        job.display.warn(
            f"{error}; the run is finished, but the average of its best weights is left out"
        )
        return
    name = job.monitor if job.monitor in row else "val_loss"
    job.display.note(
        f"{run.folder / AVERAGE}: the average of {len(epochs)} epochs has {name} {row[name]:.4g}, "
        f"best.safetensors {state.best[name]:.4g}"
    )


def lacks_average(job: Job, state: TrainState, folder: Path) -> bool:
    """Say whether a run is to have an average of its best weights that is not there, or is one of others. Collective.

    A run that was killed before it, or was lengthened since, has none of these.
    """
    if not job.config.output.average_best or not state.bests:
        return False
    found = read_metrics(folder / AVERAGE) or {}
    return share(job.accelerator, found.get("epochs") != [row["epoch"] for row in state.bests])


def mean_weights(files: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each weight over several files, summed in float64."""
    first, count = files[0], len(files)
    means = {}
    for name, tensor in first.items():
        total = sum((weights[name].double() for weights in files), torch.zeros(()))
        means[name] = (total / count).to(tensor.dtype)
    return means
