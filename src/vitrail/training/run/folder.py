"""The run folder and its files: metrics.jsonl, steps.jsonl and curves.png."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrail.display import headline_metric
from vitrail.errors import CheckpointError, ConfigError, escape_text, write_option
from vitrail.files import GrowingFile, is_abandoned, is_temporary, remove, write_whole
from vitrail.training.run.trackers import Trackers
from vitrail.training.start import is_unbegun
from vitrail.whole_folder import numbered

OWN = re.compile(r"\.(config\.yaml|metrics\.jsonl|curves\.png|best(-\d+)?\.safetensors)\.")
"""Beginnings of the temporary names that nobody writes but the run's first rank."""
INK = "#1f2933"
GRAY = "#7b8794"
BLUE = "#2563a8"
ORANGE = "#c2571a"


def create_run(root: Path, name: str | None, default_name: str) -> Path:
    """Create the folder of a new run with the folder last/ in it; none that holds anything is taken.

    Raises:
        ConfigError: The asked name is taken, or the folder cannot be created.
    """
    try:
        if name is not None:
            return _take_folder(root / name)
        root.mkdir(parents=True, exist_ok=True)
        return _take_next_folder(root / default_name)
    except FileExistsError as error:
        problem = f"output.root: {root} is a file; choose another with output.root=FOLDER"
        if name is not None:
            resume = write_option("resume", root / name)
            problem = f"output.name: {root / name} exists; choose another, or go on with {resume}"
        raise ConfigError(problem) from error
    except OSError as error:
        raise ConfigError(
            f"output.root: {root} cannot be written ({error.strerror}); choose another with "
            "output.root=FOLDER"
        ) from error


def _take_folder(folder: Path) -> Path:
    """Make a folder that a run was given the name of, unless it holds anything."""
    # a script may have made it, or a start that was killed
    folder.mkdir(parents=True, exist_ok=True)
    if not is_unbegun(folder):
        raise FileExistsError
    (folder / "last").mkdir(exist_ok=True)
    return folder


def _take_next_folder(first: Path) -> Path:
    """Make a folder of this name, or the first free one of name-2, name-3 and so on."""
    for folder in numbered(first):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            (folder / "last").mkdir()
            return folder
    raise AssertionError


def tidy_run(folder: Path) -> None:
    """Remove what killed processes left half written in a run's folder, which this process alone works on.

    Others may be writing a report or an exported file there; theirs go once they have ended.
    """
    for path in [*folder.glob(".*.tmp*"), *(folder / "last").glob(".*.tmp")]:
        if is_temporary(path) and (
            OWN.match(path.name) or path.parent != folder or is_abandoned(path)
        ):
            remove(path)


class RunLog:
    """Rows of numbers, one an epoch: in metrics.jsonl always, and in the trackers that are asked for.

    Args:
        folder: Folder of the run.
        rows: The rows of the epochs before a resume.
        trackers: Trackers that are given each row.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]], trackers: Trackers) -> None:
        self._path = folder / "metrics.jsonl"
        self._trackers = trackers
        self.rewind(rows)

    def rewind(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Go back to these rows."""
        self._rows = list(rows)
        last_epoch = int(self._rows[-1]["epoch"]) if self._rows else 0
        self._trackers.begin(last_epoch + 1)

    def add(self, row: Mapping[str, Any]) -> None:
        """Take the numbers of one epoch; `write` brings them to metrics.jsonl."""
        self._rows.append(row)
        self._trackers.log(row, by="epoch")

    def amend(self, epoch: int, numbers: Mapping[str, Any]) -> None:
        """Add numbers to the row of an epoch; `write` brings them to metrics.jsonl."""
        for place, row in enumerate(self._rows):
            if row["epoch"] == epoch:
                self._rows[place] = {**row, **numbers}

    def write(self) -> None:
        """Write metrics.jsonl, all of it, so that it never holds half a line.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written; the file is as it
                was.
        """
        write_whole(self._path, "".join(json.dumps(row) + "\n" for row in self._rows).encode())

    def close(self) -> None:
        """Finish the trackers."""
        self._trackers.close()


class StepLog:
    """Rows of numbers, one for each update at which they are read: at the end of steps.jsonl, and in the trackers.

    Args:
        folder: Folder of the run.
        made: Updates that were made; the rows of later ones, which are made again, are dropped.
        trackers: Trackers that are given each row.
    """

    def __init__(self, folder: Path, made: int, trackers: Trackers) -> None:
        self._file, self._trackers = GrowingFile(folder / "steps.jsonl"), trackers
        self.rewind(made)

    def rewind(self, made: int) -> None:
        """Go back to where so many updates were made.

        Raises:
            CheckpointError: The file cannot be read or written.
        """
        self._file.cut(lambda line: _is_row_of(line, made))
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


def _is_row_of(line: bytes, made: int) -> bool:
    """Say whether a line of steps.jsonl is a row of the first so many updates."""
    try:
        return json.loads(line)["update"] <= made
    except (ValueError, TypeError, KeyError):
        return False


class Outbox:
    """Files that must not be lost: what a full disk refuses is warned of once, and retried until the run ends."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._writers: dict[str, Callable[[], None]] = {}
        self._told: set[str] = set()

    def put(self, name: str, write: Callable[[], None]) -> None:
        """Write a file now, and again later if it cannot be; a newer writer of the same name replaces an older one."""
        self._writers[name] = write
        self._try(name)

    def retry(self) -> None:
        """Try the writes that failed once more."""
        for name in list(self._writers):
            self._try(name)

    def _try(self, name: str) -> None:
        try:
            self._writers[name]()
        except CheckpointError as error:
            if name not in self._told:
                self._told.add(name)
                self._warn(f"{error}; training goes on, and it is tried again")
        else:
            del self._writers[name]
            self._told.discard(name)

    def finish(self) -> None:
        """Try the writes that failed for the last time.

        Raises:
            CheckpointError: It still cannot be written.
        """
        for write in self._writers.values():
            write()


def plot_curves(
    rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any], path: Path, title: str
) -> None:
    """Draw loss, accuracy or mAP, and learning rate over the epochs as a PNG, with a dot on the best one, if any."""
    import matplotlib  # a second, which only the first rank needs, once
    from matplotlib.figure import Figure

    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": INK}
    ):
        figure = Figure(figsize=(11, 3.6), dpi=130)  # a constrained layout would draw it twice
        loss, quality, rate = figure.subplots(1, 3, width_ratios=(2, 2, 1))
        figure.subplots_adjust(left=0.05, right=0.985, bottom=0.14, top=0.82, wspace=0.22)
        evaluated = [row for row in rows if "val_loss" in row]
        name, title_of_name = headline_metric(evaluated[0] if evaluated else {})
        marker = "o" if len(rows) == 1 else None  # one point makes no line

        # Curves
        for axes, key in ((loss, "loss"), (quality, name)):
            _plot_splits(axes, key, rows, evaluated, marker)
        reached = ""
        has_quality = any(f"val_{name}" in row for row in evaluated)
        if best and has_quality:
            quality.plot(best["epoch"], best[f"val_{name}"], "o", color=BLUE)
            reached = f": best {best[f'val_{name}']:.2f} in epoch {best['epoch']}"
        rate.plot(
            [row["epoch"] for row in rows], [row["lr"] for row in rows], color=ORANGE, marker=marker
        )
        rate.yaxis.set_major_formatter("{x:g}")

        # Words
        titles = {loss: "loss", quality: f"{title_of_name}, %{reached}", rate: "learning rate"}
        if not has_quality:  # of a training without labels
            titles.pop(quality)
            quality.remove()
        for axes, text in titles.items():
            axes.set_title(text, loc="left")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.suptitle(escape_text(title), x=0.01, ha="left", fontweight="bold", parse_math=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())


def _plot_splits(
    axes: Any,
    key: str,
    rows: Sequence[Mapping[str, Any]],
    evaluated: Sequence[Mapping[str, Any]],
    marker: str | None,
) -> None:
    """Draw a number of the training and of the validation images over the epochs."""
    curves = (("train", "training", GRAY, rows), ("val", "validation", BLUE, evaluated))
    for prefix, label, color, chosen in curves:
        points = []
        for row in chosen:
            value = row.get(f"{prefix}_{key}")
            if value is not None:
                points.append((row["epoch"], value))
        if points:
            axes.plot(*zip(*points, strict=True), color=color, marker=marker, label=label)
    if axes.lines:
        axes.legend(frameon=False, labelcolor="linecolor")
    axes.grid(axis="y", color="#e4e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
