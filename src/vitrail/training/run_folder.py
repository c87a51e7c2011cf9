"""The files of a run: its folder, the rows of numbers, TensorBoard events and the picture of the curves."""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vitrail.display import headline
from vitrail.errors import CheckpointError, ConfigError, harmless
from vitrail.files import GrowingFile, is_abandoned, is_temporary, remove, write_whole
from vitrail.training.start import is_unbegun
from vitrail.whole_folder import numbered

OWN = re.compile(r"\.(config\.yaml|metrics\.jsonl|curves\.png|best(-\d+)?\.safetensors)\.")
"""Beginnings of the temporary names that nobody writes but the run's first process."""


def create_run(root: Path, name: str | None, default_name: str) -> Path:
    """Create the folder of a new run with the folder last/ in it; none that holds anything is taken.

    Raises:
        ConfigError: The asked name is taken, or the folder cannot be created.
    """
    try:
        if name is not None:
            folder = root / name
            folder.mkdir(parents=True, exist_ok=True)  # a script may have made it, or a start that was killed
            if not is_unbegun(folder):
                raise FileExistsError
            (folder / "last").mkdir(exist_ok=True)
            return folder
        root.mkdir(parents=True, exist_ok=True)
        for folder in numbered(root / default_name):
            with contextlib.suppress(FileExistsError):
                folder.mkdir()
                (folder / "last").mkdir()
                return folder
        raise AssertionError
    except FileExistsError as error:
        raise ConfigError(
            f"output.name: {root / name} exists; choose another, or go on with --resume {root / name}"
            if name is not None
            else f"output.root: {root} is a file; choose another with output.root=FOLDER"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"output.root: {root} cannot be written ({error.strerror}); choose another with output.root=FOLDER"
        ) from error


def tidy_run(folder: Path) -> None:
    """Remove what killed processes left half written in a run's folder, which this process alone works on.

    Others may be writing a report or an exported file there; theirs go once they have ended.
    """
    for path in [*folder.glob(".*.tmp*"), *(folder / "last").glob(".*.tmp")]:
        if is_temporary(path) and (OWN.match(path.name) or path.parent != folder or is_abandoned(path)):
            remove(path)


class Tracker(Protocol):
    """Where the numbers of a run are sent to, beside its own file; what Accelerate calls a GeneralTracker."""

    def log(self, values: dict[str, Any], step: int | None) -> None:
        """Take the numbers of an epoch or update."""

    def finish(self) -> None:
        """Send what is left."""


class TensorBoard:
    """TensorBoard events in a folder, without those of epochs or updates that are made again.

    Written here and now: the writers of torch and tensorboard have a thread, whose errors nobody can catch.

    Args:
        folder: Of the events; TensorBoard shows it as a run of its own.
        first: Epoch or update from which on there are no events yet, or none that count.
    """

    def __init__(self, folder: Path, first: int) -> None:
        # protobuf and tensorboard warn about their own deprecations on import
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        protos: Any = event_pb2, summary_pb2  # made at import time, where no type checker sees them
        self._event, self._summary, session_log = protos[0].Event, protos[1].Summary, protos[0].SessionLog
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{platform.node()}.{os.getpid()}.{time.monotonic_ns()}"
        self._writer = RecordWriter((folder / name).open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=first, session_log=session_log(status=session_log.START))

    def log(self, values: dict[str, Any], step: int | None) -> None:
        """Write the numbers of an epoch or update."""
        numbers = [self._summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=self._summary(value=numbers))

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()

    def _write(self, **content: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **content).SerializeToString())
        self._writer.flush()


class Trackers:
    """Those that are asked for: opened once there is something to tell, and left where they fail.

    Args:
        openers: By name, what opens a tracker from the first epoch or update that it will be given.
        warn: Told when a tracker fails; the run goes on without it.
    """

    def __init__(self, openers: Mapping[str, Callable[[int], Tracker]], warn: Callable[[str], None]) -> None:
        self._openers, self._warn = openers, warn
        self._trackers: dict[str, Tracker] = {}
        self._unopened: dict[str, Callable[[int], Tracker]] = {}

    def begin(self, first: int) -> None:
        """Go on from an epoch or update, whatever they were told of it before."""
        self.close()
        self._unopened, self._first = dict(self._openers), first

    def log(self, row: Mapping[str, Any], by: str) -> None:
        """Tell them the numbers of a row, where `by` names the one that counts the rows."""
        for name, opener in self._unopened.items():
            with self._forgiven(name):
                self._trackers[name] = opener(self._first)
        self._unopened.clear()
        values = {name: value for name, value in row.items() if isinstance(value, int | float) and name != by}
        for name, tracker in list(self._trackers.items()):
            with self._forgiven(name):
                tracker.log(values, step=row[by])

    def close(self) -> None:
        """Finish them."""
        for name, tracker in list(self._trackers.items()):
            with self._forgiven(name):
                tracker.finish()
        self._trackers.clear()

    @contextlib.contextmanager
    def _forgiven(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker does, it does not end a run
            self._trackers.pop(name, None)
            self._warn(f"{name} is given no more numbers ({type(error).__name__}: {' '.join(str(error).split())})")


class RunLog:
    """Rows of numbers, one an epoch: in metrics.jsonl always, and with the trackers that are asked for.

    Args:
        folder: Of the run.
        rows: Those of the epochs before a resume.
        trackers: Given each row.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], trackers: Trackers) -> None:
        self._path, self._trackers = folder / "metrics.jsonl", trackers
        self.rewind(rows)

    def rewind(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Go back to these rows."""
        self._rows = list(rows)
        self._trackers.begin(int(self._rows[-1]["epoch"]) + 1 if self._rows else 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the numbers of one epoch; `write` brings them to metrics.jsonl."""
        self._rows.append(row)
        self._trackers.log(row, by="epoch")

    def write(self) -> None:
        """Write metrics.jsonl, all of it, so that it never holds half a line.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written; the file is as it was.
        """
        write_whole(self._path, "".join(json.dumps(row) + "\n" for row in self._rows).encode())

    def close(self) -> None:
        """Finish the trackers."""
        self._trackers.close()


class StepLog:
    """Rows of numbers, one for each update at which they are read: at the end of steps.jsonl, and with trackers.

    Args:
        folder: Of the run.
        made: Updates that were made; the rows of later ones, which are made again, are dropped.
        trackers: Given each row.
    """

    def __init__(self, folder: Path, made: int, trackers: Trackers) -> None:
        self._file, self._trackers = GrowingFile(folder / "steps.jsonl"), trackers
        self.rewind(made)

    def rewind(self, made: int) -> None:
        """Go back to where so many updates were made.

        Raises:
            CheckpointError: The file cannot be read or written.
        """
        self._file.cut(lambda line: _is_of(line, made))
        self._trackers.begin(made + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the numbers of one update; `write` brings them to steps.jsonl."""
        self._file.add(json.dumps(row))
        self._trackers.log(row, by="update")

    def write(self) -> None:
        """Write the rows that are not there yet.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written; the rows wait.
        """
        self._file.write()

    def sync(self) -> None:
        """Push the rows to the disk, before a save that counts on them."""
        self._file.sync()

    def close(self) -> None:
        """Finish the trackers."""
        self._trackers.close()


def _is_of(line: bytes, made: int) -> bool:
    """Say whether a line of steps.jsonl is a row of the first so many updates."""
    try:
        return json.loads(line)["update"] <= made
    except (ValueError, TypeError, KeyError):
        return False


class Outbox:
    """Files that must not be lost: what a full disk refuses is told once, and tried again until the run ends."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._jobs: dict[str, Callable[[], None]] = {}
        self._told: set[str] = set()

    def put(self, name: str, write: Callable[[], None]) -> None:
        """Write something now, and again later if it cannot be; a newer one of the same name replaces it."""
        self._jobs[name] = write
        self._try(name)

    def retry(self) -> None:
        """Try what is left once more."""
        for name in list(self._jobs):
            self._try(name)

    def _try(self, name: str) -> None:
        try:
            self._jobs[name]()
        except CheckpointError as error:
            if name not in self._told:
                self._told.add(name)
                self._warn(f"{error}; training goes on, and it is tried again")
        else:
            del self._jobs[name]
            self._told.discard(name)

    def finish(self) -> None:
        """Try what is left for the last time.

        Raises:
            CheckpointError: It still cannot be written.
        """
        for write in self._jobs.values():
            write()


def plot_curves(rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any], path: Path, title: str) -> None:
    """Draw loss, accuracy or mAP, and learning rate over the epochs as a PNG, with a dot on the best one, if any."""
    import matplotlib  # a second, which only the first process needs, once
    from matplotlib.figure import Figure

    ink, muted, blue, orange = "#1f2933", "#7b8794", "#2563a8", "#c2571a"
    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": ink}
    ):
        figure = Figure(figsize=(11, 3.6), dpi=130)  # a constrained layout would draw it twice
        loss, quality, rate = figure.subplots(1, 3, width_ratios=(2, 2, 1))
        figure.subplots_adjust(left=0.05, right=0.985, bottom=0.14, top=0.82, wspace=0.22)
        evaluated = [row for row in rows if "val_loss" in row]
        name, title_of = headline(evaluated[0] if evaluated else {})
        marker = "o" if len(rows) == 1 else None
        for axes, key in ((loss, "loss"), (quality, name)):
            for part, color, chosen in (("train", muted, rows), ("val", blue, evaluated)):
                values = [(row["epoch"], row.get(f"{part}_{key}")) for row in chosen]
                points = [(epoch, value) for epoch, value in values if value is not None]
                if points:
                    axes.plot(
                        *zip(*points, strict=True),
                        color=color,
                        marker=marker,
                        label="training" if part == "train" else "validation",
                    )
            axes.legend(frameon=False, labelcolor="linecolor")
            axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
            axes.set_axisbelow(True)
        if best:
            quality.plot(best["epoch"], best[f"val_{name}"], "o", color=blue)
        rate.plot([row["epoch"] for row in rows], [row["lr"] for row in rows], color=orange, marker=marker)
        rate.yaxis.set_major_formatter("{x:g}")
        reached = f": best {best[f'val_{name}']:.2f} in epoch {best['epoch']}" if best else ""
        for axes, text in ((loss, "loss"), (quality, f"{title_of}, %{reached}"), (rate, "learning rate")):
            axes.set_title(text, loc="left")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.suptitle(harmless(title), x=0.01, ha="left", fontweight="bold", parse_math=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
