"""The training loop, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vitrail.augment import erase, mix, soft_targets
from vitrail.checkpoint import Record, load_state, model_options, provenance, save_model, save_state, write_whole
from vitrail.config import TrainConfig, to_dict, to_yaml
from vitrail.data import Batch, BatchSampler, build_eval_loader, build_train_loader, open_data
from vitrail.display import Display, Quiet
from vitrail.engine import gather_texts, processes, share, sum_over_processes
from vitrail.errors import CheckpointError, ConfigError, Interrupted, TrainingError, command
from vitrail.evaluate import check_classes, count
from vitrail.models import canonical_name, create_model, find_variant
from vitrail.models.registry import VisionModel
from vitrail.optim import build_optimizer, set_learning_rate
from vitrail.report import RunLog, create_run, goodness, plot_curves, read_rows
from vitrail.schedule import learning_rate
from vitrail.transforms import Preprocess, TrainView, normalise, sample_key


@dataclass(frozen=True)
class TrainResult:
    """What a run made."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    """One an epoch, as in metrics.jsonl."""
    best: dict[str, Any]
    """The row of the best weights."""
    seconds: float
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""
    example: str
    """Path of a validation image."""


def train(
    config: TrainConfig, *, name: str = "run", resume: Path | None = None, display: Display | None = None
) -> TrainResult:
    """Train a model and write its run folder.

    Args:
        config: All settings.
        name: Folder of the run where `output.name` does not say.
        resume: Folder of a run of this very config to go on with, from the end of its last whole epoch.
        display: Where progress is shown.

    Raises:
        ConfigError: Settings that do not fit together, the model or the data.
        DataError: The images are not there, or not as they should be.
        CheckpointError: A file of the run cannot be read or written.
        TrainingError: The loss is no longer finite.
    """
    display = display or Quiet()
    settings, optim, started = config.train, config.optim, time.perf_counter()
    with processes(settings.precision, settings.device) as accelerator, ExitStack() as open_files:
        device, rank, world = accelerator.device, accelerator.process_index, accelerator.num_processes
        main = accelerator.is_main_process
        torch.manual_seed(settings.seed)

        # Data
        with accelerator.local_main_process_first():  # which downloads for all
            data = open_data(
                config.data.name,
                config.data.root,
                train_split=config.data.train_split,
                val_split=config.data.val_split,
                val_fraction=config.data.val_fraction,
                download=config.data.download,
            )
        for note in data.notes:
            display.note(note)
        model_name = canonical_name(config.model.name)
        model = build_model(config, model_name, len(data.classes))
        preprocess = build_preprocess(config, model_name, model)
        sampler = BatchSampler(
            len(data.train),
            settings.batch_size,
            seed=settings.seed,
            rank=rank,
            world=world,
            accumulate=settings.accumulate,
            repeats=config.augment.repeats,
        )
        pinned = device.type == "cuda"
        loader = build_train_loader(
            data.train, build_view(config, preprocess), preprocess.exif, sampler,
            seed=settings.seed, workers=config.data.workers, bad_files=config.data.bad_files, pin_memory=pinned,
        )  # fmt: skip
        val_loader = build_eval_loader(
            data.val, preprocess, batch_size=settings.batch_size // (world * settings.accumulate), rank=rank,
            world=world, workers=config.data.workers, bad_files=config.data.bad_files, pin_memory=pinned,
        )  # fmt: skip

        # Model and optimizer
        model.to(device)
        if settings.channels_last:
            model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        model.set_grad_checkpointing(settings.grad_checkpointing)
        ema = ModelEmaV3(model, decay=config.ema.decay) if config.ema.decay else None
        evaluated = ema.module if ema else model
        total_epochs, steps = settings.epochs + config.schedule.cooldown_epochs, sampler.steps
        if config.ema.decay and (share_left := config.ema.decay ** (total_epochs * steps)) > 0.01:
            display.warn(
                f"ema.decay {config.ema.decay} is slow for {total_epochs * steps:,} updates: {share_left:.0%} of the "
                "weights that are evaluated and saved will be the initial ones; lower it, or set ema.decay=null"
            )
        if settings.compile:
            display.note("compiling the model; the first updates take a minute or more")
            model.compile()
        optimizer = build_optimizer(
            model, name=optim.name, lr=optim.lr, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps,
            momentum=optim.momentum, nesterov=optim.nesterov, layer_decay=optim.layer_decay,
        )  # fmt: skip
        wrapped, optimizer = accelerator.prepare(model, optimizer)

        # Run folder, new or resumed
        first_epoch, best, rows, bad_files = 0, {}, [], set()
        if resume is not None:
            state = load_state(resume / "last" / "state.pt")
            check_classes(state["classes"], data.classes, resume)
            if state["options"] != model_options(model):
                raise CheckpointError(f"{resume / 'config.yaml'}: was changed, and no longer describes the run's model")
            first_epoch, best, bad_files = state["epoch"], state["best"], {(a, b) for a, b in state["bad_files"]}
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            if ema:
                ema.module.load_state_dict(state["ema"])
            if accelerator.scaler is not None:
                accelerator.scaler.load_state_dict(state["scaler"])
            rows = read_rows(resume, first_epoch)
        spent = rows[-1]["elapsed_s"] if rows else 0.0
        log = None
        if main and resume is None:
            folder = create_run(Path(config.output.root).expanduser(), config.output.name, name)
            write_whole(folder / "config.yaml", to_yaml(config, f"Settings of the run {folder.name}.").encode())
        else:
            folder = resume
        folder = share(accelerator, folder)
        if main:
            log = open_files.enter_context(closing(RunLog(folder, rows)))

        # Loop
        rate = build_schedule(config, steps)
        display.begin("train", total_epochs * steps, first_epoch * steps)
        with resumable(folder):
            for epoch in range(first_epoch, total_epochs):
                sampler.epoch = epoch
                batches = iter(loader)
                sums = torch.zeros(3, dtype=sum_dtype(device), device=device)  # loss, right answers, images
                unread = set()
                epoch_started = window_started = time.perf_counter()
                window_step, lr = 0, 0.0
                wrapped.train()
                for step in range(steps):
                    lr = rate(epoch * steps + step)
                    set_learning_rate(optimizer, lr)
                    # keyed like every draw of an image, so a resumed run draws the same drop paths and dropouts
                    torch.manual_seed(sample_key(settings.seed, epoch, step, 1 + rank))
                    parts = [next(batches) for _ in range(settings.accumulate)]
                    unread.update(bad for part in parts for bad in part.bad)
                    keys = [
                        sample_key(settings.seed, epoch, step, -(number * world + rank) - 1)
                        for number in range(len(parts))
                    ]
                    sums += train_step(
                        wrapped, optimizer, accelerator, parts, config, preprocess, len(data.classes), keys
                    )
                    if ema:
                        ema.update(model)
                    if due(step, settings.log_every, steps):
                        loss, right, images = sums.tolist()
                        loss, top1 = loss / max(images, 1), 100 * right / max(images, 1)
                        if not math.isfinite(loss):
                            raise diverged(
                                f"loss became {loss}", epoch * steps + window_step, epoch * steps + step, folder, epoch
                            )
                        now = time.perf_counter()
                        speed = (step + 1 - window_step) * settings.batch_size / (now - window_started)
                        window_step, window_started = step + 1, now
                        display.advance(
                            0,
                            epoch=f"{epoch + 1}/{total_epochs}",
                            loss=f"{loss:.4f}",
                            top_1=f"{top1:.1f} %",
                            speed=f"{speed:,.0f} images/s",
                        )
                    display.advance()
                trained_s = time.perf_counter() - epoch_started
                loss, right, images = sum_over_processes(accelerator, sums)[0].tolist()
                if not images:
                    name, reason = min(unread)
                    raise TrainingError(f"no training image could be read; one is {name} ({reason})")
                if not all(bool(weights.isfinite().all()) for weights in model.parameters()):
                    raise diverged("weights became infinite", epoch * steps, (epoch + 1) * steps - 1, folder, epoch)
                row = {
                    "epoch": epoch + 1,
                    "updates": (epoch + 1) * steps,
                    "lr": lr,
                    "train_loss": loss / images,
                    "train_top1": 100 * right / images,
                    "images_per_s": round(steps * settings.batch_size / trained_s, 1),
                    "seconds": round(trained_s, 3),
                }
                if due(epoch, settings.eval_every, total_epochs):
                    found, bad = count(evaluated, val_loader, preprocess, accelerator, settings.precision, Quiet())
                    unread.update(bad)
                    row |= {"val_loss": found.loss, "val_top1": found.top1, "val_top5": found.top5, "val_n": found.n}
                    for warning in found.warnings if epoch + 1 == total_epochs else ():
                        display.warn(warning)
                for bad in sorted(set(gather_texts(accelerator, sorted(unread))) - bad_files):
                    display.warn(f"{bad[0]}: {bad[1]}; left out")
                    bad_files.add(bad)
                row["n_bad"] = len(bad_files)
                row["elapsed_s"] = round(spent + time.perf_counter() - started, 1)
                display.row(row)
                rows.append(row)
                improved = "val_top1" in row and (not best or goodness(row) > goodness(best))
                if improved:
                    best = row
                if main and log is not None:
                    log.add(row)
                    if improved:
                        record = Record(
                            model=model_name, options=model_options(model), classes=data.classes, preprocess=preprocess,
                            recipe=to_dict(config), provenance=provenance(), metrics=row,
                        )  # fmt: skip
                        keep_older(folder, config.output.keep_best)
                        save_model(folder / "best.safetensors", evaluated.state_dict(), record)
                    state = {
                        "epoch": epoch + 1,
                        "best": best,
                        "bad_files": sorted(bad_files),
                        "classes": data.classes,
                        "options": model_options(model),
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "ema": ema.module.state_dict() if ema else None,
                        "scaler": accelerator.scaler.state_dict() if accelerator.scaler else None,
                    }
                    save_state(folder / "last" / "state.pt", state)
        display.end()
        example = ""
        if main:
            plot_curves(rows, folder / "curves.png", f"{folder.name}: {model_name}, {len(data.train):,} images")
            with suppress(OSError):  # the run is done and saved; without an example, the last line names none
                example = data.val.example(folder)
        seconds = time.perf_counter() - started
        return TrainResult(folder, tuple(rows), best, seconds, tuple(sorted(bad_files)), example)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    accelerator: Accelerator,
    parts: Sequence[Batch],
    config: TrainConfig,
    preprocess: Preprocess,
    num_classes: int,
    keys: Sequence[int],
) -> Tensor:
    """Make one update from the parts of a batch, and return (summed loss, right answers, images) of this process.

    Every image weighs 1 / batch_size, so an unreadable one changes the weight of no other. For a part without any, a
    black image of no weight is passed through: other processes wait for its gradients. `keys` seed the mixing.
    """
    device = accelerator.device
    local_batch = config.train.batch_size // accelerator.num_processes
    sums = torch.zeros(3, dtype=sum_dtype(device), device=device)
    for number, (part, key) in enumerate(zip(parts, keys, strict=True)):
        if len(part.labels):
            images, targets = prepare(part, config, preprocess, num_classes, key, device)
        else:
            images = torch.zeros(1, 3, *preprocess.size, device=device)
            targets = torch.zeros(1, num_classes, device=device)
        with nullcontext() if number == len(parts) - 1 else accelerator.no_sync(model):
            logits = model(images).float()
            loss = cross_entropy(logits, targets, reduction="sum")
            accelerator.backward(loss / local_batch)
        right = (logits.argmax(1) == targets.argmax(1))[: len(part.labels)].sum()
        sums += torch.stack([loss.detach(), right, torch.full_like(right, len(part.labels))]).to(sums.dtype)
    if config.optim.clip_norm is not None:
        accelerator.clip_grad_norm_(model.parameters(), config.optim.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return sums


def prepare(
    part: Batch, config: TrainConfig, preprocess: Preprocess, num_classes: int, key: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return the normalised, erased and mixed images of a batch, and their soft targets (b, num_classes)."""
    augment = config.augment
    images = normalise(part.images.to(device, non_blocking=True), preprocess.mean, preprocess.std)
    images = erase(images, part.keys, augment.erase_prob)
    targets = soft_targets(part.labels.to(device, non_blocking=True), num_classes, augment.label_smoothing)
    images, targets = mix(
        images,
        targets,
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        probability=augment.mix_prob,
        switch_probability=augment.mix_switch_prob,
        key=key,
    )
    return (images.contiguous(memory_format=torch.channels_last) if config.train.channels_last else images), targets


def build_model(config: TrainConfig, name: str, num_classes: int) -> VisionModel:
    """Build the model that the settings describe, for so many classes."""
    size = {} if config.model.image_size is None else {"image_size": config.model.image_size}
    given = {"num_classes": num_classes, "drop_path_rate": config.model.drop_path_rate} | size
    if twice := sorted(given.keys() & config.model.options.keys()):
        raise ConfigError(
            f"model.options.{twice[0]}: is not an option; num_classes follows the data, the others are model.{twice[0]}"
        )
    if "in_channels" in config.model.options:
        raise ConfigError("model.options.in_channels: is not an option; images are read with 3 channels, gray ones too")
    return create_model(name, **given, **config.model.options)


def build_preprocess(config: TrainConfig, name: str, model: VisionModel) -> Preprocess:
    """Return how images are brought to the model: as it was published, unless the settings say otherwise."""
    _, card = find_variant(name)
    published = Preprocess(
        size=model.config.size, crop=card.crop, interpolation=card.interpolation, mean=card.mean, std=card.std
    )
    return replace(published, **{key: value for key, value in vars(config.preprocess).items() if value is not None})


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
    optim, schedule = config.optim, config.schedule
    peak = optim.lr if optim.lr_base_batch is None else optim.lr * config.train.batch_size / optim.lr_base_batch
    return partial(
        learning_rate,
        name=schedule.name,
        peak=peak,
        warmup_start=schedule.warmup_lr,
        floor=schedule.min_lr,
        warmup_updates=schedule.warmup_epochs * steps,
        total_updates=config.train.epochs * steps,
        decay_updates=schedule.decay_epochs * steps,
        decay_rate=schedule.decay_rate,
    )


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Turn Ctrl-C into what to type next."""
    try:
        yield
    except KeyboardInterrupt:
        if (folder / "last" / "state.pt").exists():
            advice = f"go on from its last whole epoch with: {command('train', '--resume', folder)}"
        else:
            advice = "no epoch was whole, so there is nothing to go on from"
        raise Interrupted(f"stopped; {advice}") from None


def diverged(what: str, first: int, last: int, folder: Path, epoch: int) -> TrainingError:
    """Say between which updates, counted from 0, a run went wrong, and what is left after `epoch` whole epochs."""
    good = f"{folder / 'last' / 'state.pt'} (epoch {epoch})" if epoch else "none"
    return TrainingError(
        f"{what} between updates {first + 1} and {last + 1}; last good checkpoint: {good}; lower optim.lr, or set "
        "optim.clip_norm=1 or train.precision=float32"
    )


def sum_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or what there is on Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


def due(number: int, every: int, total: int) -> bool:
    """Say whether something that happens at every `every`-th of `total` steps, and at the last, happens at this one."""
    return (number + 1) % every == 0 or number + 1 == total


def keep_older(folder: Path, keep: int) -> None:
    """Copy best.safetensors to best-2.safetensors, and what was that to best-3, so that `keep` files stay in all."""
    best, older = folder / "best.safetensors", [folder / f"best-{number}.safetensors" for number in range(2, keep + 1)]
    if older and best.exists():
        try:
            for newer, old in reversed(list(pairwise(older))):
                if newer.exists():
                    newer.replace(old)
            data = best.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{folder}: its best weights cannot be moved ({error.strerror})") from error
        write_whole(older[0], data)
