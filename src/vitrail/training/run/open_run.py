"""Open a run: lock its folder, open its logs, and set up the votes and the watchdog of its ranks."""

from __future__ import annotations

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator

from vitrail.config.resolve import to_yaml
from vitrail.display import Display
from vitrail.distributed.processes import share, shared_store
from vitrail.distributed.votes import Votes
from vitrail.distributed.watchdog import Watchdog
from vitrail.errors import CheckpointError, TrainingError, VitrailError
from vitrail.files import write_whole
from vitrail.images.input_check import InputCheck
from vitrail.training.run.best_files import BestFiles
from vitrail.training.run.folder import Outbox, RunLog, StepLog, create_run, tidy_run
from vitrail.training.run.lock import held
from vitrail.training.run.state import TrainState
from vitrail.training.run.trackers import epoch_trackers, step_trackers
from vitrail.training.setup import Job


@dataclass(frozen=True)
class RunFiles:
    """Files that grow during a run; the first rank alone has them."""

    log: RunLog
    steps: StepLog
    best: BestFiles


@dataclass(kw_only=True)
class Run:
    """A run in progress: its folder, its clock, and what holds its ranks together."""

    folder: Path
    outbox: Outbox
    votes: Votes
    watchdog: Watchdog
    files: RunFiles | None
    """Files that the first rank writes; None on the others."""
    spent_s: float
    """Seconds that the run took before this process."""
    inputs: InputCheck | None
    """The first images of a new run, until they are judged."""
    began: float = field(default_factory=time.monotonic)
    saved: float = field(default_factory=time.monotonic)
    """When the last save was begun."""
    told_of_data: bool = False
    """Whether it was said that the loader is slower than the model."""
    told_of_load: bool = False
    """Whether it was said that other work takes this machine's cores."""

    def elapsed_s(self) -> float:
        """Return the seconds of the run in all."""
        return self.spent_s + time.monotonic() - self.began


def claim(accelerator: Accelerator, folder: Path, exits: ExitStack, display: Display) -> None:
    """Lock a run folder until `exits` is left.

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
    refusal = share(accelerator, refusal)
    if refusal is not None:  # on all ranks alike, so that none waits for another
        raise refusal


def open_run(job: Job, state: TrainState, name: str, resume: Path | None, exits: ExitStack) -> Run:
    """Make the folder of a new run, or open that of a resumed one, on the first rank; and tell the others.

    Args:
        job: The parts of the run that do not change.
        state: The state that the run begins with or goes on from.
        name: Name of a new folder where `output.name` does not say.
        resume: Folder of a resumed run, which is locked already.
        exits: Closes what is opened, and unlocks a new folder.
    """
    folder = resume
    if folder is None:
        folder = _create_folder(job, name)
        claim(job.accelerator, folder, exits, job.display)
    outbox = Outbox(job.display.warn)
    files = _open_files(job, state, folder, outbox) if job.is_main else None
    inputs = InputCheck() if job.is_main and not job.updates(state) else None
    watchdog = Watchdog(
        shared_store(job.accelerator),
        job.accelerator.process_index,
        job.accelerator.num_processes,
        60 * job.config.train.dist_timeout_minutes,
    )
    run = Run(
        folder=folder,
        outbox=outbox,
        votes=Votes(job.accelerator),
        watchdog=watchdog,
        files=files,
        spent_s=state.elapsed_s,
        inputs=inputs,
    )
    exits.enter_context(watchdog)
    if files is not None:
        exits.enter_context(closing(files.log))
        exits.enter_context(closing(files.steps))
    return run


def _create_folder(job: Job, name: str) -> Path:
    """Create the folder of a new run on the first rank, and return it on all of them."""
    output = job.config.output
    folder = None
    if job.is_main:
        folder = create_run(Path(output.root).expanduser(), output.name, name)
    folder = share(job.accelerator, folder)
    assert folder is not None
    return folder


def _open_files(job: Job, state: TrainState, folder: Path, outbox: Outbox) -> RunFiles:
    """Write the settings of a run, and open its logs and the files of its best weights."""
    config, warn = job.config, job.display.warn
    tidy_run(folder)
    write_whole(
        folder / "config.yaml", to_yaml(config, f"Settings of the run {folder.name}.").encode()
    )
    job.display.keep(folder / "log.txt")
    log = RunLog(folder, state.rows, epoch_trackers(config, folder, warn))
    outbox.put("metrics.jsonl", log.write)
    steps = StepLog(folder, job.updates(state), step_trackers(config, folder, warn))
    best = BestFiles(folder, config.output.keep_best)
    best.saved(state.bests)  # or the run was killed between its last save and this
    return RunFiles(log, steps, best)
