"""Survive and resume: save a run, stop it, go on from its last save, fork it, and roll back after NaN or Inf."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from vitrail.classes.matching import check_classes
from vitrail.config.resolve import flatten
from vitrail.config.training_sections import LoraSection
from vitrail.data.roster import Changes, Roster, compare
from vitrail.distillation.projection import without_projection
from vitrail.distillation.token_head import without_token_head
from vitrail.distributed.processes import gather_texts, share
from vitrail.errors import (
    CheckpointError,
    DataError,
    Stopped,
    TrainingError,
    command,
    names_flags,
    tell_count,
)
from vitrail.models.family import VisionModel
from vitrail.models.registry import build_config
from vitrail.training.optim.lora import merge_adapters
from vitrail.training.optim.nonfinite import has_finite_weights
from vitrail.training.run.best_files import BestFiles
from vitrail.training.run.open_run import Run
from vitrail.training.run.state import TrainState, list_states, load_last_state, save_state
from vitrail.training.setup import Job
from vitrail.training.start import FREE, LENGTH, describe_differences, differences
from vitrail.training.stopwatch import Stopwatch
from vitrail.weights.checkpoint import load_weights, model_options


def has_save(accelerator: Accelerator, folder: Path) -> bool:
    """Say whether there is a save in a run folder to go on from, as the first rank sees it."""
    return share(accelerator, bool(list_states(folder / "last")))


def restore(job: Job, state: TrainState, folder: Path) -> bool:
    """Bring the state to a run's last save, and return whether there is one.

    Raises:
        CheckpointError: No save can be read, or config.yaml was changed.
        DataError: The images are others.
    """
    if not has_save(job.accelerator, folder):
        _refuse_lost_saves(job, folder)
        job.display.note(f"{folder}: nothing was saved yet; it begins anew")
        return False
    saved = load_shared_state(job, folder)
    _check_same_run(job, state, saved, folder)
    _note_other_world(job, saved["world"], folder)
    validation = validation_changes(job, saved, folder)
    state.restore(saved, job.accelerator.process_index, job.accelerator.num_processes)
    if job.accelerator.num_processes == 1:
        job.memory.parts = saved.get("parts", 1)
    if not job.is_finished(state):
        settle_best_files(job, state, folder)
    if validation is not None and validation.rewritten:
        warning = f"{folder}: its validation images are others than before: {validation}; accuracies cannot be compared"
        if job.is_finished(state):
            job.display.warn(warning)
        else:
            job.display.warn(f"{warning}, so the best epoch is looked for anew")
            state.bests, state.gained = [], {}
    if not job.is_finished(state):
        job.display.note(
            f"{folder}: goes on after update {job.updates(state):,} of {job.total_updates:,}"
        )
    return True


def _refuse_lost_saves(job: Job, folder: Path) -> None:
    """Refuse to begin a run anew in a folder where only its saves are gone."""
    results = [folder / "metrics.jsonl", folder / "best.safetensors"]
    made = share(job.accelerator, [path.name for path in results if has_content(path)])
    if made:
        raise CheckpointError(
            f"{folder / 'last'}: holds no save to go on from, though there is {made[0]}; put one "
            f"back from a copy, or move {folder} away to begin it anew"
        )


def _check_same_run(job: Job, state: TrainState, saved: dict[str, Any], folder: Path) -> None:
    """Refuse a save of other classes, another model, other training images or other settings."""
    check_classes(saved["classes"], job.data.classes, folder)
    # fields that are new since it was saved have their defaults
    if build_config(job.model_name, **saved["options"]) != state.model.config:
        raise CheckpointError(
            f"{folder / 'config.yaml'}: was changed, and no longer describes the run's model"
        )
    if saved["images"] != job.fingerprints["images"]["train"]:
        raise DataError(
            f"{folder}: was trained on other images than those in data.root; give the folder it "
            "was trained on, or "
            f"begin a new run from its weights with {_begin_anew(job, folder)}"
        )
    if saved.get("token_labels") != label_digest(job):
        raise CheckpointError(
            f"{folder}: was trained with other token labels than those of token_labels.folder="
            f"{job.config.token_labels.folder}; put those back, or begin a new run from its "
            f"weights with {_begin_anew(job, folder)}"
        )
    if saved.get("teacher") != teacher_digest(job):
        raise CheckpointError(
            f"{folder}: was taught by another model than {job.config.distill.teacher}; put its "
            "teacher back, or begin a new run from its weights with "
            f"{_begin_anew(job, folder)}"
        )
    if changed := differences(saved["settings"], flatten(job.config), (*FREE, *LENGTH)):
        raise CheckpointError(
            f"{folder / 'config.yaml'}: was changed, and no longer has the run's settings: "
            f"{describe_differences(changed)}; put them back, or begin a new run from its weights "
            f"with {_begin_anew(job, folder)}"
        )


def _note_other_world(job: Job, saved_world: int, folder: Path) -> None:
    """Say what differs where a run goes on with another number of processes."""
    world = job.accelerator.num_processes
    if saved_world != world:
        job.display.note(
            f"{folder}: goes on with {tell_count(world, 'process', 'processes')} instead of "
            f"{saved_world}: the same images in the same order; sums differ in their last digits, "
            "and drop paths, dropouts and "
            "Mixup's partners are drawn anew"
        )


def settle_best_files(job: Job, state: TrainState, folder: Path) -> None:
    """Make the files of the best weights those that the save knows, and forget those that are gone."""
    known = state.bests
    files = BestFiles(folder, job.config.output.keep_best, known)
    there = files.settle(known) if job.is_main else None
    state.bests = share(job.accelerator, there)
    if not state.bests:
        state.gained = {}
    if known and state.bests[:1] != known[:1]:
        instead = "they are looked for anew"
        if state.best:
            instead = f"those of epoch {state.best['epoch']} take their place"
        job.display.warn(
            f"{folder}: the best weights, of epoch {known[0]['epoch']}, are not there or are "
            f"damaged; {instead}"
        )


def validation_changes(job: Job, saved: dict[str, Any], folder: Path) -> Changes | None:
    """Return what became of the images that a run was validated with; None where its save does not say.

    Raises:
        DataError: They are others, or have other labels, so that what was measured cannot be
            compared.
    """
    if "validation" not in saved:
        job.display.note(
            f"{folder}: was saved by an earlier vitrail, so it is not known whether its validation "
            "images are the same"
        )
        return None
    compared = None
    if job.roster is not None:
        compared = compare(Roster.from_dict(saved["validation"]), job.roster)
    changes = share(job.accelerator, compared)
    if changes.are_others:
        raise DataError(
            f"{folder}: was validated with other images than those in data.root: {changes}; put "
            "them back as they "
            f"were, or begin a new run from its weights with {_begin_anew(job, folder)}"
        )
    return changes


def teacher_digest(job: Job) -> str | None:
    """Return the digest of a run's teacher; None where it has none."""
    return None if job.distillation is None else job.distillation.teacher.digest


def label_digest(job: Job) -> str | None:
    """Return the digest of what a run's token labels are of; None where it has none."""
    return None if job.token_labels is None else job.token_labels.digest


def has_content(path: Path) -> bool:
    """Say whether a file is there and not empty."""
    return path.is_file() and path.stat().st_size > 0


def load_shared_state(job: Job, folder: Path) -> dict[str, Any]:
    """Read a run's last whole save on the first rank, for all of them."""
    saved = load_last_state(folder / "last", job.display.warn) if job.is_main else None
    return share(job.accelerator, saved)


def load_fork(job: Job, model: VisionModel, folder: Path) -> None:
    """Put the weights of another run into a model: the averaged ones, where it averages."""
    saved = load_shared_state(job, folder)
    check_classes(saved["classes"], job.data.classes, folder)
    try:
        load_weights(model, without_token_head(without_projection(merged_weights(saved))), folder)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; a fork keeps the run's model, so leave out what changes model.*"
        ) from error
    model.to(job.accelerator.device)


def merged_weights(saved: dict[str, Any]) -> dict[str, Any]:
    """Return the weights of a save, averaged where the run averages, with adapters merged in where it has them."""
    weights, settings = saved["ema"] or saved["model"], saved["settings"]
    if settings.get("lora.rank") is None:
        return weights
    lora = LoraSection(rank=settings["lora.rank"], alpha=settings["lora.alpha"])
    return merge_adapters(weights, lora.scale)


def is_save_due(job: Job, state: TrainState, run: Run) -> bool:
    """Say whether this rank wants to save; the clock is the first rank's."""
    output = job.config.output
    if (
        output.save_every_updates is not None
        and job.updates(state) % output.save_every_updates == 0
    ):
        return True
    return job.is_main and time.monotonic() - run.saved >= 60 * output.save_every_minutes


def save(job: Job, state: TrainState, run: Run, *, must: bool = False) -> bool:
    """Save all that a resume needs. Collective.

    Args:
        job: The parts of the run that do not change.
        state: The state that is saved.
        run: The run, whose clock and files of the best weights are saved with it.
        must: Let a full disk end the run; otherwise it is warned of, and the next save is tried.

    Returns:
        False while updates are skipped, or the weights are NaN or Inf: the save before is the good
        one, and stays.
    """
    run.saved = time.monotonic()
    is_skipping = int(state.guard.counts[1]) > 0
    if is_skipping or not has_finite_weights(state.model, job.accelerator):
        return False
    run.watchdog.move(f"saving after update {job.updates(state):,}")
    with Stopwatch(job.accelerator.device, state.seconds).waiting("save_s"):
        state.elapsed_s = run.elapsed_s()
        validation = job.roster.to_dict() if job.roster is not None else None
        saved = state.to_dict(job.accelerator) | {
            "settings": flatten(job.config),
            "classes": list(job.data.classes),
            "options": model_options(state.model),
            "images": job.fingerprints["images"]["train"],
            "teacher": teacher_digest(job),
            "token_labels": label_digest(job),
            "validation": validation,
            "world": job.accelerator.num_processes,
            "parts": job.memory.parts,
        }
        if job.is_main:
            try:
                _write_save(job, state, run, saved)
            except CheckpointError as error:
                if must:
                    raise
                job.display.warn(f"{error}; training goes on, and the next save is tried")
            run.outbox.retry()
    return True


def _write_save(job: Job, state: TrainState, run: Run, saved: dict[str, Any]) -> None:
    """Write a save, once the rows that it counts on are on the disk."""
    if run.files is not None:
        run.files.steps.sync()
    save_state(run.folder / "last", saved, job.updates(state), job.config.output.keep_last)
    if run.files is not None:
        run.files.best.saved(state.bests)


def stop_or_save(job: Job, state: TrainState, run: Run, *, saving: bool) -> None:
    """Save and/or stop if any rank asks to. Collective: all ranks must call it the same number of times.

    Args:
        job: The parts of the run that do not change; its `stop` says whether this rank asks to
            stop.
        state: The state that is saved.
        run: The run.
        saving: Whether this rank asks to save.

    Raises:
        Stopped: The run was told to stop, and is saved.
    """
    stopping, saving = run.votes.exchange(job.stop.reason is not None, saving)
    if not stopping and not saving:
        return
    saved = save(job, state, run, must=stopping)
    if not stopping:
        return
    run.votes.finish()
    # the first rank has written by then; a launcher kills all once one of them ends
    reasons = gather_texts(job.accelerator, [(job.accelerator.process_index, job.stop.reason)])
    rank, reason = next((rank, reason) for rank, reason in reasons if reason)
    where = f" in process {rank}" if rank else ""
    outcome = "and saved" if saved else "whose numbers were not finite, so the save before stays"
    raise Stopped(
        f"stopped by {reason}{where} after update {job.updates(state):,} of {job.total_updates:,}, "
        f"{outcome}; go on with: {command('train', '--resume', run.folder)}"
    )


def roll_back(job: Job, state: TrainState, run: Run, reason: str) -> None:
    """Go back to the last save after NaN or Inf, to go on at half the learning rate.

    Raises:
        TrainingError: That was done as often as train.rollbacks allows.
    """
    if state.rollbacks >= job.config.train.rollbacks:
        raise TrainingError(_why_given_up(job, state, run, reason))
    updates_before = job.updates(state)
    rollbacks = state.rollbacks + 1
    # of the weights that lie there, even if their epochs are now undone
    bests, gained = state.bests, state.gained
    saved = load_shared_state(job, run.folder)
    state.restore(saved, job.accelerator.process_index, job.accelerator.num_processes)
    state.rollbacks = rollbacks
    state.bests, state.gained = bests, gained
    if run.files is not None:
        run.files.log.rewind(state.rows)
        run.outbox.put("metrics.jsonl", run.files.log.write)
        run.files.steps.rewind(job.updates(state))
    job.display.advance(job.updates(state) - updates_before)
    job.display.warn(
        f"{reason}; went back to update {job.updates(state):,}, and on from there at "
        f"{1 / 2**rollbacks:g} of the learning rate"
    )


def _begin_anew(job: Job, folder: Path) -> str:
    """Return what begins a new run from the weights of another, for whoever reads it: a command, or a call."""
    if names_flags():
        return command("train", "--fork", folder)
    loss = "" if job.config.train.loss is None else ", loss=FUNCTION"
    return f"vitrail.train(fork={str(folder)!r}{loss})"


def _why_given_up(job: Job, state: TrainState, run: Run, reason: str) -> str:
    """Say why a run ends that went back as often as it may, and what to change."""
    tried = ""
    if state.rollbacks:
        tried = f"; went back {state.rollbacks} times, down to {1 / 2**state.rollbacks:g} of the learning rate"
    saves = list_states(run.folder / "last")
    last_save = saves[0] if saves else "none"
    return (
        f"{reason}{tried}; last good save: {last_save}; begin a new run from its weights with "
        f"{_begin_anew(job, run.folder)}, a lower optim.lr, optim.clip_norm=1 or "
        "train.precision=float32, or look closer with train.detect_anomaly=true"
    )
