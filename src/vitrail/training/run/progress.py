"""Progress within an epoch: loss, accuracy and speed, read from the device, for the live line and steps.jsonl."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vitrail.distributed.processes import sum_over_processes
from vitrail.training.run.open_run import Run
from vitrail.training.run.state import TrainState
from vitrail.training.setup import Job


@dataclass(frozen=True)
class Progress:
    """Numbers of all ranks, read from the device: of the epoch so far, and of its latest update."""

    loss: float
    """Loss, summed over the images."""
    correct: float
    """Images whose likeliest class is the one with the largest target."""
    images: float
    """Images that were trained on."""
    skipped: int
    """Updates of the epoch that were skipped."""
    skipped_in_a_row: int
    """Updates that were skipped up to the latest one; 0 if that was made."""
    first_skipped: int
    """The first update that was skipped since the numbers were read before, or -1."""
    grad_norm: float
    """Norm of the latest gradient, before it was clipped."""


class Speedometer:
    """Images per second since the numbers were last read.

    Args:
        step: Updates of the epoch that were made before.
        batch_size: Images of an update.
    """

    def __init__(self, step: int, batch_size: int) -> None:
        self._step, self._batch_size = step, batch_size
        self._read_at = time.perf_counter()

    def read(self, step: int, now: float) -> float:
        """Return the speed up to now, after so many updates of the epoch, and begin to measure anew."""
        speed = (step - self._step) * self._batch_size / (now - self._read_at)
        self._step, self._read_at = step, now
        return speed


def read_progress(job: Job, state: TrainState, norm: Tensor) -> Progress:
    """Sum the numbers of the epoch over all ranks and read them from the device, which is waited for once."""
    totals = sum_over_processes(job.accelerator, state.sums)[0]
    numbers = torch.cat([totals, state.guard.counts, norm.reshape(1).to(totals.dtype)]).tolist()
    loss, correct, images, _, skipped, in_a_row, first, grad_norm = numbers
    return Progress(loss, correct, images, int(skipped), int(in_a_row), int(first), grad_norm)


def show_progress(
    job: Job, state: TrainState, progress: Progress, speed: float, step_s: float
) -> None:
    """Show the numbers of the epoch so far in the live line; `step_s` are the seconds of the latest update."""
    epoch_s = state.seconds.get("train_s", 0.0) + step_s
    job.display.advance(
        0,
        epoch=f"{state.epoch + 1}/{job.total_epochs}",
        loss=f"{progress.loss / max(progress.images, 1):.4f}",
        **job.objective.live_numbers(progress.correct, progress.images),
        speed=f"{speed:,.0f} images/s",
        waiting_for_images=f"{state.seconds['data_s'] / epoch_s:.0%}",
    )


def log_step(job: Job, state: TrainState, run: Run, progress: Progress, speed: float) -> None:
    """Write the row of an update, whose loss is the mean since the row before.

    Args:
        job: The parts of the run that do not change.
        state: The state after the update.
        run: The run, in whose logs the row is written.
        progress: The numbers of the epoch so far.
        speed: Images a second since the row before.
    """
    loss_before, images_before = state.logged
    state.logged = (progress.loss, progress.images)
    if run.files is None:
        return
    loss = None
    if progress.images > images_before:
        loss = (progress.loss - loss_before) / (progress.images - images_before)
    row: dict[str, Any] = {
        "update": job.updates(state),
        "epoch": state.epoch + 1,
        "loss": loss,
        "lr": latest_rate(job, state),
        "grad_norm": progress.grad_norm if math.isfinite(progress.grad_norm) else None,
        "images_per_s": round(speed, 1),
    }
    if state.scaler is not None:
        row["loss_scale"] = state.scaler.get_scale()  # the device was just waited for
    run.files.steps.add(row)
    run.outbox.put("steps.jsonl", run.files.steps.write)


def latest_rate(job: Job, state: TrainState) -> float:
    """Return the learning rate of the latest update."""
    return job.rate(job.updates(state) - 1) / 2**state.rollbacks
