"""Experiment trackers: TensorBoard, trackio, wandb and MLflow; one that fails is left out, and the run goes on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import flatten
from vitrail.errors import MissingExtra

TENSORBOARD = "tensorboard"


class Tracker(Protocol):
    """Receiver of the numbers of a run, beside its own files; what Accelerate calls a GeneralTracker."""

    def log(self, values: dict[str, Any], step: int | None) -> None:
        """Take the numbers of an epoch or update."""

    def finish(self) -> None:
        """Send what is left."""


def _next_second(folder: Path) -> int:
    """Return the time for the name of a file of events, later than that of any other in the folder.

    Readers order the files by name, so a run that goes on within a second would stand before what
    it replaces.
    """
    stamps = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    seconds = [int(stamp) + 1 for stamp in stamps if stamp.isdigit()]
    return max([round(time.time()), *seconds])


class TensorBoard:
    """TensorBoard events in a folder, without those of epochs or updates that are made again.

    Written here and now: the writers of torch and tensorboard have a thread, whose errors nobody
    can catch.

    Args:
        folder: Where the events are written; TensorBoard shows it as a run of its own.
        first: Epoch or update from which on there are no events yet, or none that count.
    """

    def __init__(self, folder: Path, first: int) -> None:
        # protobuf and tensorboard warn about their own deprecations on import
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        # protobuf makes its classes at import time, where no type checker sees them
        events: Any = event_pb2
        summaries: Any = summary_pb2
        self._event, self._summary = events.Event, summaries.Summary
        start = events.SessionLog(status=events.SessionLog.START)
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{_next_second(folder)}.{platform.node()}.{os.getpid()}.{time.monotonic_ns()}"
        self._writer = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=first, session_log=start)

    def log(self, values: dict[str, Any], step: int | None) -> None:
        """Write the numbers of an epoch or update."""
        numbers = [
            self._summary.Value(tag=name, simple_value=value) for name, value in values.items()
        ]
        self._write(step=step, summary=self._summary(value=numbers))

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._writer.flush()


class Trackers:
    """The trackers of a run, opened with the first numbers; one that fails is given no more.

    Args:
        openers: Functions that open a tracker, by its name, from the first epoch or update that it
            will be given.
        warn: Told when a tracker fails; the run goes on without it.
    """

    def __init__(
        self, openers: Mapping[str, Callable[[int], Tracker]], warn: Callable[[str], None]
    ) -> None:
        self._openers, self._warn = openers, warn
        self._trackers: dict[str, Tracker] = {}
        self._unopened: dict[str, Callable[[int], Tracker]] = {}

    def begin(self, first: int) -> None:
        """Go on from an epoch or update, whatever the trackers were told of it before."""
        self.close()
        self._unopened, self._first = dict(self._openers), first

    def log(self, row: Mapping[str, Any], by: str) -> None:
        """Tell the trackers the numbers of a row, where `by` names the one that counts the rows."""
        for name, opener in self._unopened.items():
            with self._left_on_failure(name):
                self._trackers[name] = opener(self._first)
        self._unopened.clear()
        values = {}
        for name, value in row.items():
            if isinstance(value, int | float) and name != by:
                values[name] = value
        for name, tracker in list(self._trackers.items()):
            with self._left_on_failure(name):
                tracker.log(values, step=row[by])

    def close(self) -> None:
        """Finish the trackers."""
        for name, tracker in list(self._trackers.items()):
            with self._left_on_failure(name):
                tracker.finish()
        self._trackers.clear()

    @contextlib.contextmanager
    def _left_on_failure(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker does, it does not end a run
            self._trackers.pop(name, None)
            self._warn(
                f"{name} is given no more numbers ({type(error).__name__}: "
                f"{' '.join(str(error).split())})"
            )


def check_trackers(names: Iterable[str]) -> None:
    """Refuse experiment trackers that are not installed.

    Raises:
        MissingExtra: With what to type.
    """
    pip = "uv pip" if "UV" in os.environ else "pip"
    for name in names:
        if name != TENSORBOARD and find_spec(name) is None:
            raise MissingExtra(
                f"output.trackers has {name}, which is not installed; run: {pip} install {name}"
            )


def open_tracker(name: str, folder: Path, settings: dict[str, Any]) -> GeneralTracker:
    """Open an experiment tracker for a run; trackio and wandb go on where they were if the run is resumed."""
    identity = f"{folder.name}-{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]}"
    options: dict[str, dict[str, Any]] = {
        "trackio": {"run_name": "vitrail", "name": identity, "resume": "allow"},
        "wandb": {
            "run_name": "vitrail",
            "name": folder.name,
            "id": identity,
            "resume": "allow",
            "dir": str(folder),
        },
        "mlflow": {"experiment_name": "vitrail", "run_name": identity},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**options[name])
    tracker.start()
    tracker.store_init_configuration(settings)
    return tracker


def epoch_trackers(config: TrainConfig, folder: Path, warn: Callable[[str], None]) -> Trackers:
    """Return the trackers for the numbers of each epoch: all that are asked for."""
    openers: dict[str, Callable[[int], Tracker]] = {}
    for name in config.output.trackers:
        if name == TENSORBOARD:
            openers[name] = partial(TensorBoard, folder / TENSORBOARD)
        else:
            openers[name] = lambda _, name=name: open_tracker(name, folder, flatten(config))
    return Trackers(openers, warn)


def step_trackers(config: TrainConfig, folder: Path, warn: Callable[[str], None]) -> Trackers:
    """Return the trackers for the numbers of updates: TensorBoard alone, in a folder of its own."""
    openers: dict[str, Callable[[int], Tracker]] = {}
    if TENSORBOARD in config.output.trackers:
        openers[TENSORBOARD] = partial(TensorBoard, folder / TENSORBOARD / "steps")
    return Trackers(openers, warn)
