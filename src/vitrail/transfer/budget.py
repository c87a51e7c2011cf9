"""How many epochs fit into a time: a few updates are measured on this machine first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from vitrail.choices import Precision
from vitrail.config.commands import TrainConfig
from vitrail.display import Display
from vitrail.errors import ConfigError, name_option
from vitrail.training.bench_data import time_loader, time_model
from vitrail.training.run.stop import Stop
from vitrail.training.setup import build_job
from vitrail.transfer.rules import Choice

MEASURED_S = 4.0
"""Seconds for which the loader is timed, and again the model."""
EVALUATION_SHARE = 1 / 3
"""Time of an image in evaluation, as a share of its time in training, which has a backward pass."""
RESERVE = 0.9
"""Share of the budget that is planned; the rest is for the report, saves and what a machine does
beside."""


@dataclass(frozen=True)
class Speed:
    """How fast a training goes on this machine."""

    images_per_s: float
    """Training images per second."""
    epoch_s: float
    """Seconds of an epoch with its evaluation."""


def measure_speed(
    config: TrainConfig, accelerator: Accelerator, precision: Precision, display: Display
) -> Speed:
    """Make a few updates, which change no file, and read some batches of images."""
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
    train_images = job.sampler.steps * config.train.batch_size
    epoch_s = (train_images + EVALUATION_SHARE * len(job.data.val)) / images_per_s
    return Speed(images_per_s, epoch_s)


def fit_epochs(speed: Speed, budget_s: float, probe: Path | None) -> Choice:
    """Return as many epochs as the budget allows.

    Raises:
        ConfigError: Not even one epoch fits; the linear probe, where there is one, is then what the
            time allows.
    """
    epochs = int(RESERVE * budget_s / speed.epoch_s)
    where = f"{speed.images_per_s:,.0f} images/s on this machine"
    if epochs < 1:
        ready = (
            "" if probe is None else f"; what training would begin with is a model already: {probe}"
        )
        needed = f"{speed.epoch_s / 60:.2g}"
        raise ConfigError(
            f"{name_option('budget')} of {budget_s / 60:.2g} minutes is too small for one epoch, "
            f"which takes {needed} minutes at {where}: give more time, a smaller model.image_size, "
            f"or train.epoch_images{ready}"
        )
    return Choice("train.epochs", epochs, f"what {budget_s / 60:.3g} minutes allow at {where}")
