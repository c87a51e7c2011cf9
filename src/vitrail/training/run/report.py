"""The HTML report of a finished run: its best weights evaluated, its curves, and samples of its training images."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitrail.config.resolve import to_dict, to_yaml
from vitrail.data.sources import Source, format_label
from vitrail.display import headline_metric
from vitrail.distributed.processes import share
from vitrail.distributed.sharding import shard
from vitrail.errors import CheckpointError, Interrupted, Stopped, VitrailError, command
from vitrail.evaluation.evaluate import report_folder
from vitrail.evaluation.measure import measure
from vitrail.evaluation.report import NUMBERS, PAGE, Subject, Training
from vitrail.evaluation.task import task_of
from vitrail.images.batch_augment import erase
from vitrail.images.preprocess import denormalise, normalise
from vitrail.models.family import VisionModel
from vitrail.pages.charts import Chart, line_chart
from vitrail.pages.render import picture
from vitrail.training.run.features_page import render_features
from vitrail.training.run.open_run import Run
from vitrail.training.run.state import TrainState
from vitrail.training.run.stop import interruptible
from vitrail.training.setup import Job
from vitrail.weights.loading import open_model
from vitrail.weights.opened import Opened

SAMPLES = 12
"""Training images that a report shows."""


def report_on(job: Job, state: TrainState, run: Run) -> Path | None:
    """Write the HTML report of a finished run; on any failure warn and return None, as the run is already saved.

    Raises:
        Interrupted: There was a second Ctrl-C.
    """

    def count_batch() -> None:
        run.watchdog.stir()
        job.display.advance()
        stopping, _ = run.votes.exchange(job.stop.reason is not None, False)
        if stopping:
            raise Stopped(f"stopped by {job.stop.reason or 'another process'}")

    run.watchdog.move("evaluating the best weights")
    job.display.begin("report", len(job.val_loader))
    try:
        with interruptible(run.folder):
            return write_run_report(job, state, run.folder, run.elapsed_s(), count_batch)
    except Interrupted:
        raise
    except (
        Exception
    ) as error:  # whatever it is, memory that is short too, all of the run is done and saved
        reason = error if isinstance(error, VitrailError) else f"{type(error).__name__}: {error}"
        later = command(
            "evaluate", run.folder / "best.safetensors", "--report", run.folder / "report"
        )
        job.display.warn(
            f"{reason}; the run is finished, but its report is left out; to write it: {later}"
        )
        return None
    finally:
        job.display.end()


def write_run_report(
    job: Job, state: TrainState, folder: Path, seconds: float, advance: Callable[[], None]
) -> Path | None:
    """Evaluate the best weights of a run once more, and write the report to its folder.

    Args:
        job: The parts of the run that did not change.
        state: The state at the end of the run.
        folder: Folder of the run.
        seconds: Seconds that the run took.
        advance: Called after each batch, equally often on all ranks; what it raises ends the
            evaluation.

    Returns:
        The page, on the first rank.

    Raises:
        CheckpointError: The best weights cannot be read, or the report cannot be written.
    """
    # Evaluation
    path = folder / "best.safetensors"
    opened = open_on_first_rank(job, path)
    if job.config.data.unlabelled:
        return write_features_report(job, state, folder, seconds, opened)
    task = task_of(
        job.data.val, training_counts=job.training_counts, thresholds=opened.record.thresholds
    )
    measured = measure(
        place_like_training(job, opened),
        job.val_loader,
        task,
        job.preprocess,
        job.accelerator,
        precision=job.precision,
        advance=advance,
        keep_answers=True,
    )
    if measured.answers is None:
        return None

    # Page
    subject = Subject(
        name=folder.name,
        path=path,
        record=opened.record,
        source=job.data.val,
        preprocess=job.preprocess,
        settings=to_dict(job.config),
        device=job.accelerator.device,
        guard_csv=job.config.output.guard_csv,
    )
    training = describe_training(job, state, seconds)
    files = task.report_files(
        subject, measured.answers, measured.metrics, measured.bad_files, training
    )
    report = report_folder(folder / "report")
    with report.staged():
        return report.publish(files)[0] / PAGE


def write_features_report(
    job: Job, state: TrainState, folder: Path, seconds: float, opened: Opened
) -> Path | None:
    """Write the report of a training without labels; return the page, on the first rank."""
    if not job.is_main:
        return None
    path, knn = folder / "best.safetensors", opened.record.provenance.get("knn")
    training = describe_training(job, state, seconds)
    files = render_features(job, path, opened.record, training, knn)
    report = report_folder(folder / "report")
    with report.staged():
        return report.publish(files)[0] / PAGE


def describe_training(job: Job, state: TrainState, seconds: float) -> Training:
    """Return the part of a report on the run itself."""
    return Training(
        rows=state.rows,
        best=state.best,
        charts=draw_curves(state.rows, state.best),
        samples=training_samples(job, job.data.train),
        config=to_yaml(job.config),
        seconds=seconds,
        updates=job.updates(state),
    )


def open_on_first_rank(job: Job, path: Path) -> Opened:
    """Read a weight file on the first rank, for all of them."""
    opened: Opened | CheckpointError | None = None
    if job.is_main:
        try:
            opened = open_model(path)
        except CheckpointError as error:
            opened = error
    opened = share(job.accelerator, opened)
    if isinstance(opened, CheckpointError):  # on all ranks alike, so that none waits for another
        raise opened
    assert opened is not None
    return opened


def place_like_training(job: Job, opened: Opened) -> VisionModel:
    """Return an opened model in the memory layout of training, and sharded like it."""
    model = opened.build(job.accelerator.device)
    if job.config.train.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if job.config.train.shard:
        shard(model, job.accelerator.device)
    return model


def has_report(folder: Path, updates: int) -> bool:
    """Say whether a run folder holds a report, and not one of the run before it was lengthened to so many updates."""
    try:
        report = json.loads((folder / "report" / NUMBERS).read_text())
        # without, `evaluate` wrote it
        return "training" not in report or report["training"]["updates"] == updates
    except (OSError, ValueError, KeyError, TypeError):
        return False


def draw_curves(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any]) -> list[Chart]:
    """Draw loss, accuracy or mAP, and learning rate over the epochs, with a dot on the best one."""

    def points(name: str) -> list[tuple[float, float]]:
        return [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]

    name, title = headline_metric(best)
    losses = {"training": points("train_loss"), "validation": points("val_loss")}
    qualities = {"training": points(f"train_{name}"), "validation": points(f"val_{name}")}
    charts = [
        line_chart("Loss", losses, best["epoch"]),
        line_chart(f"{title}, %", qualities, best["epoch"]),
        line_chart("Learning rate", {"at the end of each epoch": points("lr")}),
    ]
    if any("train_agreement" in row for row in rows):
        agreements = {"training": points("train_agreement"), "validation": points("val_agreement")}
        charts.append(line_chart("Agreement with the teacher, %", agreements, best["epoch"]))
    return [chart for chart in charts if chart is not None]


def training_samples(job: Job, source: Source) -> list[tuple[str, str]]:
    """Return the first images of the first epoch as the model saw them, with their classes, but not mixed."""
    sampler = copy.copy(job.sampler)
    sampler.epoch, sampler.first_step = 0, 0
    batch = job.loader.read(next(iter(sampler))[:SAMPLES])
    augment, preprocess = job.config.augment, job.preprocess
    images = erase(
        normalise(batch.images.cpu(), preprocess.mean, preprocess.std),
        batch.keys,
        augment.erase_prob,
        mode=augment.erase_mode,
        count=augment.erase_count,
    )
    # back to pixels, in which the erased boxes are seen
    pixels = denormalise(images, preprocess)
    samples = []
    for image, label in zip(pixels, batch.labels.tolist(), strict=True):
        name = format_label(label, source.classes, source.label_sets)
        samples.append((picture(image), "" if job.config.data.unlabelled else name))
    return samples
