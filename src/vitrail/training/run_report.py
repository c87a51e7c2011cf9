"""The page at the end of a run: its best weights on the validation images, its curves, and what it was shown."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitrail.config.resolve import to_dict, to_yaml
from vitrail.data.sources import Source, label_name
from vitrail.display import headline
from vitrail.distributed.processes import share
from vitrail.distributed.sharding import shard
from vitrail.errors import CheckpointError
from vitrail.evaluation.evaluate import report_folder
from vitrail.evaluation.measure import measure
from vitrail.evaluation.report import NUMBERS, PAGE, Subject, Training
from vitrail.evaluation.task import task_of
from vitrail.images.batch_augment import erase
from vitrail.images.transforms import normalise
from vitrail.pages.render import Chart, line_chart, picture
from vitrail.training.setup import Job
from vitrail.training.state import TrainState
from vitrail.weights.loading import open_model
from vitrail.weights.opened import Opened

SAMPLES = 12


def write_run_report(
    job: Job, state: TrainState, folder: Path, seconds: float, advance: Callable[[], None]
) -> Path | None:
    """Evaluate the best weights of a run once more, and write the report to its folder; return the page.

    Args:
        job: Of the run.
        state: At its end.
        folder: Of the run.
        seconds: That it took.
        advance: Called after each batch, equally often in all processes; what it raises ends the evaluation.

    Returns:
        The page, on the first process.

    Raises:
        CheckpointError: The best weights cannot be read, or the report cannot be written.
    """
    accelerator, settings = job.accelerator, job.config.train
    path = folder / "best.safetensors"
    opened: Opened | CheckpointError | None = None
    if accelerator.is_main_process:
        try:
            opened = open_model(path)
        except CheckpointError as error:
            opened = error
    opened = share(accelerator, opened)
    if isinstance(opened, CheckpointError):  # in all processes alike, so that none waits for another
        raise opened
    assert opened is not None
    model = opened.build(accelerator.device)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if settings.shard:
        shard(model, accelerator.device)
    task = task_of(job.data.val, training_counts=job.training_counts, thresholds=opened.record.thresholds)
    measured = measure(
        model,
        job.val_loader,
        task,
        job.preprocess,
        accelerator,
        precision=job.precision,
        advance=advance,
        keep_answers=True,
    )
    if measured.answers is None:
        return None
    subject = Subject(
        name=folder.name, path=path, record=opened.record, source=job.data.val, preprocess=job.preprocess,
        settings=to_dict(job.config), device=accelerator.device, guard_csv=job.config.output.guard_csv,
    )  # fmt: skip
    training = Training(
        rows=state.rows,
        best=state.best,
        charts=draw_curves(state.rows, state.best),
        samples=training_samples(job, job.data.train),
        config=to_yaml(job.config),
        seconds=seconds,
        updates=job.updates(state),
    )
    files = task.report_files(subject, measured.answers, measured.metrics, measured.bad_files, training)
    report = report_folder(folder / "report")
    with report.staged():
        return report.publish(files)[0] / PAGE


def has_report(folder: Path, updates: int) -> bool:
    """Say whether a run folder holds a report, and not one of the run before it was lengthened to so many updates."""
    try:
        found = json.loads((folder / "report" / NUMBERS).read_text())
        return "training" not in found or found["training"]["updates"] == updates  # without, `evaluate` wrote it
    except (OSError, ValueError, KeyError, TypeError):
        return False


def draw_curves(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> list[Chart]:
    """Draw loss, accuracy or mAP, and learning rate over the epochs, with a dot on the best one."""

    def points(name: str) -> list[tuple[float, float]]:
        return [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]

    name, title = headline(best)
    charts = [
        line_chart("Loss", {"training": points("train_loss"), "validation": points("val_loss")}, best["epoch"]),
        line_chart(
            f"{title}, %", {"training": points(f"train_{name}"), "validation": points(f"val_{name}")}, best["epoch"]
        ),
        line_chart("Learning rate", {"at the end of each epoch": points("lr")}),
    ]
    return [chart for chart in charts if chart is not None]


def training_samples(job: Job, source: Source) -> list[tuple[str, str]]:
    """Return the first images of the first epoch as the model saw them, with their classes, but not mixed."""
    sampler = copy.copy(job.sampler)
    sampler.epoch, sampler.first_step = 0, 0
    batch = job.loader.read(next(iter(sampler))[:SAMPLES])
    augment = job.config.augment
    images = erase(
        normalise(batch.images, job.preprocess.mean, job.preprocess.std), batch.keys, augment.erase_prob,
        mode=augment.erase_mode, count=augment.erase_count,
    )  # fmt: skip
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (job.preprocess.mean, job.preprocess.std))
    most = 255 if job.preprocess.bits == 8 else 65535
    pixels = ((images * std + mean) * most).round().clamp(0, most).to(batch.images.dtype)
    return [
        (picture(image), label_name(label, source.classes, source.label_sets))
        for image, label in zip(pixels, batch.labels.tolist(), strict=True)
    ]
