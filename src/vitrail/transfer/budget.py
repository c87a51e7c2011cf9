"""How many epochs fit into a time: a few updates are measured on this machine first."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vitrail.choices import Precision
from vitrail.config.commands import TrainConfig
from vitrail.display import Display
from vitrail.errors import name_option
from vitrail.training.bench_data import time_loader, time_model
from vitrail.training.run.stop import Stop
from vitrail.training.setup import build_job
from vitrail.transfer.names import KeepProbe
from vitrail.transfer.rules import Choice, space_evaluations

MEASURED_S = 4.0
"""Seconds for which the loader is timed, and again the model."""
EVALUATION_SHARE = 1 / 3
"""Time of an image in evaluation, as a share of its time in training, which has a backward pass."""
MOST_TIMES = 5
"""Times the usual epochs that a budget is used for at most; longer trainings were not measured."""
RESERVE = 0.9
"""Share of the budget that is planned; the rest is for the report, saves and what a machine does
beside."""


@dataclass(frozen=True)
class Speed:
    """How fast a training goes on this machine."""

    images_per_s: float
    """Training images per second."""
    train_s: float
    """Seconds of an epoch, without evaluations."""
    evaluation_s: float
    """Seconds of an evaluation."""
    eval_every: int | None
    """Epochs from one evaluation to the next, where that is given."""

    def run_s(self, epochs: int) -> float:
        """Return the seconds of a run of so many epochs, with the evaluations that it has."""
        every = self.eval_every or space_evaluations(epochs)
        return epochs * self.train_s + math.ceil(epochs / every) * self.evaluation_s


def measure_speed(
    config: TrainConfig,
    given: Mapping[str, Any],
    accelerator: Accelerator,
    precision: Precision,
    display: Display,
) -> Speed:
    """Make a few updates, which change no file, and read some batches of images.

    Args:
        config: What is to be trained.
        given: Settings that the user gave, by their dotted keys.
        accelerator: Where it is trained.
        precision: Precision of the updates.
        display: Where progress is shown.
    """
    with Stop(None) as stop:
        display.begin("measure the speed of training", 2)
        job, model = build_job(config, accelerator, precision, display, stop)
        batch, loader = time_loader(job, MEASURED_S)
        display.advance()
        _, updates = time_model(job, model, batch, MEASURED_S)
        display.end()
    images_per_s = min(loader, updates)
    if config.data.workers == 0:  # images are read between updates
        images_per_s = 1 / (1 / loader + 1 / updates)
    return Speed(
        images_per_s=images_per_s,
        train_s=job.sampler.steps * config.train.batch_size / images_per_s,
        evaluation_s=EVALUATION_SHARE * len(job.data.val) / images_per_s,
        eval_every=given.get("train.eval_every"),
    )


def fit_epochs(speed: Speed, budget_s: float, usual: int, probe: Path | None) -> Choice:
    """Return as many epochs as the budget allows, and at most `MOST_TIMES` as many as are usual.

    Raises:
        KeepProbe: Not even one epoch fits; the linear probe, where there is one, is then what the
            time allows.
    """
    planned_s = RESERVE * budget_s
    most = MOST_TIMES * usual
    epochs = bisect_right(range(1, most + 1), planned_s, key=speed.run_s)
    where = f"{speed.images_per_s:,.0f} images/s on this machine"
    if epochs < 1:
        ready = (
            "" if probe is None else f"; what training would begin with is a model already: {probe}"
        )
        raise KeepProbe(
            f"{name_option('budget')} of {format_time(budget_s)} is too small for one epoch, which "
            f"takes {format_time(speed.run_s(1))} at {where}: give more time, a smaller "
            f"model.image_size, or train.epoch_images{ready}"
        )
    reason = f"what {format_time(budget_s)} allow at {where}"
    if epochs == most:
        reason = f"{MOST_TIMES} times the usual {usual:,}; {format_time(budget_s)} would allow more"
    return Choice("train.epochs", epochs, reason)


def format_time(seconds: float) -> str:
    """Write a time in seconds or minutes, whichever is short to read."""
    if seconds < 100:
        return f"{seconds:.2g} seconds"
    return f"{seconds / 60:,.1f} minutes"
