"""The search: trials are taken, trained and noted one by one, until the budget of the study is used."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vitrail.display import Display
from vitrail.errors import ConfigError, Stopped, TrainingError, names_flags
from vitrail.training.run.stop import Stop
from vitrail.tuning.process import Measure, Training
from vitrail.tuning.study import Run, Study, Task
from vitrail.tuning.subject import Subject, place

WAIT_S = 1.0
"""Seconds between two looks for a trial where other processes work on all that there are."""
ALL_FAILED = 3
"""Trials after which a search is given up where every one of them has failed."""


@dataclass(frozen=True)
class Search:
    """What a process needs to work on a study."""

    subject: Subject
    study: Study
    measure: Measure
    total: int | None
    """Number of trials; None is no limit."""
    stop: Stop
    display: Display


def search(job: Search) -> None:
    """Take and train trials until the budget of the study is used, by this process and others.

    Raises:
        Stopped: This process was told to stop; its trial is saved, and gone on with next time.
        TrainingError: All trials so far have failed.
    """
    label, is_waiting = "search", False
    job.display.begin(label, job.total, sum(map(_is_over, job.study.runs())))
    while True:
        stop_if_told(job)
        task, others = job.study.take()
        if task is not None:
            is_waiting = False
            run_trial(job, task)
            give_up_if_all_failed(job.study.runs())
        elif others:
            if not is_waiting:
                is_waiting = True
                job.display.note(f"trials of other processes that are waited for: {others}")
            time.sleep(WAIT_S)
        else:
            break
    job.display.end()


def stop_if_told(job: Search) -> None:
    """Leave the study as it is, where this process was told to stop.

    Raises:
        Stopped: With what to type to go on.
    """
    if job.stop.reason is not None:
        raise Stopped(
            f"stopped by {job.stop.reason}; the study {job.study.folder} is saved, and the same "
            f"{'command' if names_flags() else 'call'} goes on with it"
        )


def watch(job: Search, training: Training) -> None:
    """Follow a training to its end.

    Raises:
        Stopped: This process was told to stop; the training is saved.
    """
    for _ in training.rows():
        if job.stop.reason is not None:
            training.stop()
            stop_if_told(job)


def run_trial(job: Search, task: Task) -> None:
    """Train a trial, tell the study its numbers, and note how it ended.

    Raises:
        Stopped: This process was told to stop; the trial is saved.
    """
    folder = job.study.trials / task.name
    try:
        config = place(job.subject.configure(task.values), folder, job.measure.metric)
    except ConfigError as error:
        job.study.fail(task, str(error), 0.0)
        job.display.warn(f"trial {task.name} failed: {error}")
        job.display.advance()
        return
    training = Training(config, folder, _header(job, task))
    ending = _follow(job, task, training)
    if ending == "interrupted":
        job.study.interrupt(task, training.seconds)
        return
    value = job.measure.best(job.measure.read(folder))
    if ending is not None:
        job.study.end_early(task, ending, training.seconds)
        job.display.note(_tell(task, folder, job.measure, ending))
        job.display.advance(ending != "paused")
    elif training.is_finished and value is not None:
        job.study.complete(task, value, training.seconds)
        job.display.note(_tell(task, folder, job.measure, "complete"))
        job.display.advance()
    else:
        reason = training.failure() or "stopped from outside; it is saved"
        if training.is_finished:
            reason = f"no epoch has a {job.measure.metric} that is a number"
        job.study.fail(task, reason, training.seconds)
        job.display.warn(f"trial {task.name} failed: {reason}")
        job.display.advance()


def _follow(
    job: Search, task: Task, training: Training
) -> Literal["pruned", "paused", "out of time", "interrupted"] | None:
    """Follow a trial until it ends, or is to end early; return why it was ended, None where it ended by itself."""
    for row in training.rows():
        ending = None
        if row and (value := job.measure.value(row)) is not None:
            epoch = int(row["epoch"])
            is_worse = job.study.report(task, epoch, value)
            job.display.advance(0, trial=task.name, epoch=str(epoch), latest=f"{value:.4g}")
            if task.target is not None and epoch >= task.target:
                ending = "paused"
            elif is_worse:
                ending = "pruned"
        if job.stop.reason is not None:
            ending = "interrupted"
        elif task.seconds is not None and training.seconds > task.seconds:
            ending = "out of time"
        if ending is not None:
            training.stop()
            # it may have come to its end before it heard of that, or have failed
            if training.failure() or (training.is_finished and ending != "paused"):
                return None
            return ending
    return None


def _header(job: Search, task: Task) -> str:
    """Return what stands above the settings of a trial."""
    if task.is_default:
        return f"Trial {task.name}: the recipe {job.subject.opened.name} as it is."
    tried = ", ".join(f"{key}={value}" for key, value in task.values.items())
    return f"Trial {task.name} of the recipe {job.subject.opened.name}: {tried}"


def _tell(task: Task, folder: Path, measure: Measure, ending: str) -> str:
    """Say in one line what came of a trial."""
    values = measure.read(folder)
    best = measure.best(values, task.target if ending == "paused" else None)
    number = "-" if best is None else f"{best:.4g}"
    tried = "the recipe as it is"
    if not task.is_default:
        tried = ", ".join(f"{key}={_short(value)}" for key, value in task.values.items())
    how = "" if ending == "complete" else f", {ending} after epoch {max(values, default=0)}"
    return f"trial {task.name}: {measure.metric} {number}{how}: {tried}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _is_over(run: Run) -> bool:
    """Say whether nothing more is to come of a trial, as far as that is known."""
    return run.state not in ("running", "paused", "interrupted")


def give_up_if_all_failed(runs: list[Run]) -> None:
    """End a search in which nothing works.

    Raises:
        TrainingError: With the reason of the latest failure.
    """
    tried = [run for run in runs if run.state not in ("running", "interrupted", "lost")]
    if len(tried) >= ALL_FAILED and all(run.state == "failed" for run in tried):
        raise TrainingError(
            f"all {len(tried)} trials have failed; the latest, {tried[-1].name}: {tried[-1].reason}"
        )
