"""The training loop, top to bottom."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from vitrail.classes.matching import check_classes
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import flat, to_dict, to_yaml
from vitrail.data.loader import Batch, crowding, processes_here
from vitrail.data.roster import Changes, Roster, compare
from vitrail.devices import autocast
from vitrail.display import Display, Quiet
from vitrail.distributed.processes import (
    Agreement,
    any_process,
    check_tracker,
    choose_precision,
    gather_texts,
    keep_compiled_code,
    open_tracker,
    processes,
    share,
    shared_store,
    sum_over_processes,
)
from vitrail.distributed.sharding import local, whole
from vitrail.distributed.watchdog import Watchdog
from vitrail.errors import CheckpointError, DataError, Interrupted, Stopped, TrainingError, VitrailError, command
from vitrail.evaluation.measure import measure
from vitrail.evaluation.task import task_of
from vitrail.files import write_whole
from vitrail.images.batch_augment import erase, mix
from vitrail.images.input_check import ENOUGH, Inputs
from vitrail.images.transforms import Preprocess, normalise, sample_key
from vitrail.models.family import VisionModel
from vitrail.models.registry import build_config
from vitrail.training.best_files import BestFiles
from vitrail.training.class_balance import advice
from vitrail.training.losses import Objective
from vitrail.training.nonfinite import first_nonfinite
from vitrail.training.optim import set_learning_rate
from vitrail.training.run_folder import (
    Outbox,
    RunLog,
    StepLog,
    TensorBoard,
    Tracker,
    Trackers,
    create_run,
    plot_curves,
    tidy_run,
)
from vitrail.training.run_lock import held
from vitrail.training.run_report import has_report, write_run_report
from vitrail.training.setup import Job, build_job, build_state, sum_dtype
from vitrail.training.start import FREE, LENGTH, differences, listed
from vitrail.training.state import SUMS, TrainState, list_states, load_last_state, save_state
from vitrail.training.stop import Stop
from vitrail.training.stopwatch import Stopwatch
from vitrail.weights.checkpoint import Record, load_weights, model_options, provenance

DATA_BOUND = 0.2  # share of the time that is worth a word
WORTH_A_WORD_S = 20.0


@dataclass(frozen=True)
class TrainResult:
    """What a run made."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    """One an epoch, as in metrics.jsonl."""
    best: dict[str, Any]
    """The row of the best weights."""
    monitor: str
    """Which of its numbers made it the best."""
    seconds: float
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""
    example: str
    """Path of a validation image."""
    report: Path | None
    """Page of the best weights; None where it could not be written, or nothing was trained."""


@dataclass(kw_only=True)
class Run:
    """The run's folder and what is written there; only the first process writes."""

    folder: Path
    outbox: Outbox
    agreement: Agreement
    watchdog: Watchdog
    log: RunLog | None = None
    steps: StepLog | None = None
    best: BestFiles | None = None
    began: float = field(default_factory=time.monotonic)
    spent_s: float = 0.0
    """Before this process."""
    saved: float = field(default_factory=time.monotonic)
    told_of_data: bool = False
    told_of_load: bool = False
    inputs: Inputs | None = None
    """The first images of a new run, until they are judged."""

    def elapsed_s(self) -> float:
        """Seconds of the run in all."""
        return self.spent_s + time.monotonic() - self.began


def train(
    config: TrainConfig,
    *,
    name: str = "run",
    resume: Path | None = None,
    fork: Path | None = None,
    display: Display | None = None,
) -> TrainResult:
    """Train a model and write its run folder.

    Args:
        config: All settings.
        name: Folder of the run where `output.name` does not say.
        resume: Folder of a run to go on with, from its last save; `config` may differ in its length only.
        fork: Folder of a run whose weights, averaged where it averages, a new run begins with.
        display: Where progress is shown.

    Raises:
        ConfigError: Settings that do not fit together, the model or the data.
        DataError: The images are not there, or not as they should be.
        CheckpointError: A file of the run cannot be read or written.
        TrainingError: The loss is no longer finite, and going back did not help.
        Stopped: A signal or train.max_hours said so; everything is saved.
    """
    display = display or Quiet()
    settings = config.train
    precision, patience = choose_precision(settings.precision, settings.device), settings.dist_timeout_minutes
    with (
        processes(precision, settings.device, 2 * patience, patience) as accelerator,
        Stop(settings.max_hours) as stop,
        ExitStack() as exits,
    ):
        # Data, model and optimizer
        for tracker in config.output.trackers:
            if tracker != "tensorboard":
                check_tracker(tracker)
        torch.manual_seed(settings.seed)
        if precision != settings.precision:
            display.note(f"train.precision={settings.precision} is {precision} on this device")
        if resume is not None:
            claim(accelerator, resume, exits, display)
        is_new = fork is None and (resume is None or not share(accelerator, bool(list_states(resume / "last"))))
        job, model = build_job(config, accelerator, precision, display, stop, is_new)
        job.loader.on_lost = job.val_loader.on_lost = stop.ask
        if fork is not None:
            load_fork(job, model, fork)
        state = build_state(job, model)
        if settings.compile:
            cache = keep_compiled_code()
            display.note(f"compiling the model: the first updates take a minute, and less the next time ({cache})")
            model.compile()
        wrapped = accelerator.prepare_model(model, evaluation_mode=settings.shard)  # which leaves DDP out
        optimizer = accelerator.prepare_optimizer(state.optimizer)
        state.scaler = accelerator.scaler

        # Run folder, new or resumed
        restored = resume is not None and restore(job, state, resume)
        run = open_run(job, state, name, resume, exits)
        exits.enter_context(run.watchdog)
        for log in (run.log, run.steps):
            if log is not None:
                exits.enter_context(closing(log))
        first_epoch = state.epoch
        tell_load(job, run, 1)
        if is_finished(job, state):
            longer = command("train", "--extend", run.folder, f"train.epochs={2 * settings.epochs}")
            anew = command("train", "--fork", run.folder)
            display.note(
                f"{run.folder} is finished, with {state.epoch} epochs; to lengthen it: {longer}; to begin a new run "
                f"from its weights: {anew}"
            )
        elif not restored:
            for warning in advice(config.balance, job.training_counts, job.data.classes) if not job.several else ():
                display.warn(warning)
            save(job, state, run, must=True)  # from here on there is always something to go back to

        # Loop
        display.begin("train", job.total_epochs * job.sampler.steps, job.updates(state))
        with interruptible(run.folder), anomalies_named(settings.detect_anomaly):
            while not is_finished(job, state):
                if train_epoch(job, state, run, wrapped, optimizer):
                    finish_epoch(job, state, run)
        display.end()
        if first_epoch < state.epoch < job.total_epochs:
            display.note(f"stopped early: no better {job.monitor} for {settings.patience} epochs")
        if state.epoch > first_epoch:
            save(job, state, run, must=True)
        run.outbox.finish()
        lacks_report = share(accelerator, not has_report(run.folder, job.updates(state)))  # or was killed in between
        report = report_on(job, state, run) if lacks_report and state.best else None
        run.agreement.finish()
        example = ""
        if accelerator.is_main_process:
            if lacks_report or not (run.folder / "curves.png").exists():
                title = f"{run.folder.name}: {job.model_name}, {len(job.data.train):,} images"
                plot_curves(state.rows, state.best, run.folder / "curves.png", title)
            with suppress(OSError):  # the run is done and saved; without an example, the last line names none
                example = job.data.val.example(run.folder)
        seconds = time.monotonic() - run.began
        bad_files = tuple(sorted(state.bad_files))
        return TrainResult(run.folder, tuple(state.rows), state.best, job.monitor, seconds, bad_files, example, report)


def train_epoch(job: Job, state: TrainState, run: Run, wrapped: nn.Module, optimizer: torch.optim.Optimizer) -> bool:
    """Make the updates of an epoch from where the state stands; False if the run had to go back instead.

    Raises:
        Stopped: The run was told to stop, and is saved.
        TrainingError: See `roll_back`.
    """
    config, sampler, accelerator = job.config, job.sampler, job.accelerator
    settings, epoch = config.train, state.epoch
    watch = Stopwatch(accelerator.device, state.seconds)
    sampler.epoch, sampler.first_step = epoch, state.step
    window_step, window_started = state.step, time.perf_counter()
    wrapped.train()
    batches = iter(job.loader)
    for step in range(state.step, sampler.steps):
        begun = time.perf_counter()
        update = epoch * sampler.steps + step
        set_learning_rate(optimizer, job.rate(update) / 2**state.rollbacks)
        # keyed like every draw of an image, so a resumed run draws the same drop paths and dropouts
        torch.manual_seed(sample_key(settings.seed, epoch, step, 1 + sampler.rank))
        run.watchdog.move(f"reading the images of update {update + 1:,}")
        with watch.waiting("data_s"):
            parts = [next(batches) for _ in range(settings.accumulate)]
        state.unread.update(bad for part in parts for bad in part.bad)
        run.watchdog.move(f"computing update {update + 1:,}")
        if run.inputs is not None:
            look_at_inputs(job, run, parts, is_last=step + 1 == sampler.steps)
        keys = mixing_keys(job, epoch, step)
        sums, bad, norm = train_step(
            wrapped, optimizer, accelerator, parts, config, job.preprocess, job.objective, keys, watch
        )
        state.sums += sums
        state.guard.record(bad, update)
        if state.ema:
            state.ema.update(state.model)
        state.step = step + 1
        job.display.advance()
        if due(step, settings.log_every, sampler.steps):
            run.watchdog.move(f"adding up the losses until update {update + 1:,}")
            totals = sum_over_processes(accelerator, state.sums)[0]
            read = torch.cat([totals, state.guard.counts, norm.reshape(1).to(totals.dtype)]).tolist()
            loss, right, images, skipped, in_a_row, first, norm = read
            now, spent_s = time.perf_counter(), state.seconds.get("train_s", 0.0)
            speed = (step + 1 - window_step) * settings.batch_size / (now - window_started)
            window_step, window_started = step + 1, now
            watch.read()
            job.display.advance(
                0,
                epoch=f"{epoch + 1}/{job.total_epochs}",
                loss=f"{loss / max(images, 1):.4f}",
                **({} if job.several else {"top_1": f"{100 * right / max(images, 1):.1f} %"}),
                speed=f"{speed:,.0f} images/s",
                waiting_for_images=f"{state.seconds['data_s'] / (spent_s + now - begun):.0%}",
            )
            if first >= 0 and (accelerator.scaler is None or in_a_row >= settings.skip_limit):
                more = f" and {skipped - 1:.0f} more of this epoch" if skipped > 1 else ""
                cause = diagnose(job, state, int(first))
                reason = f"update {first + 1:,.0f}{more} left out, not finite: {cause}"
                if in_a_row >= settings.skip_limit:
                    roll_back(job, state, run, reason)
                    return False
                job.display.warn(reason)
            state.guard.clear_first()
            log_step(job, state, run, loss, images, norm, speed)
        state.seconds["train_s"] = state.seconds.get("train_s", 0.0) + time.perf_counter() - begun
        stop_or_save(job, state, run, saving=is_save_due(job, state, run))
    return True


def log_step(job: Job, state: TrainState, run: Run, loss: float, images: float, norm: float, speed: float) -> None:
    """Write the row of an update, whose loss is the mean since the row before.

    Args:
        job: Of the run.
        state: After the update.
        run: Its logs.
        loss: Summed over the epoch so far, like the images, in all processes.
        images: That the loss is of.
        norm: Of the update's gradient, before it is clipped.
        speed: Images a second since the row before.
    """
    (loss_before, images_before), state.told = state.told, (loss, images)
    if run.steps is None:
        return
    row: dict[str, Any] = {
        "update": job.updates(state),
        "epoch": state.epoch + 1,
        "loss": (loss - loss_before) / (images - images_before) if images > images_before else None,
        "lr": job.rate(job.updates(state) - 1) / 2**state.rollbacks,
        "grad_norm": norm if math.isfinite(norm) else None,
        "images_per_s": round(speed, 1),
    }
    if state.scaler is not None:
        row["loss_scale"] = state.scaler.get_scale()  # the device was just waited for
    run.steps.add(row)
    run.outbox.put("steps.jsonl", run.steps.write)


def look_at_inputs(job: Job, run: Run, parts: Sequence[Batch], *, is_last: bool) -> None:
    """Warn where the first images of a run look as if they were normalised for other pixels."""
    assert run.inputs is not None
    mean, std = job.preprocess.mean, job.preprocess.std
    for part in parts:
        # on the CPU, where the images still are
        run.inputs.add(normalise(part.images, mean, std))
    if run.inputs.images >= ENOUGH or is_last:
        if doubt := run.inputs.doubt(mean, std):
            job.display.warn(f"the first {doubt}")
        run.inputs = None


def finish_epoch(job: Job, state: TrainState, run: Run) -> None:
    """Evaluate, write the row of numbers and the best weights, and begin the next epoch.

    Raises:
        Stopped: The run was told to stop, and is saved; the evaluation is begun anew when it goes on.
        TrainingError: See `roll_back`, or no training image can be read.
    """
    config, accelerator, display, steps = job.config, job.accelerator, job.display, job.sampler.steps
    unread, settings, thresholds = set(state.unread), config.train, None
    run.watchdog.move(f"adding up epoch {state.epoch + 1}")
    loss, right, images = sum_over_processes(accelerator, state.sums)[0].tolist()
    skipped = int(state.guard.counts[0])
    if not images and not skipped:
        name, reason = min(unread)
        raise TrainingError(f"no training image could be read; one is {name} ({reason})")
    if not has_finite_weights(state.model, accelerator):
        roll_back(job, state, run, f"the weights are not finite after update {job.updates(state):,}")
        return
    seconds = state.seconds
    row: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "updates": job.updates(state),
        "lr": job.rate(job.updates(state) - 1) / 2**state.rollbacks,
        "train_loss": loss / images if images else None,
        **({} if job.several else {"train_top1": 100 * right / images if images else None}),
        "skipped": skipped,
        "overflow_rate": skipped / steps,
    }
    if state.scaler is not None:
        row["loss_scale"] = state.scaler.get_scale()
    if due(state.epoch, settings.eval_every, job.total_epochs):
        run.watchdog.move(f"evaluating epoch {state.epoch + 1}")
        with Stopwatch(accelerator.device, seconds).waiting("eval_s"):
            evaluated = state.ema.module if state.ema else state.model

            def counted() -> None:
                run.watchdog.stir()
                stop_or_save(job, state, run, saving=False)

            measured = measure(
                evaluated,
                job.val_loader,
                task_of(job.data.val, training_counts=job.training_counts),
                job.preprocess,
                accelerator,
                precision=job.precision,
                advance=counted,
            )
        metrics = measured.metrics
        thresholds = metrics.thresholds
        unread.update(measured.bad_files)
        row |= {f"val_{name}": value for name, value in metrics.numbers().items()}
        for warning in metrics.warnings if state.epoch + 1 == job.total_epochs else ():
            display.warn(warning)
    for bad in sorted(set(gather_texts(accelerator, sorted(unread))) - state.bad_files):
        display.warn(f"{bad[0]}: {bad[1]}; left out")
        state.bad_files.add(bad)
    row["n_bad"] = len(state.bad_files)
    row["images_per_s"] = round(steps * settings.batch_size / seconds["train_s"], 1)
    row |= {name: round(value, 3) for name, value in sorted(seconds.items())}
    row["elapsed_s"] = round(run.elapsed_s(), 1)
    waiting = seconds["data_s"] / seconds["train_s"]
    if seconds["train_s"] > WORTH_A_WORD_S and waiting > DATA_BOUND and not run.told_of_data:
        run.told_of_data = True
        display.note(
            f"{waiting:.0%} of the epoch went by waiting for images: the loader's "
            f"{job.loader.num_workers} processes are slower than the model; raise data.workers, or lighten "
            "augment.auto_augment"
        )
    if seconds["train_s"] > WORTH_A_WORD_S:
        tell_load(job, run, job.loader.num_workers + (torch.get_num_threads() if on_cpu(job) else 1))
    display.row(row)
    state.rows.append(row)
    weights = None
    if "val_loss" in row and is_better(row, state.best, job.monitor):
        state.bests = [row, *state.bests][: config.output.keep_best]
        weights = whole((state.ema.module if state.ema else state.model).state_dict())
    if run.log is not None and run.best is not None:
        run.log.add(row)
        run.outbox.put("metrics.jsonl", run.log.write)
        if weights is not None:
            record = Record(
                model=job.model_name, options=model_options(state.model), classes=job.data.classes,
                preprocess=job.preprocess, recipe=to_dict(config), metrics=row,
                provenance=provenance() | job.origin, thresholds=thresholds,
            )  # fmt: skip
            # a copy, as it may be written only later, when a full disk is no longer full
            weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
            run.outbox.put("best", partial(run.best.put, weights, record, state.bests[1:]))
    state.epoch += 1
    state.begin_epoch()


def tell_load(job: Job, run: Run, tasks: int) -> None:
    """Say once that other work takes this machine's cores, where each process of the run has so many tasks for them."""
    crowd, advice = crowding(tasks * processes_here(), on_cpu(job))
    if crowd and not run.told_of_load:
        run.told_of_load = True
        job.display.warn(f"{crowd}: {advice}")


def on_cpu(job: Job) -> bool:
    """Say whether updates are computed on the CPU."""
    return job.accelerator.device.type == "cpu"


def train_step(
    model: nn.Module,
    optimizer: Any,
    accelerator: Accelerator,
    parts: Sequence[Batch],
    config: TrainConfig,
    preprocess: Preprocess,
    objective: Objective,
    keys: Sequence[int | None],
    watch: Stopwatch,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make one update from the parts of a batch, unless the loss or the gradient is not finite.

    Every image weighs 1 / batch_size times what its class does, so an unreadable one changes the weight of no other.
    For a part without any, a black image is passed through and left out: other processes wait for its gradients.
    Nothing waits for the device.

    Args:
        model: As Accelerate prepared it.
        optimizer: As Accelerate prepared it.
        accelerator: Which prepared them.
        parts: Of the batch, on this process.
        config: All settings.
        preprocess: Size, mean and standard deviation of the images.
        objective: What makes targets and the loss.
        keys: Seed the mixing of each part, None where it is not mixed.
        watch: Times the phases.

    Returns:
        (Summed loss, right answers, images) of this process, zeros where the update was left out; whether it was, in
        all processes alike; and the norm of the gradient before it is clipped.
    """
    device = accelerator.device
    local_batch = config.train.batch_size // accelerator.num_processes
    sums = torch.zeros(SUMS, dtype=sum_dtype(device), device=device)
    with watch.phase("forward_backward_s"):
        for number, (part, key) in enumerate(zip(parts, keys, strict=True)):
            images, targets = prepare(part, config, preprocess, objective, key, device)
            with nullcontext() if number == len(parts) - 1 else accelerator.no_sync(model):
                logits = model(images).float()[: len(part.labels)]
                loss = objective.loss(logits, targets)
                accelerator.backward(loss / local_batch)
            right = (logits.argmax(1) == targets.argmax(1)).sum()
            sums += torch.stack([loss.detach(), right, torch.full_like(right, len(part.labels))]).to(sums.dtype)
    with watch.phase("optimizer_s"):
        accelerator.unscale_gradients()
        parameters = [parameter for parameter in model.parameters() if parameter.grad is not None]
        shared_norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        if config.optim.clip_norm is not None:
            clip_grads_with_norm_(parameters, config.optim.clip_norm, shared_norm)
        norm = whole(shared_norm)
        bad = any_process(accelerator, ~(norm.isfinite() & sums[0].isfinite()))
        if config.train.shard:
            if not bad:  # waits for the device: the kernels below know no shares
                optimizer.step()
        else:
            if accelerator.scaler is None:
                optimizer.optimizer.found_inf = bad.float()  # the fused kernels change nothing where it is 1
            optimizer.step()
        optimizer.zero_grad()
    return torch.where(bad, torch.zeros_like(sums), sums), bad, norm


def prepare(
    part: Batch,
    config: TrainConfig,
    preprocess: Preprocess,
    objective: Objective,
    key: int | None,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """Return the normalised, erased and, with a key, mixed images of a batch, and their targets (b, k).

    A batch without images has no target, and a black image to pass through the model.
    """
    targets = objective.targets(part.labels, device)
    if not len(part.labels):
        return torch.zeros(1, preprocess.channels, *preprocess.size, device=device), targets
    augment = config.augment
    images = normalise(part.images.to(device, non_blocking=True), preprocess.mean, preprocess.std)
    erased = partial(
        erase, keys=part.keys, probability=augment.erase_prob, mode=augment.erase_mode, count=augment.erase_count
    )
    if augment.erase == "before_mix":
        images = erased(images)
    if key is not None:
        images, targets = mix(
            images,
            targets,
            mixup_alpha=augment.mixup,
            cutmix_alpha=augment.cutmix,
            probability=augment.mix_prob,
            switch_probability=augment.mix_switch_prob,
            key=key,
            mode=augment.mix_mode,
            minmax=augment.cutmix_minmax,
        )
    if augment.erase == "after_mix":
        images = erased(images)
    return (images.contiguous(memory_format=torch.channels_last) if config.train.channels_last else images), targets


def mixing_keys(job: Job, epoch: int, step: int) -> list[int] | list[None]:
    """Return what the mixing of each part of an update follows from, on this process; None where it has ended."""
    rank, world, end = job.sampler.rank, job.sampler.world, job.config.augment.mix_off_epoch
    parts = range(job.sampler.accumulate)
    if end is not None and epoch >= end:
        return [None for _ in parts]
    return [sample_key(job.config.train.seed, epoch, step, -(number * world + rank) - 1) for number in parts]


def restore(job: Job, state: TrainState, folder: Path) -> bool:
    """Bring the state to a run's last save, and return whether there is one."""
    accelerator = job.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    made = [path.name for path in (folder / "metrics.jsonl", folder / "best.safetensors") if has_content(path)]
    was_saved, made = share(accelerator, (bool(list_states(folder / "last")), made))
    if not was_saved:
        if made:
            raise CheckpointError(
                f"{folder / 'last'}: holds no save to go on from, though there is {made[0]}; put one back from a copy, "
                f"or move {folder} away to begin it anew"
            )
        job.display.note(f"{folder}: nothing was saved yet; it begins anew")
        return False
    saved = last_state(job, folder)
    check_classes(saved["classes"], job.data.classes, folder)
    # fields that are new since it was saved have their defaults
    if build_config(job.model_name, **saved["options"]) != state.model.config:
        raise CheckpointError(f"{folder / 'config.yaml'}: was changed, and no longer describes the run's model")
    if saved["images"] != job.known_by["images"]["train"]:
        raise DataError(
            f"{folder}: was trained on other images than those in data.root; give the folder it was trained on, or "
            f"begin a new run from its weights with {command('train', '--fork', folder)}"
        )
    if changed := differences(saved["settings"], flat(job.config), (*FREE, *LENGTH)):
        raise CheckpointError(
            f"{folder / 'config.yaml'}: was changed, and no longer has the run's settings: {listed(changed)}; put them "
            f"back, or begin a new run from its weights with {command('train', '--fork', folder)}"
        )
    if saved["world"] != world:
        job.display.note(
            f"{folder}: goes on with {world} instead of {saved['world']} processes: the same images in the same order; "
            "sums differ in their last digits, and drop paths, dropouts and Mixup's partners are drawn anew"
        )
    validation = validation_changes(job, saved, folder)
    state.restore(saved, rank, world)
    if not is_finished(job, state):
        find_best(job, state, folder)
    if validation is not None and validation.rewritten:
        told = f"{folder}: its validation images are others than before: {validation}; accuracies cannot be compared"
        if is_finished(job, state):
            job.display.warn(told)
        else:
            job.display.warn(f"{told}, so the best epoch is looked for anew")
            state.bests = []
    if not is_finished(job, state):
        job.display.note(
            f"{folder}: goes on after update {job.updates(state):,} of {job.total_epochs * job.sampler.steps:,}"
        )
    return True


def find_best(job: Job, state: TrainState, folder: Path) -> None:
    """Bring the files of the best weights and the state to one account: what it knows of and what is there."""
    known = state.bests
    files = BestFiles(folder, job.config.output.keep_best, known)
    state.bests = share(job.accelerator, files.settle(known) if job.accelerator.is_main_process else None)
    if known and state.bests[:1] != known[:1]:
        instead = f"those of epoch {state.best['epoch']} take their place" if state.best else "they are looked for anew"
        job.display.warn(
            f"{folder}: the best weights, of epoch {known[0]['epoch']}, are not there or are damaged; {instead}"
        )


def validation_changes(job: Job, saved: dict[str, Any], folder: Path) -> Changes | None:
    """Return what became of the images that a run was validated with; None where its save does not say.

    Raises:
        DataError: They are others, or have other labels, so that what was measured cannot be compared.
    """
    if "validation" not in saved:
        job.display.note(
            f"{folder}: was saved by an earlier vitrail, so it is not known whether its validation images are the same"
        )
        return None
    compared = None if job.roster is None else compare(Roster.from_dict(saved["validation"]), job.roster)
    changes = share(job.accelerator, compared)
    if changes.are_others:
        raise DataError(
            f"{folder}: was validated with other images than those in data.root: {changes}; put them back as they "
            f"were, or begin a new run from its weights with {command('train', '--fork', folder)}"
        )
    return changes


def has_content(path: Path) -> bool:
    """Say whether a file is there and not empty."""
    return path.is_file() and path.stat().st_size > 0


def last_state(job: Job, folder: Path) -> dict[str, Any]:
    """Read a run's last whole save in the first process, for all of them."""
    main = job.accelerator.is_main_process
    return share(job.accelerator, load_last_state(folder / "last", job.display.warn) if main else None)


def load_fork(job: Job, model: VisionModel, folder: Path) -> None:
    """Put the weights of another run into a model: the averaged ones, where it averages."""
    saved = last_state(job, folder)
    check_classes(saved["classes"], job.data.classes, folder)
    try:
        load_weights(model, saved["ema"] or saved["model"], folder)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; a fork keeps the run's model, so leave out what changes model.*") from error
    model.to(job.accelerator.device)


def claim(accelerator: Accelerator, folder: Path, exits: ExitStack, display: Display) -> None:
    """Hold a run folder until this process leaves it.

    Raises:
        TrainingError: Another process works on it.
        CheckpointError: The folder cannot be written.
    """
    refusal: VitrailError | None = None
    if accelerator.is_main_process:
        try:
            exits.enter_context(held(folder, display.note))
        except (CheckpointError, TrainingError) as error:
            refusal = error
    if (refusal := share(accelerator, refusal)) is not None:  # in all processes alike, so that none waits for another
        raise refusal


def open_run(job: Job, state: TrainState, name: str, resume: Path | None, exits: ExitStack) -> Run:
    """Make the folder of a new run, or open that of a resumed one, on the first process; and tell the others."""
    config, accelerator = job.config, job.accelerator
    folder, log, steps, best = resume, None, None, None
    outbox = Outbox(job.display.warn)
    if folder is None:
        if accelerator.is_main_process:
            folder = create_run(Path(config.output.root).expanduser(), config.output.name, name)
        folder = share(accelerator, folder)
        assert folder is not None
        claim(accelerator, folder, exits, job.display)
    if accelerator.is_main_process:
        tidy_run(folder)
        write_whole(folder / "config.yaml", to_yaml(config, f"Settings of the run {folder.name}.").encode())
        job.display.keep(folder / "log.txt")
        log = RunLog(folder, state.rows, Trackers(tracker_openers(config, folder), job.display.warn))
        outbox.put("metrics.jsonl", log.write)
        boards = {"tensorboard": partial(TensorBoard, folder / "tensorboard" / "steps")}
        wanted = {name: boards[name] for name in config.output.trackers if name in boards}
        steps = StepLog(folder, job.updates(state), Trackers(wanted, job.display.warn))
        best = BestFiles(folder, config.output.keep_best)
        best.saved(state.bests)  # or the run was killed between its last save and this
    timeout_s = 60 * config.train.dist_timeout_minutes
    watchdog = Watchdog(shared_store(accelerator), accelerator.process_index, accelerator.num_processes, timeout_s)
    return Run(
        folder=folder, outbox=outbox, agreement=Agreement(accelerator), watchdog=watchdog, log=log, steps=steps,
        best=best, spent_s=state.elapsed_s,
        inputs=Inputs() if accelerator.is_main_process and not job.updates(state) else None,
    )  # fmt: skip


def tracker_openers(config: TrainConfig, folder: Path) -> dict[str, Callable[[int], Tracker]]:
    """Return what opens each tracker that is asked for."""
    openers: dict[str, Callable[[int], Tracker]] = {}
    for name in config.output.trackers:
        if name == "tensorboard":
            openers[name] = partial(TensorBoard, folder / "tensorboard")
        else:
            openers[name] = lambda _, name=name: open_tracker(name, folder, flat(config))
    return openers


def is_finished(job: Job, state: TrainState) -> bool:
    """Say whether all epochs are done, or as many without a better one as the settings allow."""
    patience = job.config.train.patience
    out_of_patience = patience is not None and bool(state.best) and state.epoch - state.best["epoch"] >= patience
    return state.epoch >= job.total_epochs or out_of_patience


def is_save_due(job: Job, state: TrainState, run: Run) -> bool:
    """Say whether this process wants to save; the clock is the first process's."""
    output = job.config.output
    if output.save_every_updates is not None and job.updates(state) % output.save_every_updates == 0:
        return True
    return job.accelerator.is_main_process and time.monotonic() - run.saved >= 60 * output.save_every_minutes


def save(job: Job, state: TrainState, run: Run, *, must: bool = False) -> bool:
    """Save all that a resume needs; a full disk is told, and raises only if it `must` be written.

    Returns:
        False while updates are left out, or the weights are not finite: the save before is the good one, and stays.
    """
    run.saved = time.monotonic()
    if int(state.guard.counts[1]) or not has_finite_weights(state.model, job.accelerator):
        return False
    run.watchdog.move(f"saving after update {job.updates(state):,}")
    with Stopwatch(job.accelerator.device, state.seconds).waiting("save_s"):
        state.elapsed_s = run.elapsed_s()
        saved = state.to_dict(job.accelerator) | {
            "settings": flat(job.config),
            "classes": list(job.data.classes),
            "options": model_options(state.model),
            "images": job.known_by["images"]["train"],
            "validation": job.roster.to_dict() if job.roster is not None else None,
            "world": job.accelerator.num_processes,
        }
        if job.accelerator.is_main_process:
            try:
                if run.steps is not None:
                    run.steps.sync()
                save_state(run.folder / "last", saved, job.updates(state), job.config.output.keep_last)
                if run.best is not None:
                    run.best.saved(state.bests)
            except CheckpointError as error:
                if must:
                    raise
                job.display.warn(f"{error}; training goes on, and the next save is tried")
            run.outbox.retry()
    return True


def stop_or_save(job: Job, state: TrainState, run: Run, *, saving: bool) -> None:
    """Do what this process or another was told to, or finds due; all processes call it equally often.

    Raises:
        Stopped: The run was told to stop, and is saved.
    """
    stopping, saving = run.agreement.exchange(job.stop.reason is not None, saving)
    saved = save(job, state, run, must=stopping) if stopping or saving else False
    if stopping:
        run.agreement.finish()
        # the first process has written by then; a launcher kills all once one of them ends
        told = gather_texts(job.accelerator, [(job.accelerator.process_index, job.stop.reason)])
        number, reason = next(one for one in told if one[1])
        where = f" in process {number}" if number else ""
        total = job.total_epochs * job.sampler.steps
        raise Stopped(
            f"stopped by {reason}{where} after update {job.updates(state):,} of {total:,}, "
            f"{'and saved' if saved else 'whose numbers were not finite, so the save before stays'}; go on with: "
            f"{command('train', '--resume', run.folder)}"
        )


def report_on(job: Job, state: TrainState, run: Run) -> Path | None:
    """Write the page of a finished run; what hinders that, a signal too, costs the page and not the run."""

    def counted() -> None:
        run.watchdog.stir()
        job.display.advance()
        stopping, _ = run.agreement.exchange(job.stop.reason is not None, False)
        if stopping:
            raise Stopped(f"stopped by {job.stop.reason or 'another process'}")

    run.watchdog.move("evaluating the best weights")
    job.display.begin("report", len(job.val_loader))
    try:
        with interruptible(run.folder):
            return write_run_report(job, state, run.folder, run.elapsed_s(), counted)
    except Interrupted:
        raise
    except Exception as error:  # whatever it is, memory that is short too, all of the run is done and saved
        reason = error if isinstance(error, VitrailError) else f"{type(error).__name__}: {error}"
        later = command("evaluate", run.folder / "best.safetensors", "--report", run.folder / "report")
        job.display.warn(f"{reason}; the run is finished, but its report is left out; to write it: {later}")
        return None
    finally:
        job.display.end()


def roll_back(job: Job, state: TrainState, run: Run, reason: str) -> None:
    """Go back to the last save, to go on at half the learning rate.

    Raises:
        TrainingError: That was done as often as it may be.
    """
    settings, updates = job.config.train, job.updates(state)
    tried = (
        f"; went back {state.rollbacks} times, down to {1 / 2**state.rollbacks:g} of the learning rate"
        if state.rollbacks
        else ""
    )
    paths = list_states(run.folder / "last")
    if state.rollbacks >= settings.rollbacks:
        raise TrainingError(
            f"{reason}{tried}; last good save: {paths[0] if paths else 'none'}; begin a new run from its weights with "
            f"{command('train', '--fork', run.folder)}, a lower optim.lr, optim.clip_norm=1 or "
            "train.precision=float32, or look closer with train.detect_anomaly=true"
        )
    rollbacks = state.rollbacks + 1
    saved = last_state(job, run.folder)
    bests = state.bests  # of the weights that lie there, even if their epochs are now undone
    state.restore(saved, job.accelerator.process_index, job.accelerator.num_processes)
    state.rollbacks, state.bests = rollbacks, bests
    if run.log is not None:
        run.log.rewind(state.rows)
        run.outbox.put("metrics.jsonl", run.log.write)
    if run.steps is not None:
        run.steps.rewind(job.updates(state))
    job.display.advance(job.updates(state) - updates)
    job.display.warn(
        f"{reason}; went back to update {job.updates(state):,}, and on from there at {1 / 2**rollbacks:g} of the "
        "learning rate"
    )


def diagnose(job: Job, state: TrainState, update: int) -> str:
    """Make the batch of an update again and say what is not finite in it, on whichever process."""
    epoch, step = divmod(update, job.sampler.steps)
    sampler = copy.copy(job.sampler)
    sampler.epoch, sampler.first_step = epoch, step
    found = None
    for keys, key in zip(islice(sampler, sampler.accumulate), mixing_keys(job, epoch, step), strict=True):
        images, targets = prepare(
            job.loader.read(keys), job.config, job.preprocess, job.objective, key, job.accelerator.device
        )

        def loss(images: Tensor = images, targets: Tensor = targets) -> Tensor:
            with autocast(job.accelerator.device, job.precision):
                logits = state.model(images)
            return job.objective.loss(logits.float()[: len(targets)], targets)

        torch.manual_seed(sample_key(job.config.train.seed, epoch, step, 1 + sampler.rank))
        found = found or first_nonfinite(state.model, loss)
    everywhere = [text for text in gather_texts(job.accelerator, [found]) if text]
    return everywhere[0] if everywhere else "only with the weights it had then, not with those it has now"


def has_finite_weights(model: nn.Module, accelerator: Accelerator) -> bool:
    """Say whether every weight is a number, in all processes."""
    mine = [local(weights.detach()).isfinite().all() for weights in model.parameters()]
    return not any_process(accelerator, ~torch.stack(mine).all())


def is_better(row: dict[str, Any], best: dict[str, Any], monitor: str) -> bool:
    """Say whether an evaluated epoch beats the best one; of two as accurate, that of lower loss does."""
    if row[monitor] is None or not best:
        return row[monitor] is not None
    sign = -1 if monitor.endswith("loss") else 1
    return (sign * row[monitor], -row["val_loss"]) > (sign * best[monitor], -best["val_loss"])


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Turn a second Ctrl-C into what to type next."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped at once; go on from the last save with: {command('train', '--resume', folder)}"
        ) from None


@contextmanager
def anomalies_named(wanted: bool) -> Iterator[None]:
    """Turn what autograd's anomaly detection finds into one line."""
    if not wanted:
        yield
        return
    try:
        with torch.autograd.set_detect_anomaly(True):
            yield
    except RuntimeError as error:
        if "nan values" not in str(error):
            raise
        raise TrainingError(f"train.detect_anomaly: {error}; its forward call stands in the warning above") from error


def due(number: int, every: int, total: int) -> bool:
    """Say whether something that happens at every `every`-th of `total` steps, and at the last, happens at this one."""
    return (number + 1) % every == 0 or number + 1 == total
