"""The training loop, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import to_dict
from vitrail.data.loader import Batch
from vitrail.display import Display, Quiet
from vitrail.distillation.projection import without_projection
from vitrail.distillation.token_head import without_token_head
from vitrail.distributed.processes import (
    choose_precision,
    gather_texts,
    keep_compiled_code,
    processes,
    share,
    sum_over_processes,
)
from vitrail.distributed.sharding import gather_full
from vitrail.errors import TrainingError, command, shorten, tell_count
from vitrail.evaluation.measure import Measured
from vitrail.images.input_check import ENOUGH
from vitrail.images.preprocess import normalise
from vitrail.training.batch_norm import explain_batch_norm, has_batch_norm, share_statistics
from vitrail.training.diagnosis import diagnose, name_anomalies
from vitrail.training.distilling import ask_teacher
from vitrail.training.evaluating import evaluate_weights, measure_before
from vitrail.training.given_loss import GivenLoss
from vitrail.training.imitation import Imitation
from vitrail.training.optim.lora import merge_adapters
from vitrail.training.optim.nonfinite import has_finite_weights
from vitrail.training.optim.optimizers import restart_counts, set_learning_rate
from vitrail.training.run.average import average_best, lacks_average
from vitrail.training.run.folder import plot_curves
from vitrail.training.run.neighbours_after import measure_after
from vitrail.training.run.open_run import Run, RunFiles, claim, open_run
from vitrail.training.run.progress import (
    Progress,
    Speedometer,
    latest_rate,
    log_step,
    read_progress,
    show_progress,
)
from vitrail.training.run.report import has_report, report_on
from vitrail.training.run.resume import (
    has_save,
    is_save_due,
    load_fork,
    restore,
    roll_back,
    save,
    stop_or_save,
)
from vitrail.training.run.state import TrainState
from vitrail.training.run.stop import Stop, interruptible
from vitrail.training.run.trackers import check_trackers
from vitrail.training.setup import (
    Job,
    build_job,
    build_state,
    learned_classes,
    tell_of_slow_average,
)
from vitrail.training.shortage import (
    on_cpu,
    tell_of_short_memory,
    tell_of_slow_precision,
    warn_of_load,
    warn_of_waiting,
    why_memory_is_too_short,
)
from vitrail.training.step import mixing_keys, seed_dropout, train_step
from vitrail.training.stopwatch import Stopwatch
from vitrail.weights.checkpoint import Record, model_options, provenance

WORTH_A_WORD_S = 20.0
"""Seconds of an epoch from which on a slow loader or a loaded machine is said."""


@dataclass(frozen=True)
class TrainResult:
    """A finished run: its folder, its numbers and where to look next."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    """The row of numbers of each epoch, as in metrics.jsonl."""
    best: dict[str, Any]
    """The row of the best weights."""
    monitor: str
    """Which number of a row made it the best."""
    seconds: float
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""
    example: str
    """Path of a validation image."""
    report: Path | None
    """HTML report of the best weights; None where it could not be written, or nothing was
    trained."""
    has_head: bool
    """Whether the weights give classes; without labels, they give features alone."""


def train(
    config: TrainConfig,
    *,
    name: str = "run",
    resume: Path | None = None,
    fork: Path | None = None,
    display: Display | None = None,
    loss: GivenLoss | None = None,
) -> TrainResult:
    """Train a model and write its run folder.

    Args:
        config: All settings.
        name: Folder of the run where `output.name` does not say.
        resume: Folder of a run to go on with, from its last save; `config` may differ in its length
            only.
        fork: Folder of a run whose weights, averaged where it averages, a new run begins with.
        display: Where progress is shown.
        loss: The user's own loss, whose name is train.loss; None is that of the labels.

    Raises:
        ConfigError: Settings that do not fit together, the model or the data.
        DataError: The images are not there, or not as they should be.
        CheckpointError: A file of the run cannot be read or written.
        TrainingError: The loss is no longer finite, and going back did not help.
        Stopped: A signal or train.max_hours said so; everything is saved.
    """
    display = display or Quiet()
    settings = config.train
    precision = choose_precision(settings.precision, settings.device)
    patience = settings.dist_timeout_minutes
    with (
        processes(precision, settings.device, 2 * patience, patience) as accelerator,
        Stop(settings.max_hours) as stop,
        ExitStack() as exits,
    ):
        # Data, model and optimizer
        check_trackers(config.output.trackers)
        torch.manual_seed(settings.seed)
        if precision != settings.precision:
            display.note(f"train.precision={settings.precision} is {precision} on this device")
        tell_of_slow_precision(precision, accelerator.device, display)
        if resume is not None:
            claim(accelerator, resume, exits, display)
        is_new = fork is None and (resume is None or not has_save(accelerator, resume))
        job, model = build_job(config, accelerator, precision, display, stop, is_new, loss)
        job.loader.on_lost = job.val_loader.on_lost = stop.ask
        if fork is not None:
            load_fork(job, model, fork)
        if job.distillation is not None:
            exits.callback(job.distillation.close)
        state = build_state(job, model)
        wrapped, optimizer = prepare_for_training(job, state)

        # Run folder, new or resumed
        is_restored = resume is not None and restore(job, state, resume)
        run = open_run(job, state, name, resume, exits)
        warn_of_load(job, run, tasks=1)
        if job.is_finished(state):
            tell_how_to_lengthen(job, state, run)
        elif not is_restored:
            tell_of_slow_average(job)
            for warning in explain_batch_norm(state.model, config, accelerator.num_processes):
                display.warn(warning)
            for warning in job.objective.warnings(config, job.training_counts, job.data.classes):
                display.warn(warning)
            save(job, state, run, must=True)  # from here on there is always something to go back to
        is_measured = settings.eval_first or job.neighbours is not None
        if is_measured and not state.rows and not job.updates(state):
            evaluate_initial_weights(job, state, run)

        # Loop, then the report
        train_to_end(job, state, run, wrapped, optimizer)
        return finish_run(job, state, run)


def prepare_for_training(job: Job, state: TrainState) -> tuple[nn.Module, Any]:
    """Return the model and the optimizer as Accelerate prepares them, compiled if the settings ask for it."""
    if job.config.train.compile:
        cache = keep_compiled_code()
        job.display.note(
            "compiling the model: the first updates take a minute, and less the next time "
            f"({cache})"
        )
        state.model.compile()
    # a sharded model sums its gradients itself; evaluation_mode leaves DDP out
    wrapped = job.accelerator.prepare_model(state.model, evaluation_mode=job.config.train.shard)
    optimizer = job.accelerator.prepare_optimizer(state.optimizer)
    state.scaler = job.accelerator.scaler
    return wrapped, optimizer


def tell_how_to_lengthen(job: Job, state: TrainState, run: Run) -> None:
    """Say that a resumed run is finished, and what to type to train on."""
    longer = command("train", "--extend", run.folder, f"train.epochs={2 * job.config.train.epochs}")
    anew = command("train", "--fork", run.folder)
    job.display.note(
        f"{run.folder} is finished, with {tell_count(state.epoch, 'epoch')}; to lengthen it: {longer}; to begin "
        f"a new run from its weights: {anew}"
    )


def train_to_end(job: Job, state: TrainState, run: Run, wrapped: nn.Module, optimizer: Any) -> None:
    """Make all epochs that are left, and the last save."""
    first_epoch = state.epoch
    job.display.begin("train", job.total_updates, job.updates(state))
    with interruptible(run.folder), name_anomalies(job.config.train.detect_anomaly):
        while not job.is_finished(state):
            if is_thawing(job, state):
                wrapped = thaw(job, state)
            if train_epoch(job, state, run, wrapped, optimizer):
                finish_epoch(job, state, run)
    job.display.end()
    if first_epoch < state.epoch < job.total_epochs:
        job.display.note(
            f"stopped early: no better {job.monitor} for {tell_count(job.config.train.patience or 0, 'epoch')}"
        )
    if state.epoch > first_epoch:
        save(job, state, run, must=True)


def is_thawing(job: Job, state: TrainState) -> bool:
    """Say whether what is frozen is trained too from this epoch on, in which a resumed run may have begun."""
    epochs = job.config.freeze.epochs
    return state.freeze is not None and epochs is not None and state.epoch >= epochs


def thaw(job: Job, state: TrainState) -> nn.Module:
    """Train from here on what was frozen; return the model as Accelerate prepares it for that."""
    assert state.freeze is not None
    state.freeze.end()
    if (state.epoch, state.step) == (job.config.freeze.epochs, 0):
        restart_counts(state.optimizer, state.freeze.parameters)
    state.freeze = None
    # DDP sums the gradients of those weights that asked for one when it was built
    return job.accelerator.prepare_model(state.model)


def train_epoch(job: Job, state: TrainState, run: Run, wrapped: nn.Module, optimizer: Any) -> bool:
    """Make the updates of an epoch from where the state stands; False if the run had to go back instead.

    Raises:
        Stopped: The run was told to stop, and is saved.
        TrainingError: See `roll_back`; or memory is too short.
    """
    config, sampler, epoch = job.config, job.sampler, state.epoch
    watch = Stopwatch(job.accelerator.device, state.seconds)
    sampler.epoch, sampler.first_step = epoch, state.step
    speedometer = Speedometer(state.step, config.train.batch_size)
    wrapped.train()
    if state.freeze is not None:
        state.freeze.still()
    if job.distillation is not None:
        run.watchdog.move(f"reading the teacher's answers for epoch {epoch + 1}")
        with watch.waiting("teacher_s"):
            job.distillation.begin_epoch(epoch)
    batches = iter(job.loader)
    for step in range(state.step, sampler.steps):
        begun = time.perf_counter()
        update = epoch * sampler.steps + step

        # Images
        set_learning_rate(optimizer, job.rate(update) / 2**state.rollbacks)
        seed_dropout(config, sampler, epoch, step)
        run.watchdog.move(f"reading the images of update {update + 1:,}")
        with watch.waiting("data_s"):
            micro_batches = [next(batches) for _ in range(config.train.accumulate)]
        state.unread.update(bad for micro_batch in micro_batches for bad in micro_batch.bad)

        # Update
        if job.distillation is not None:
            run.watchdog.move(f"asking the teacher for update {update + 1:,}")
            with watch.waiting("teacher_s"):
                ask_teacher(job.distillation, micro_batches)
        run.watchdog.move(f"computing update {update + 1:,}")
        check_inputs(job, run, micro_batches, is_last=step + 1 == sampler.steps)
        keys = mixing_keys(config, sampler, epoch, step)
        parts = job.memory.parts
        try:
            sums, is_skipped, norm = train_step(job, wrapped, optimizer, micro_batches, keys, watch)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"{why_memory_is_too_short(job, update)} ({shorten(str(error))})"
            ) from error
        if job.memory.parts > parts:
            tell_of_short_memory(job, update, is_cut_felt=has_batch_norm(state.model))
        state.sums += sums
        state.guard.record(is_skipped, update)
        if state.ema:
            state.ema.decay = job.average_decay(update)
            state.ema.update(state.model)
        state.step = step + 1
        job.display.advance()

        # Numbers, for which the device is waited for
        if due(step, config.train.log_every, sampler.steps):
            run.watchdog.move(f"adding up the losses until update {update + 1:,}")
            progress = read_progress(job, state, norm)
            now = time.perf_counter()
            speed = speedometer.read(state.step, now)
            watch.read()
            show_progress(job, state, progress, speed, now - begun)
            if progress.first_skipped >= 0 and not go_on_after_skips(job, state, run, progress):
                return False
            state.guard.clear_first()
            log_step(job, state, run, progress, speed)
        state.seconds["train_s"] = state.seconds.get("train_s", 0.0) + time.perf_counter() - begun

        # Save or stop
        stop_or_save(job, state, run, saving=is_save_due(job, state, run))
    return True


def go_on_after_skips(job: Job, state: TrainState, run: Run, progress: Progress) -> bool:
    """Warn of skipped updates, or go back to the last save and return False where there are too many in a row.

    Raises:
        TrainingError: See `roll_back`.
    """
    limit = job.config.train.skip_limit
    # a loss scale that is too high overflows now and then, and is lowered
    if job.accelerator.scaler is not None and progress.skipped_in_a_row < limit:
        return True
    more = f" and {progress.skipped - 1} more of this epoch" if progress.skipped > 1 else ""
    cause = diagnose(job, state, progress.first_skipped)
    reason = f"update {progress.first_skipped + 1:,}{more} left out, not finite: {cause}"
    if progress.skipped_in_a_row >= limit:
        roll_back(job, state, run, reason)
        return False
    job.display.warn(reason)
    return True


def check_inputs(job: Job, run: Run, micro_batches: Sequence[Batch], *, is_last: bool) -> None:
    """Warn where the first images of a run look as if they were normalised for other pixels."""
    if run.inputs is None:
        return
    mean, std = job.preprocess.mean, job.preprocess.std
    for micro_batch in micro_batches:
        # on the CPU, where most images still are
        run.inputs.add(normalise(micro_batch.images.cpu(), mean, std))
    if run.inputs.images >= ENOUGH or is_last:
        if doubt := run.inputs.doubt(mean, std):
            job.display.warn(f"the first {doubt}")
        run.inputs = None


def finish_epoch(job: Job, state: TrainState, run: Run) -> None:
    """Evaluate, write the row of numbers and the best weights, and begin the next epoch.

    Raises:
        Stopped: The run was told to stop, and is saved; the evaluation is begun anew when it goes
            on.
        TrainingError: See `roll_back`, or no training image can be read.
    """
    # Training numbers
    run.watchdog.move(f"adding up epoch {state.epoch + 1}")
    row = sum_up_training(job, state)
    if not has_finite_weights(state.model, job.accelerator):
        roll_back(
            job, state, run, f"the weights are not finite after update {job.updates(state):,}"
        )
        return

    # Evaluation
    unread, thresholds = set(state.unread), None
    if due(state.epoch, job.config.train.eval_every, job.total_epochs):
        measured, numbers = evaluate_epoch(job, state, run, f"epoch {state.epoch + 1}")
        thresholds = measured.metrics.thresholds
        unread.update(measured.bad_files)
        row |= numbers
        if state.epoch + 1 == job.total_epochs:
            for warning in measured.metrics.warnings:
                job.display.warn(warning)
    warn_of_unread(job, state, unread)

    # Unreadable images and time
    row["n_bad"] = len(state.bad_files)
    row["images_per_s"] = round(
        job.sampler.steps * job.config.train.batch_size / state.seconds["train_s"], 1
    )
    row |= {name: round(value, 3) for name, value in sorted(state.seconds.items())}
    row["elapsed_s"] = round(run.elapsed_s(), 1)
    if state.seconds["train_s"] > WORTH_A_WORD_S:
        warn_of_waiting(job, state, run)
        threads = torch.get_num_threads() if on_cpu(job) else 1
        warn_of_load(job, run, tasks=job.loader.num_workers + threads)
    keep_row(job, state, run, row, thresholds)

    # Next epoch
    state.epoch += 1
    state.begin_epoch()


def evaluate_initial_weights(job: Job, state: TrainState, run: Run) -> None:
    """Evaluate the weights that a run begins with as those of epoch 0, the best until an epoch is better; and save.

    Raises:
        Stopped: The run was told to stop, and is saved; they are evaluated when it goes on.
    """
    job.display.begin("evaluate the initial weights", len(job.val_loader))
    measured, numbers = evaluate_epoch(job, state, run, "the initial weights")
    job.display.end()
    row: dict[str, Any] = {"epoch": 0, "updates": 0, "lr": job.rate(0), "train_loss": None}
    row |= numbers
    if job.neighbours is not None:
        run.watchdog.move("measuring k-NN of the initial weights")
        row |= measure_before(job, evaluated_model(state), run.watchdog.stir)
    warn_of_unread(job, state, measured.bad_files)
    row["n_bad"] = len(state.bad_files)
    keep_row(job, state, run, row, measured.metrics.thresholds)
    state.begin_epoch()
    save(job, state, run, must=True)  # a run that goes back to here knows what it began with


def keep_row(
    job: Job, state: TrainState, run: Run, row: dict[str, Any], thresholds: tuple[float, ...] | None
) -> None:
    """Show and write the numbers of an epoch, and its weights where they are the best so far. Collective."""
    job.display.row(row)
    state.rows.append(row)
    weights = None
    if "val_loss" in row and is_better(row, state.gained, job.monitor, job.config.train.min_delta):
        state.gained = row
    if "val_loss" in row and is_better(row, state.best, job.monitor):
        state.bests = [row, *state.bests][: job.config.output.keep_best]
        weights = gather_full(evaluated_model(state).state_dict())
        if job.distillation is not None:
            weights = without_projection(weights)
        if job.token_labels is not None:
            weights = without_token_head(weights)
        if job.config.lora.rank is not None:
            weights = merge_adapters(weights, job.config.lora.scale)
    if run.files is not None:
        run.files.log.add(row)
        run.outbox.put("metrics.jsonl", run.files.log.write)
        if weights is not None:
            write_best(job, state, run, run.files, weights, thresholds)


def sum_up_training(job: Job, state: TrainState) -> dict[str, Any]:
    """Return the row of an epoch's training numbers, over all ranks.

    Raises:
        TrainingError: No training image can be read.
    """
    totals = sum_over_processes(job.accelerator, state.sums)[0].tolist()
    loss, correct, images, agreeing = totals
    skipped = int(state.guard.counts[0])
    if not images and not skipped:
        name, reason = min(state.unread)
        raise TrainingError(f"no training image could be read; one is {name} ({reason})")
    row: dict[str, Any] = {
        "epoch": state.epoch + 1,
        "updates": job.updates(state),
        "lr": latest_rate(job, state),
        "train_loss": loss / images if images else None,
        **job.objective.row_numbers(correct, images),
        "skipped": skipped,
        "overflow_rate": skipped / job.sampler.steps,
    }
    if job.distillation is not None and not job.config.data.unlabelled:
        row["train_agreement"] = 100 * agreeing / images if images else None
    if state.scaler is not None:
        row["loss_scale"] = state.scaler.get_scale()
    return row


def evaluate_epoch(
    job: Job, state: TrainState, run: Run, what: str
) -> tuple[Measured | Imitation, dict[str, Any]]:
    """Evaluate the weights, or their average, on the validation images; `what` names them where a rank hangs.

    Returns:
        What was measured, and the numbers of it that an epoch's row has.

    Raises:
        Stopped: The run was told to stop, and is saved.
    """

    def count_batch() -> None:
        run.watchdog.stir()
        stop_or_save(job, state, run, saving=False)

    run.watchdog.move(f"evaluating {what}")
    averages = [state.ema.module] if state.ema else []
    share_statistics(job.accelerator, state.model, *averages)
    with Stopwatch(job.accelerator.device, state.seconds).waiting("eval_s"):
        return evaluate_weights(job, evaluated_model(state), count_batch)


def evaluated_model(state: TrainState) -> Any:
    """Return the model that is evaluated and kept: the average of the weights, where there is one."""
    return state.ema.module if state.ema else state.model


def write_best(
    job: Job,
    state: TrainState,
    run: Run,
    files: RunFiles,
    weights: dict[str, Tensor],
    thresholds: tuple[float, ...] | None,
) -> None:
    """Write the best weights so far, whose row is the first of `state.bests`, with all that their file says."""
    record = Record(
        model=job.model_name,
        options=model_options(state.model),
        classes=learned_classes(job.config, job.data),
        preprocess=job.preprocess,
        recipe=to_dict(job.config),
        metrics=state.best,
        provenance=provenance() | job.origin,
        thresholds=thresholds,
    )
    # a copy, as it may be written only later, when a full disk is no longer full
    copied = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
    run.outbox.put("best", partial(files.best.put, copied, record, state.bests[1:]))


def warn_of_unread(job: Job, state: TrainState, unread: Iterable[tuple[str, str]]) -> None:
    """Warn of each image that could not be read and was not named before, on whichever rank. Collective."""
    unread_anywhere = set(gather_texts(job.accelerator, sorted(unread)))
    for name, reason in sorted(unread_anywhere - state.bad_files):
        job.display.warn(f"{name}: {reason}; left out")
        state.bad_files.add((name, reason))


def finish_run(job: Job, state: TrainState, run: Run) -> TrainResult:
    """Write the report and the curves of a finished run, where they are not there yet.

    Raises:
        CheckpointError: Numbers or weights that wait for a disk that is full still cannot be
            written.
    """
    run.outbox.finish()
    after = measure_after(job, state, run)
    if lacks_average(job, state, run.folder):
        average_best(job, state, run)
    # of a run that was killed between its last save and its report, or whose report was lost
    lacks_report = share(job.accelerator, not has_report(run.folder, job.updates(state)))
    report = report_on(job, state, run) if lacks_report and state.best else None
    run.votes.finish()
    example = ""
    if job.is_main:
        curves = run.folder / "curves.png"
        if lacks_report or not curves.exists():
            title = f"{run.folder.name}: {job.model_name}, {len(job.data.train):,} images"
            plot_curves(state.rows, state.best, curves, title)
        # the run is done and saved; without an example, the last line names none
        with suppress(OSError):
            example = job.data.val.example(run.folder)
    return TrainResult(
        folder=run.folder,
        rows=tuple({**row, **after} if row is state.best else row for row in state.rows),
        best={**state.best, **after},
        monitor=job.monitor,
        seconds=time.monotonic() - run.began,
        bad_files=tuple(sorted(state.bad_files)),
        example=example,
        report=report,
        has_head=not job.config.data.unlabelled,
    )


def is_better(row: dict[str, Any], best: dict[str, Any], monitor: str, least: float = 0.0) -> bool:
    """Say whether an evaluated epoch beats the best one, by more than `least`.

    Where any gain counts, of two as accurate that of lower loss is the better.
    """
    if row[monitor] is None or not best:
        return row[monitor] is not None
    sign = -1 if monitor.endswith("loss") else 1
    if least > 0:
        return sign * (row[monitor] - best[monitor]) > least
    return (sign * row[monitor], -row["val_loss"]) > (sign * best[monitor], -best["val_loss"])


def due(number: int, every: int, total: int) -> bool:
    """Say whether something that happens at every `every`-th of `total` steps, and at the last, happens at this one."""
    return (number + 1) % every == 0 or number + 1 == total
