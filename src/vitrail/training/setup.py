"""Set up a run from its settings: images, loaders, model, optimizer, loss and learning rate."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from timm.utils.model_ema import ModelEmaV3

from vitrail.choices import Precision
from vitrail.classes.names import tell_look_alikes
from vitrail.config.commands import TrainConfig
from vitrail.data.audit.findings import find_alarms, mark_held_out, refuse_unreadable
from vitrail.data.audit.scan import check_images
from vitrail.data.folders import CHANGED
from vitrail.data.loader import ImageLoader, build_eval_loader, build_train_loader
from vitrail.data.manifest import Manifest
from vitrail.data.opening import Data, open_data
from vitrail.data.overlap import make_sketch
from vitrail.data.roster import Roster
from vitrail.data.sampling import (
    BatchSampler,
    ClassDraw,
    EpochOrder,
    Shuffle,
    WindowShuffle,
    compute_class_shares,
)
from vitrail.data.sources import Source, count_by_class, fingerprint
from vitrail.data.tables.hub import pin_revision
from vitrail.data.tables.rows import find_storage_groups
from vitrail.display import Display
from vitrail.distillation.projection import add_projection
from vitrail.distillation.token_head import add_token_head
from vitrail.distributed.processes import share
from vitrail.distributed.sharding import shard
from vitrail.errors import ConfigError, command, write_option
from vitrail.evaluation.single_label_metrics import SHOTS, shot_groups
from vitrail.images.device_augment import build_augment
from vitrail.images.preprocess import Preprocess
from vitrail.images.train_view import TrainView
from vitrail.kernels.pictures import prepare_pictures
from vitrail.kernels.prepare import prepare_kernels
from vitrail.models.family import VisionModel
from vitrail.models.registry import canonical_name, kernels_of
from vitrail.training.class_balance import check_counts
from vitrail.training.distilling import build_distillation, origin_of_teacher
from vitrail.training.given_loss import GivenLoss, check_loss
from vitrail.training.imitation import NoLabels
from vitrail.training.initial_model import (
    adopt_recorded_settings,
    build_model,
    build_preprocess,
    open_initial_weights,
    tell_statistics,
)
from vitrail.training.losses import check_loss_settings, choose_loss
from vitrail.training.neighbours import Neighbours, open_neighbours
from vitrail.training.optim.freezing import Freeze
from vitrail.training.optim.lora import add_adapters
from vitrail.training.optim.nonfinite import Guard
from vitrail.training.optim.optimizers import build_optimizer
from vitrail.training.optim.schedule import learning_rate
from vitrail.training.run.state import TrainState, new_sums
from vitrail.training.run.stop import Stop
from vitrail.training.step import StepContext
from vitrail.training.token_labeling import build_token_labels, origin_of_labels
from vitrail.weights.published.resolve import ORIGIN, find_origin

SLOW_AVERAGE = 0.01
"""Share of the initial weights in their average at the end of a run from which on the decay is slow
for the run."""
EVAL_BATCH = 128
"""Images of a validation batch, the same for any number of ranks, unless a rank trains on fewer at
once."""


@dataclass(frozen=True, kw_only=True)
class Job(StepContext):
    """The parts of a run that do not change from the first update to the last."""

    precision: Precision
    display: Display
    stop: Stop
    data: Data
    model_name: str
    sampler: BatchSampler
    loader: ImageLoader
    val_loader: ImageLoader
    fingerprints: dict[str, Any]
    """Fingerprints of the training and the validation images, and a sketch of the former, stored as
    provenance."""
    roster: Roster | None
    """The validation images one by one, on the rank that saves them."""
    training_counts: NDArray[np.int64]
    """Training images of each class."""
    rate: Callable[[int], float]
    """Learning rate of an update, before any rollback."""
    neighbours: Neighbours | None = None
    """Labelled images that the features of a training without labels are measured on."""

    @property
    def origin(self) -> dict[str, Any]:
        """Provenance of the weights, for their record: fingerprints of the images, and their number by class."""
        origin: dict[str, Any] = {}
        if self.data.manifest is not None:
            origin["manifest"] = self.data.manifest.hash
        if changed := [note for note in self.data.notes if note.startswith(CHANGED)]:
            origin["pixels"] = "; ".join(changed)
        weights = self.config.model.weights
        if weights is not None and (published := find_origin(weights, self.model_name)):
            origin[ORIGIN] = published
        origin |= origin_of_teacher(self.distillation) | origin_of_labels(self.token_labels)
        if not self.config.data.unlabelled:
            origin["training_counts"] = self.training_counts.tolist()
        return {**origin, **self.fingerprints}

    @property
    def monitor(self) -> str:
        """Which number makes an evaluated epoch the best."""
        return self.config.train.monitor or self.objective.default_monitor

    @property
    def total_epochs(self) -> int:
        """Epochs of the schedule and its cooldown."""
        return self.config.train.epochs + self.config.schedule.cooldown_epochs

    @property
    def total_updates(self) -> int:
        """Updates of the whole run."""
        return self.total_epochs * self.sampler.steps

    @property
    def is_main(self) -> bool:
        """Whether this is the first rank, which alone writes files."""
        return self.accelerator.is_main_process

    def updates(self, state: TrainState) -> int:
        """Return how many updates were made."""
        return state.epoch * self.sampler.steps + state.step

    def average_decay(self, update: int) -> float:
        """Return the share of the average of the weights that is kept at update number `update`, counted from 0."""
        ema = self.config.ema
        assert ema.decay is not None
        follows = is_slow(ema.decay, self.total_updates) if ema.warmup is None else ema.warmup
        return min(ema.decay, (1 + update) / (10 + update)) if follows else ema.decay

    def is_finished(self, state: TrainState) -> bool:
        """Say whether all epochs are done, or as many without a better one as the settings allow."""
        if state.epoch >= self.total_epochs:
            return True
        patience = self.config.train.patience
        return (
            patience is not None
            and bool(state.gained)
            and state.epoch - state.gained["epoch"] >= patience
        )


def is_slow(decay: float, updates: int) -> bool:
    """Say whether an average of the weights is still partly that of the initial ones after so many updates."""
    return decay**updates > SLOW_AVERAGE


def build_job(
    config: TrainConfig,
    accelerator: Accelerator,
    precision: Precision,
    display: Display,
    stop: Stop,
    is_new: bool = True,
    loss: GivenLoss | None = None,
) -> tuple[Job, VisionModel]:
    """Find the images, and build the model and the loaders for them; a new run begins with the weights it names."""
    # Images
    config, data = open_training_data(config, accelerator, display)
    loss_kind = choose_loss(data.train.label_sets, config.data.unlabelled)
    counts = count_by_class(data.train)
    check_counts(config.balance, counts, data.classes)
    monitor = config.train.monitor or loss_kind.default_monitor
    check_monitor(monitor, counts, count_by_class(data.val))
    check_loss(loss, config, len(learned_classes(config, data)), accelerator.device)

    # Model and preprocessing
    if is_new:
        refuse_frozen_noise(config)
    model_name = canonical_name(config.model.name)
    if is_new:
        config, model = open_initial_model(config, data, accelerator, display)
    else:
        num_classes = len(learned_classes(config, data))
        model = build_model(config, model_name, num_classes).to(accelerator.device)
    preprocess = build_preprocess(config, model_name, model)
    tell_statistics(config, preprocess, display)

    prepare_kernels(kernels_of(model_name), accelerator.device.type, display.note)
    if config.augment.auto_augment is not None and not config.augment.device:
        prepare_pictures()  # where it cannot be compiled, the pixels are the same

    objective = loss_kind.build(config, data.train, counts, accelerator.device)
    # what has no labels refuses a loss in its problems
    if loss is not None and not isinstance(objective, NoLabels):
        objective = replace(objective, given=loss)

    # Loaders
    sampler = build_sampler(config, data, counts, accelerator)
    loader, val_loader = build_loaders(config, data, preprocess, sampler, accelerator)
    roster = data.roster() if accelerator.is_main_process else None
    distillation = build_distillation(
        config,
        data,
        preprocess,
        build_view(config, preprocess),
        accelerator,
        precision=precision,
        counts=counts,
        display=display,
        model=model,
    )
    job = Job(
        config=config,
        accelerator=accelerator,
        precision=precision,
        display=display,
        stop=stop,
        data=data,
        model_name=model_name,
        preprocess=preprocess,
        sampler=sampler,
        loader=loader,
        val_loader=val_loader,
        fingerprints=image_fingerprints(data, accelerator.is_main_process),
        training_counts=counts,
        roster=roster,
        objective=objective,
        rate=build_schedule(config, sampler.steps),
        distillation=distillation,
        neighbours=open_neighbours(config, accelerator, display),
        token_labels=build_token_labels(config, data, model, accelerator, display),
    )
    return job, model


def open_initial_model(
    config: TrainConfig, data: Data, accelerator: Accelerator, display: Display
) -> tuple[TrainConfig, VisionModel]:
    """Return the model that a run begins with, and the settings with what its weights decide."""
    name, classes = canonical_name(config.model.name), learned_classes(config, data)
    if config.model.weights is None:
        return config, build_model(config, name, len(classes)).to(accelerator.device)
    opened = open_initial_weights(config, name, classes, display)
    return adopt_recorded_settings(config, opened.record, display), opened.build(accelerator.device)


def learned_classes(config: TrainConfig, data: Data) -> tuple[str, ...]:
    """Return the classes that the model gives logits of; none of images without labels."""
    return () if config.data.unlabelled else data.classes


def refuse_frozen_noise(config: TrainConfig) -> None:
    """Refuse to keep weights that nothing has trained.

    Raises:
        ConfigError: Parts are to be frozen in a model that begins with random weights.
    """
    if config.model.weights is not None:
        return
    for name, value in (("freeze.until", config.freeze.until), ("lora.rank", config.lora.rank)):
        if value is not None:
            raise ConfigError(
                f"{name}={value} keeps weights as they are, which would be random; give weights to "
                f"begin with, model.weights=FILE or {write_option('fork', 'RUN')}"
            )


def open_training_data(
    config: TrainConfig, accelerator: Accelerator, display: Display
) -> tuple[TrainConfig, Data]:
    """Find the images, and refuse settings that do not fit their labels.

    Returns:
        The settings, with the revision of a hub's data set that is used; and the images.
    """
    pinned_section = pin_revision(config.data) if accelerator.is_main_process else None
    config = replace(config, data=share(accelerator, pinned_section))

    def check_manifest(manifest: Manifest, place: Path) -> Manifest:
        kind = choose_loss(manifest.label_sets, config.data.unlabelled)
        check_loss_settings(kind, config)  # before what takes long
        return check_images(manifest, place, display)

    with accelerator.local_main_process_first():  # which downloads for all
        check = check_manifest if config.data.check else None
        data = open_data(config.data, check)
    check_loss_settings(choose_loss(data.train.label_sets, config.data.unlabelled), config)
    for note in data.notes:
        display.note(note)
    if look_alikes := tell_look_alikes(data.classes):
        display.warn(look_alikes)
    if data.manifest is not None and config.data.check:
        tell_alarms(data.manifest, config, display)
    return config, data


def build_sampler(
    config: TrainConfig, data: Data, counts: NDArray[np.int64], accelerator: Accelerator
) -> BatchSampler:
    """Return which images each update is made of, on this rank."""
    return BatchSampler(
        choose_order(config, data.train, counts),
        config.train.batch_size,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        accumulate=config.train.accumulate,
        epoch_samples=config.train.epoch_images,
    )


def choose_order(config: TrainConfig, source: Source, counts: NDArray[np.int64]) -> EpochOrder:
    """Return how training images are drawn: by the groups they are stored in, by class, or all in random order."""
    seed, repeats = config.train.seed, config.augment.repeats
    groups = find_storage_groups(source)
    if groups is not None:
        return WindowShuffle(groups, config.data.shuffle_buffer, seed, repeats)
    if config.balance.sampler == "natural":
        return Shuffle(len(source), seed, repeats)
    shares = compute_class_shares(counts, config.balance.sampler)
    return ClassDraw(source.labels, shares, seed, repeats)


def build_loaders(
    config: TrainConfig,
    data: Data,
    preprocess: Preprocess,
    sampler: BatchSampler,
    accelerator: Accelerator,
) -> tuple[ImageLoader, ImageLoader]:
    """Return the loaders of this rank's training and validation images."""
    pin_memory = accelerator.device.type == "cuda"
    view = build_view(config, preprocess)
    loader = build_train_loader(
        data.train,
        view,
        preprocess.pixels,
        sampler,
        seed=config.train.seed,
        workers=config.data.workers,
        bad_files=config.data.bad_files,
        pin_memory=pin_memory,
        views=count_fixed_views(config),
        augment=build_augment(view, accelerator.device),
    )
    micro_batch = config.train.batch_size // (accelerator.num_processes * config.train.accumulate)
    val_loader = build_eval_loader(
        data.val,
        preprocess,
        batch_size=min(EVAL_BATCH, micro_batch),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        workers=config.data.workers,
        bad_files=config.data.bad_files,
        pin_memory=pin_memory,
    )
    return loader, val_loader


def image_fingerprints(data: Data, is_main_process: bool) -> dict[str, Any]:
    """Return fingerprints of both splits and, on the rank that writes it, a sketch of the training images.

    By these an evaluation tells whether it is given images that were trained on.
    """
    fingerprints: dict[str, Any] = {
        "images": {"train": fingerprint(data.train), "val": fingerprint(data.val)}
    }
    # the images of a streamed table would all have to be read
    if is_main_process and find_storage_groups(data.train) is None:
        fingerprints["sketch"] = make_sketch(data.train)
    return fingerprints


def tell_alarms(manifest: Manifest, config: TrainConfig, display: Display) -> None:
    """Say what makes the numbers of a training wrong, and stop where that was asked for.

    Raises:
        DataError: An image cannot be read, and data.bad_files is "error".
    """
    if config.data.bad_files == "error":
        refuse_unreadable(manifest)
    is_quarantined = config.data.bad_files == "quarantine"
    problems = find_alarms(manifest, mark_held_out(manifest, config.data.fold), is_quarantined)
    for problem in problems:
        display.warn(f"{problem.what}; {problem.advice}")
    if problems:
        data = [
            f"data.list={config.data.list}" if config.data.list else f"data.root={manifest.root}"
        ]
        if config.data.unlabelled:
            data.append("data.unlabelled=true")
        display.note(f"to see them: {command('check-data', *data)}")


def check_monitor(
    monitor: str, training_counts: NDArray[np.int64], val_counts: NDArray[np.int64]
) -> None:
    """Refuse to choose the best epoch by classes that these images do not have.

    Raises:
        ConfigError: With the number to choose instead.
    """
    for name, chosen in shot_groups(training_counts).items():
        if monitor == f"val_{name}_top1" and not val_counts[chosen].any():
            raise ConfigError(
                f"train.monitor {monitor}: no class with validation images has {SHOTS[name]} "
                f"training images; they have {training_counts.min():,} to "
                f"{training_counts.max():,}; set train.monitor=val_balanced_accuracy"
            )


def build_state(job: Job, model: VisionModel) -> TrainState:
    """Return the state before the first update."""
    settings, decay, device = job.config.train, job.config.ema.decay, job.accelerator.device
    if job.config.lora.rank is not None:
        add_adapters(model, job.config.lora)
        model.to(device)
    if (teaching := job.distillation) is not None and teaching.layout.num_features:
        teacher = teaching.teacher
        teaching.head = add_projection(
            model, teacher.num_vector, teaching.grid, teacher.num_channels
        )
    if job.token_labels is not None:
        add_token_head(model, job.token_labels.grid)
        job.token_labels.model = model
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    model.set_grad_checkpointing(settings.grad_checkpointing)
    ema = None
    if decay:
        ema = ModelEmaV3(model, decay=decay)
    if settings.shard:
        shard_over_ranks(job, model, ema)
    freeze, late = None, []
    if job.config.freeze.until is not None:
        freeze = Freeze(model, job.config.freeze.until)
        if job.config.freeze.epochs is None:
            freeze.begin()  # before the optimizer is built, which so never knows of these weights
        else:
            late = freeze.parameters
    optimizer = optimizer_of_settings(job.config, model, late)
    if freeze is not None:
        freeze.begin()
    return TrainState(
        model=model,
        optimizer=optimizer,
        ema=ema,
        scaler=None,
        sums=new_sums(device),
        guard=Guard(device),
        freeze=freeze,
    )


def tell_of_slow_average(job: Job) -> None:
    """Say what becomes of an average that would, at the end of the run, still be partly that of the initial weights."""
    decay = job.config.ema.decay
    if decay is None or job.config.ema.warmup or not is_slow(decay, job.total_updates):
        return
    slow = f"ema.decay {decay} is slow for {job.total_updates:,} updates"
    if job.config.ema.warmup is None:
        job.display.note(
            f"{slow}, so it follows their number, as (1 + n) / (10 + n); ema.warmup=false keeps it "
            "as it is"
        )
    else:
        job.display.warn(
            f"{slow}: {decay**job.total_updates:.0%} of the weights that are evaluated and saved "
            "will be the initial ones; lower it, or set ema.decay=null"
        )


def shard_over_ranks(job: Job, model: VisionModel, ema: ModelEmaV3 | None) -> None:
    """Shard the model and the average of its weights over all ranks.

    Raises:
        ConfigError: There is one rank, or float16.
    """
    if job.accelerator.num_processes == 1:
        raise ConfigError("train.shard needs several processes; start them with torchrun")
    if job.precision == "float16":
        raise ConfigError("train.shard goes with train.precision=float32 or bfloat16, not float16")
    shard(model, job.accelerator.device)
    if ema is not None:
        shard(ema.module, job.accelerator.device)


def optimizer_of_settings(
    config: TrainConfig, model: VisionModel, late: Collection[torch.nn.Parameter] = ()
) -> torch.optim.Optimizer:
    """Return the optimizer that the settings ask for; some parameters may be trained only later."""
    optim = config.optim
    return build_optimizer(
        model,
        name=optim.name,
        lr=optim.lr,
        weight_decay=optim.weight_decay,
        betas=optim.betas,
        eps=optim.eps,
        momentum=optim.momentum,
        nesterov=optim.nesterov,
        layer_decay=optim.layer_decay,
        decay_on=optim.decay_on,
        backbone_scale=optim.backbone_scale,
        shard=config.train.shard,
        late=late,
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
        on_device=augment.device and augment.auto_augment is not None,
    )


def count_fixed_views(config: TrainConfig) -> int | None:
    """Return how many views of an image come again and again; None where each epoch has new ones."""
    return config.distill.views if config.distill.teacher is not None else None


def build_schedule(config: TrainConfig, steps: int) -> Callable[[int], float]:
    """Return the learning rate as a function of the update's number, with `steps` updates an epoch."""
    optim, schedule = config.optim, config.schedule
    updates_between_changes = steps if schedule.step == "epoch" else 1
    peak = optim.lr
    if optim.lr_base_batch is not None:
        peak = optim.lr * config.train.batch_size / optim.lr_base_batch
    cosine_updates = None
    if schedule.cosine_epochs is not None:
        cosine_updates = schedule.cosine_epochs * steps
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
        cosine_updates=cosine_updates,
        clip=schedule.clip_to_min_lr,
    )
    return lambda update: rate(update - update % updates_between_changes)
