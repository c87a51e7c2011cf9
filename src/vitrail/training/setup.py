"""What a run works with, from the first update to the last: images, loaders, model and schedule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from timm.utils.model_ema import ModelEmaV3

from vitrail.classes.matching import order_in_doubt
from vitrail.classes.names import tell_look_alikes
from vitrail.config.commands import TrainConfig
from vitrail.data.audit.findings import alarms, refuse_unreadable, validated_with
from vitrail.data.audit.scan import check_images
from vitrail.data.folders import CHANGED
from vitrail.data.loader import ImageLoader, build_eval_loader, build_train_loader
from vitrail.data.manifest import Manifest
from vitrail.data.opening import Data, open_data
from vitrail.data.overlap import sketch
from vitrail.data.roster import Roster
from vitrail.data.sampling import BatchSampler, class_shares
from vitrail.data.sources import Source, fingerprint, images_of_classes
from vitrail.data.tables.hub import pin_revision
from vitrail.data.tables.rows import groups_of
from vitrail.devices import Precision
from vitrail.display import Display
from vitrail.distributed.processes import share
from vitrail.distributed.sharding import shard
from vitrail.errors import ConfigError, command
from vitrail.evaluation.single_label_metrics import SHOTS, shot_groups
from vitrail.images.transforms import Preprocess, TrainView, fit_statistics, normalised_by
from vitrail.models.family import VisionModel
from vitrail.models.registry import canonical_name, create_model, find_variant
from vitrail.training.class_balance import build_balance, check_counts
from vitrail.training.losses import Objective, OneClass, SeveralClasses, check_objective, default_monitor
from vitrail.training.nonfinite import Guard
from vitrail.training.optim import build_optimizer
from vitrail.training.schedule import learning_rate
from vitrail.training.state import SUMS, TrainState
from vitrail.training.stop import Stop
from vitrail.weights.checkpoint import Record
from vitrail.weights.config_fields import RATES
from vitrail.weights.loading import open_model
from vitrail.weights.opened import Opened, show_account
from vitrail.weights.request import make_request

EVAL_BATCH = 128  # the same for any number of processes, unless a process trains on fewer images at once


@dataclass(frozen=True, kw_only=True)
class Job:
    """What stays the same from the first update to the last."""

    config: TrainConfig
    accelerator: Accelerator
    precision: Precision
    display: Display
    stop: Stop
    data: Data
    model_name: str
    preprocess: Preprocess
    sampler: BatchSampler
    loader: ImageLoader
    val_loader: ImageLoader
    known_by: dict[str, Any]
    """What the training and the validation images are known again by."""
    roster: Roster | None
    """The validation images one by one, in the process that saves them."""
    training_counts: NDArray[np.int64]
    """Training images of each class."""
    objective: Objective
    rate: Callable[[int], float]
    """Learning rate of an update, before any rollback."""

    @property
    def origin(self) -> dict[str, Any]:
        """What the weights were made from, for their record."""
        known = {} if self.data.manifest is None else {"manifest": self.data.manifest.hash}
        if changed := [note for note in self.data.notes if note.startswith(CHANGED)]:
            known["pixels"] = "; ".join(changed)
        return {**known, **self.known_by, "training_counts": self.training_counts.tolist()}

    @property
    def several(self) -> bool:
        """Whether an image may have several classes."""
        return self.data.train.label_sets is not None

    @property
    def monitor(self) -> str:
        """Which number makes an evaluated epoch the best."""
        return self.config.train.monitor or default_monitor(self.several)

    @property
    def total_epochs(self) -> int:
        """Epochs of the schedule and its cooldown."""
        return self.config.train.epochs + self.config.schedule.cooldown_epochs

    def updates(self, state: TrainState) -> int:
        """Return how many updates were made."""
        return state.epoch * self.sampler.steps + state.step


def build_job(
    config: TrainConfig,
    accelerator: Accelerator,
    precision: Precision,
    display: Display,
    stop: Stop,
    is_new: bool = True,
) -> tuple[Job, VisionModel]:
    """Find the images, and build the model and the loaders for them; a new run begins with the weights it names."""
    settings, rank, world = config.train, accelerator.process_index, accelerator.num_processes
    pinned_data = share(accelerator, pin_revision(config.data) if accelerator.is_main_process else None)
    config = replace(config, data=pinned_data)

    def look(manifest: Manifest, place: Path) -> Manifest:
        check_objective(config, manifest.label_sets is not None)  # before what takes long
        return check_images(manifest, place, display)

    with accelerator.local_main_process_first():  # which downloads for all
        data = open_data(config.data, look if config.data.check else None)
    several = data.train.label_sets is not None
    check_objective(config, several)
    for note in data.notes:
        display.note(note)
    if told := tell_look_alikes(data.classes):
        display.warn(told)
    if data.manifest is not None and config.data.check:
        tell_alarms(data.manifest, config, display)
    counts = images_of_classes(data.train)
    check_counts(config.balance, counts, data.classes)
    check_monitor(settings.monitor or default_monitor(several), counts, images_of_classes(data.val))
    model_name = canonical_name(config.model.name)
    if is_new and config.model.weights is not None:
        opened = open_initial_weights(config, model_name, data.classes, display)
        config = adopt(config, opened.record, display)
        model = opened.build(accelerator.device)
    else:
        model = build_model(config, model_name, len(data.classes)).to(accelerator.device)
    preprocess = build_preprocess(config, model_name, model)
    tell_statistics(config, preprocess, display)
    sampler = BatchSampler(
        len(data.train), settings.batch_size, seed=settings.seed, rank=rank, world=world,
        accumulate=settings.accumulate, repeats=config.augment.repeats, epoch_samples=settings.epoch_images,
        labels=data.train.labels,
        shares=None if config.balance.sampler == "natural" else class_shares(counts, config.balance.sampler),
        groups=groups_of(data.train), window=config.data.shuffle_buffer,
    )  # fmt: skip
    pinned = accelerator.device.type == "cuda"
    loader = build_train_loader(
        data.train, build_view(config, preprocess), preprocess.pixels, sampler,
        seed=settings.seed, workers=config.data.workers, bad_files=config.data.bad_files, pin_memory=pinned,
    )  # fmt: skip
    at_once = settings.batch_size // (world * settings.accumulate)
    val_loader = build_eval_loader(
        data.val, preprocess, batch_size=min(EVAL_BATCH, at_once), rank=rank, world=world, workers=config.data.workers,
        bad_files=config.data.bad_files, pin_memory=pinned,
    )  # fmt: skip
    job = Job(
        config=config, accelerator=accelerator, precision=precision, display=display, stop=stop, data=data,
        model_name=model_name, preprocess=preprocess, sampler=sampler, loader=loader, val_loader=val_loader,
        known_by=known_by(data, accelerator.is_main_process), training_counts=counts,
        roster=data.roster() if accelerator.is_main_process else None,
        objective=build_objective(config, data.train, counts, accelerator.device),
        rate=build_schedule(config, sampler.steps),
    )  # fmt: skip
    return job, model


def known_by(data: Data, is_main_process: bool) -> dict[str, Any]:
    """Return what an evaluation knows the images by, as sets and, in the process that writes it, each by itself."""
    known = {"images": {"train": fingerprint(data.train), "val": fingerprint(data.val)}}
    if not is_main_process or groups_of(data.train) is not None:  # of which each image would take much to read
        return known
    return {**known, "sketch": sketch(data.train)}


def tell_statistics(config: TrainConfig, preprocess: Preprocess, display: Display) -> None:
    """Say what images are normalised by, where it is neither published nor given."""
    if preprocess.pixels.is_picture or None not in (config.preprocess.mean, config.preprocess.std):
        return
    pixels = [f"data.channels={preprocess.channels}", f"data.bits={preprocess.bits}"]
    says = f"{' '.join(pixels)}: {normalised_by(preprocess.mean, preprocess.std)}; preprocess.mean and .std change that"
    if config.data.name is None and config.data.root is not None:
        says += f", and this measures them: {command('check-data', f'data.root={config.data.root}', *pixels)}"
    display.note(says)


def tell_alarms(manifest: Manifest, config: TrainConfig, display: Display) -> None:
    """Say what makes the numbers of a training wrong, and stop where that was asked for.

    Raises:
        DataError: An image cannot be read, and data.bad_files is "error".
    """
    if config.data.bad_files == "error":
        refuse_unreadable(manifest)
    found = alarms(manifest, validated_with(manifest, config.data.fold), config.data.bad_files == "quarantine")
    for problem in found:
        display.warn(f"{problem.what}; {problem.advice}")
    if found:
        data = f"data.list={config.data.list}" if config.data.list else f"data.root={manifest.root}"
        display.note(f"to see them: {command('check-data', data)}")


def build_objective(
    config: TrainConfig, source: Source, counts: NDArray[np.int64], device: torch.device
) -> OneClass | SeveralClasses:
    """Return what the settings ask for and the labels allow, for so many images of each class."""
    if source.label_sets is not None:
        return SeveralClasses(source.label_sets, config.multi_label)
    return OneClass(build_balance(config.balance, counts, device), config.augment.label_smoothing)


def check_monitor(monitor: str, training_counts: NDArray[np.int64], val_counts: NDArray[np.int64]) -> None:
    """Refuse to choose the best epoch by classes that these images do not have.

    Raises:
        ConfigError: With the number to choose instead.
    """
    for name, chosen in shot_groups(training_counts).items():
        if monitor == f"val_{name}_top1" and not val_counts[chosen].any():
            raise ConfigError(
                f"train.monitor {monitor}: no class with validation images has {SHOTS[name]} training images; they "
                f"have {training_counts.min():,} to {training_counts.max():,}; set train.monitor=val_balanced_accuracy"
            )


def build_state(job: Job, model: VisionModel) -> TrainState:
    """Return the state before the first update."""
    settings, optim, decay = job.config.train, job.config.optim, job.config.ema.decay
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.set_grad_checkpointing(settings.grad_checkpointing)
    updates = job.total_epochs * job.sampler.steps
    if decay and (share_left := decay**updates) > 0.01:
        job.display.warn(
            f"ema.decay {decay} is slow for {updates:,} updates: {share_left:.0%} of the weights that are evaluated "
            "and saved will be the initial ones; lower it, or set ema.decay=null"
        )
    ema = ModelEmaV3(model, decay=decay) if decay else None
    if settings.shard:
        if job.accelerator.num_processes == 1:
            raise ConfigError("train.shard needs several processes; start them with torchrun")
        if job.precision == "float16":
            raise ConfigError("train.shard goes with train.precision=float32 or bfloat16, not float16")
        for module in (model, *([ema.module] if ema else [])):
            shard(module, job.accelerator.device)
    optimizer = build_optimizer(
        model, name=optim.name, lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps,
        momentum=optim.momentum, nesterov=optim.nesterov, layer_decay=optim.layer_decay, decay_on=optim.decay_on,
        backbone_scale=optim.backbone_scale, shard=settings.shard,
    )  # fmt: skip
    device = job.accelerator.device
    return TrainState(
        model=model,
        optimizer=optimizer,
        ema=ema,
        scaler=None,
        sums=torch.zeros(SUMS, dtype=sum_dtype(device), device=device),
        guard=Guard(device),
    )


def build_model(config: TrainConfig, name: str, num_classes: int) -> VisionModel:
    """Build the model that the settings describe, for so many classes."""
    return create_model(name, **_options(config, num_classes))


def _options(config: TrainConfig, num_classes: int) -> dict[str, Any]:
    """Return the fields of the model's configuration that the settings give."""
    size = {} if config.model.image_size is None else {"image_size": config.model.image_size}
    rates = {"drop_path_rate": config.model.drop_path_rate, "drop_rate": config.model.drop_rate}
    given = {"num_classes": num_classes} | rates | size
    if twice := sorted(given.keys() & config.model.options.keys()):
        raise ConfigError(
            f"model.options.{twice[0]}: is not an option; num_classes follows the data, the others are model.{twice[0]}"
        )
    if "in_channels" in config.model.options:
        raise ConfigError("model.options.in_channels: is not an option; it follows data.channels, so set that")
    return {**given, "in_channels": config.data.channels, **config.model.options}


def open_initial_weights(config: TrainConfig, name: str, classes: Sequence[str], display: Display) -> Opened:
    """Read the weights that a run begins with, for its classes and image size."""
    assert config.model.weights is not None
    options, by_order = _options(config, len(classes)), config.data.match_classes == "by-order"
    asked = make_request(config.weights, model=name, options=options, classes=classes, by_order=by_order)
    opened = open_model(config.model.weights, asked)
    show_account(opened, display)
    if opened.order_is_assumed and (doubt := order_in_doubt(classes, config.data.class_order)):
        display.warn(f"{opened.account.path}: {doubt}")
    dialect = opened.account.numerics
    asked = [(key, value, dialect.get(key, value)) for key, value in config.model.options.items()]
    asked += [
        (f"preprocess.{key}", value, getattr(opened.record.preprocess, key))
        for key, value in vars(config.preprocess).items()
        if value is not None
    ]
    asked.append(("data.bits", config.data.bits, opened.record.preprocess.bits))
    for key, value, expected in asked:
        if value != expected:
            display.warn(f"{opened.account.path}: expects {key}={expected}; the settings say {value}, which is taken")
    return opened


def adopt(config: TrainConfig, record: Record, display: Display) -> TrainConfig:
    """Put into the settings what a weight file decides and they leave open: numerics, image size, preprocessing."""
    card = find_variant(record.model)[1]
    published = vars(card.config)
    decided = {
        key: value
        for key, value in record.options.items()
        if value != published[key] and key not in ("num_classes", "image_size", "in_channels", *RATES)
    }
    size = config.model.image_size
    if size is None and record.options["image_size"] != card.config.image_size:
        size = record.options["image_size"]
    usual = published_preprocess(record.model, record.preprocess.size, record.preprocess.channels)
    read = {
        key: getattr(record.preprocess, key)
        for key, value in vars(config.preprocess).items()
        if value is None and getattr(record.preprocess, key) != getattr(usual, key)
    }
    open_here = {key: value for key, value in decided.items() if key not in config.model.options}
    taken = [f"model.options.{key}={value}" for key, value in open_here.items()]
    taken += [f"preprocess.{key}={value}" for key, value in read.items()]
    if taken:
        display.note(f"{config.model.weights}: decides {', '.join(taken)}")
    return replace(
        config,
        model=replace(config.model, image_size=size, options={**decided, **config.model.options}),
        preprocess=replace(config.preprocess, **read),
    )


def build_preprocess(config: TrainConfig, name: str, model: VisionModel) -> Preprocess:
    """Return how images are brought to the model: as it was published, unless the settings say otherwise."""
    published = published_preprocess(name, model.config.size, config.data.channels)
    given = {key: value for key, value in vars(config.preprocess).items() if value is not None}
    return replace(published, bits=config.data.bits, **given)


def published_preprocess(name: str, size: tuple[int, int], channels: int) -> Preprocess:
    """Return how images are brought to a model that was published with RGB, for so many channels."""
    card = find_variant(name)[1]
    mean, std = fit_statistics(channels, card.mean, card.std)
    return Preprocess(
        size=size, crop=card.crop, interpolation=card.interpolation, mean=mean, std=std, channels=channels
    )


def build_view(config: TrainConfig, preprocess: Preprocess) -> TrainView:
    """Return how a training image is cropped, mirrored and varied."""
    augment = config.augment
    return TrainView(
        size=preprocess.size,
        scale=augment.scale,
        ratio=augment.ratio,
        interpolation=augment.interpolation,
        hflip=augment.hflip,
        auto_augment=augment.auto_augment,
        color_jitter=augment.color_jitter,
        mean=preprocess.mean,
    )


def build_schedule(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the update's number, with `steps` updates an epoch."""
    every = steps if config.schedule.step == "epoch" else 1
    optim, schedule = config.optim, config.schedule
    peak = optim.lr if optim.lr_base_batch is None else optim.lr * config.train.batch_size / optim.lr_base_batch
    rate = partial(
        learning_rate,
        name=schedule.name,
        peak=peak,
        warmup_start=schedule.warmup_lr,
        floor=schedule.min_lr,
        warmup_updates=schedule.warmup_epochs * steps,
        total_updates=config.train.epochs * steps,
        decay_updates=schedule.decay_epochs * steps,
        decay_rate=schedule.decay_rate,
        warmup_prefix=schedule.warmup_prefix,
        cosine_updates=None if schedule.cosine_epochs is None else schedule.cosine_epochs * steps,
        clip=schedule.clip_to_min_lr,
    )
    return lambda update: rate(update - update % every)


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or what there is on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64
