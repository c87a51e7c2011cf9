"""What a whole recipe costs on this machine, from a few updates that are made and timed."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

import torch

from vitrail.config.commands import TrainConfig
from vitrail.config.sections import DataSection
from vitrail.config.training_sections import FreezeSection
from vitrail.data.loader import Batch
from vitrail.display import Display, Quiet
from vitrail.distributed.processes import choose_precision, processes
from vitrail.errors import tell_count
from vitrail.images.preprocess import normalise
from vitrail.reproduction.recipes import TRAIN_IMAGES, VAL_IMAGES, RecipeOfModel
from vitrail.training.bench_data import time_loader, time_model
from vitrail.training.run.stop import Stop
from vitrail.training.setup import Job, build_job
from vitrail.training.shortage import tell_of_slow_precision

DAY_S = 86_400
MOST_AT_ONCE = 1024
"""Images of a measured update at most; digits, whose images stand for others, has not many more."""
EVALUATED_S = 1.0
"""Seconds for which evaluation is timed."""


@dataclass(frozen=True)
class Cost:
    """Time of a whole recipe on this machine."""

    recipe: str
    device: str
    devices: int
    """Devices of this kind here; all cores of a CPU are one."""
    precision: str
    wanted: int
    """Images of an update on one of them, by the recipe."""
    at_once: int
    """Images of the updates that were timed."""
    parts: int
    """Parts that these were cut into, so that their activations fit into the memory."""
    images_per_s: float
    """Training images per second of one device."""
    evaluated_per_s: float
    """Validation images per second of one device."""
    epoch_s: float
    """Seconds of an epoch on one device."""
    run_s: float
    """Seconds of the whole recipe, with its evaluations, on one device."""

    @property
    def here_s(self) -> float:
        """Seconds of the whole recipe on all devices that are here."""
        return self.run_s / self.devices

    @property
    def devices_for_a_day(self) -> int:
        """Devices that would bring the whole recipe to a day."""
        return max(1, math.ceil(self.run_s / DAY_S))


def why_not_measured(config: TrainConfig) -> str:
    """Say why the updates of a recipe cannot be timed without more than the recipe; empty where they can."""
    if config.distill.teacher is not None:
        return f"every update asks the teacher {config.distill.teacher}, whose weights it needs"
    if config.token_labels.folder is not None:
        return "every update reads token labels, which a teacher has to make first"
    return ""


def measure_cost(recipe: RecipeOfModel, seconds: float, display: Display) -> Cost:
    """Make a few updates of a recipe on small images of the right size, and count what all of it takes.

    The images are scikit-learn's digits, enlarged, as many at once as the recipe has, or on a CPU
    as many as the time allows. Reading and varying images is left out: that depends on the disk.

    Args:
        recipe: The recipe, with the settings over it.
        seconds: Time to make updates for.
        display: Where progress is shown.

    Raises:
        ConfigError: Settings that do not go with this machine.
        TrainingError: Memory is too short for a single image.
    """
    train = recipe.config.train
    precision = choose_precision(train.precision, train.device)
    display.begin(f"time a few updates of {recipe.name}", 2)
    with processes(precision, train.device) as accelerator, Stop(None) as stop:
        device = accelerator.device
        tell_of_slow_precision(precision, device, display)
        devices = torch.accelerator.device_count() if device.type != "cpu" else 1
        wanted = max(1, train.batch_size // (devices * train.accumulate))
        torch.manual_seed(train.seed)
        config = on_digits(recipe.config, min(wanted, MOST_AT_ONCE))
        job, model = build_job(config, accelerator, precision, Quiet(), stop)
        batch, _ = time_loader(job, 0.0)
        at_once, images_per_s = time_model(job, model, batch, seconds)
        display.advance()
        parts = job.memory.parts
        evaluated_per_s = time_evaluation(job, model, batch, max(1, at_once // parts))
        display.advance()
    display.end()
    epoch_s = count_images(recipe) / images_per_s
    epochs = train.epochs + recipe.config.schedule.cooldown_epochs
    evaluations = math.ceil(epochs / train.eval_every)
    evaluation_s = VAL_IMAGES[recipe.set_name] / evaluated_per_s
    return Cost(
        recipe=recipe.name,
        device=name_device(device),
        devices=devices,
        precision=precision,
        wanted=wanted,
        at_once=at_once,
        parts=parts,
        images_per_s=images_per_s,
        evaluated_per_s=evaluated_per_s,
        epoch_s=epoch_s,
        run_s=epochs * epoch_s + evaluations * evaluation_s,
    )


def on_digits(config: TrainConfig, batch_size: int) -> TrainConfig:
    """Return settings by which the same updates are made of images that need no file."""
    return replace(
        config,
        data=DataSection(name="digits", workers=0, check=False),
        model=replace(config.model, weights=None),
        augment=replace(config.augment, auto_augment=None, color_jitter=None, repeats=1),
        freeze=FreezeSection(),
        train=replace(
            config.train, batch_size=batch_size, accumulate=1, epoch_images=None, monitor=None
        ),
    )


def count_images(recipe: RecipeOfModel) -> int:
    """Return the images that an epoch of a recipe is made of."""
    return recipe.config.train.epoch_images or TRAIN_IMAGES[recipe.set_name]


def time_evaluation(job: Job, model: torch.nn.Module, batch: Batch, at_once: int) -> float:
    """Return the images per second of a model that evaluates."""
    device, preprocess = job.accelerator.device, job.preprocess
    images = normalise(batch.images[:at_once].to(device), preprocess.mean, preprocess.std)
    model.eval()

    def evaluate() -> float:
        """Evaluate the images once, and return the seconds."""
        begun = time.perf_counter()
        with torch.inference_mode(), job.accelerator.autocast():
            model(images).sum().item()  # waits for the device
        return time.perf_counter() - begun

    evaluate()
    spent, times = 0.0, 0
    while spent < EVALUATED_S:
        spent += evaluate()
        times += 1
    return times * len(images) / spent


def name_device(device: torch.device) -> str:
    """Return what a device is called."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"CPU of {tell_count(torch.get_num_threads(), 'thread')}"
    return device.type


def format_time(seconds: float) -> str:
    """Write a time in minutes, hours, days or years, whichever is short to read."""
    for unit, length in (("years", 365 * DAY_S), ("days", DAY_S), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds / 60:,.1f} minutes"
