"""Warnings of a run that lacks memory, images or cores, and what to do about it."""

from __future__ import annotations

import torch

from vitrail.choices import Precision
from vitrail.data.loader import count_local_processes, find_crowding
from vitrail.devices import cpu_has_bfloat16
from vitrail.display import Display
from vitrail.training.run.open_run import Run
from vitrail.training.run.state import TrainState
from vitrail.training.setup import Job

DATA_BOUND = 0.2
"""Share of an epoch spent waiting for images from which on it is said."""


def why_memory_is_too_short(job: Job, update: int) -> str:
    """Say that an update cannot be computed for lack of memory, and what takes less."""
    short = f"memory is too short for update {update + 1:,}"
    advice = (
        "take a smaller model.image_size or model, train.grad_checkpointing=true, or freeze.until"
    )
    if job.accelerator.num_processes > 1:
        return (
            f"{short} in process {job.accelerator.process_index}; begin a new run with "
            f"train.accumulate={2 * job.config.train.accumulate}, or {advice}"
        )
    if job.memory.parts > 1:
        short += f", even with each micro-batch in {job.memory.parts} parts"
    return f"{short}; {advice}"


def tell_of_short_memory(job: Job, update: int, *, is_cut_felt: bool) -> None:
    """Say that micro-batches are computed in parts from now on, and what avoids that.

    Args:
        job: The parts of the run that do not change.
        update: The update from which on they are.
        is_cut_felt: Whether a layer of the model computes with all images that go in together.
    """
    parts = job.memory.parts
    effect = "which makes the same updates"
    if is_cut_felt:
        effect = "each of which batch norm normalises by itself"
    job.display.warn(
        f"memory is short: from update {update + 1:,} on, each micro-batch is computed in {parts} "
        f"parts, {effect}; train.accumulate={parts * job.config.train.accumulate} takes as little "
        "memory from the start"
    )


def tell_of_slow_precision(precision: Precision, device: torch.device, display: Display) -> None:
    """Say that a processor without instructions for bfloat16 computes float32 faster."""
    if precision == "bfloat16" and device.type == "cpu" and not cpu_has_bfloat16():
        display.note(
            "train.precision=bfloat16: this processor has no instructions for it and computes "
            "float32 faster; add train.precision=float32"
        )


def warn_of_waiting(job: Job, state: TrainState, run: Run) -> None:
    """Say once that the loader is slower than the model."""
    waiting = state.seconds["data_s"] / state.seconds["train_s"]
    if waiting <= DATA_BOUND or run.told_of_data:
        return
    run.told_of_data = True
    job.display.note(
        f"{waiting:.0%} of the epoch went by waiting for images: the loader's "
        f"{job.loader.num_workers} processes are slower than the model; raise data.workers, or "
        "lighten augment.auto_augment"
    )


def warn_of_load(job: Job, run: Run, *, tasks: int) -> None:
    """Say once that other work takes this machine's cores, for which each rank here has `tasks` of its own."""
    crowd, advice = find_crowding(tasks * count_local_processes(), on_cpu(job))
    if crowd and not run.told_of_load:
        run.told_of_load = True
        job.display.warn(f"{crowd}: {advice}")


def on_cpu(job: Job) -> bool:
    """Say whether updates are computed on the CPU."""
    return job.accelerator.device.type == "cpu"
