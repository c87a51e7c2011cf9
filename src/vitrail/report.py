"""The files of a run: its folder, the rows of numbers, TensorBoard events and the picture of the curves."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from vitrail.checkpoint import write_whole
from vitrail.errors import CheckpointError, ConfigError, command


def create_run(root: Path, name: str | None, default_name: str) -> Path:
    """Create the folder of a new run, never one that exists, with the folder last/ in it.

    Raises:
        ConfigError: The asked name is taken, or the folder cannot be created.
    """
    try:
        if name is not None:
            folder = root / name
            folder.mkdir(parents=True)
            (folder / "last").mkdir()
            return folder
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = root / (default_name if number == 1 else f"{default_name}-{number}")
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
            else:
                (folder / "last").mkdir()
                return folder
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


class RunLog:
    """Rows of numbers, one an epoch: metrics.jsonl always, and TensorBoard events.

    Args:
        folder: Of the run.
        rows: Those of the epochs before a resume.

    Raises:
        CheckpointError: The files cannot be written.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, Any]] = ()) -> None:
        # protobuf and tensorboard warn about their own deprecations on import
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from torch.utils.tensorboard import SummaryWriter
        # after a resume the events of the epochs that are run again must not stay beside the new ones
        purge = int(rows[-1]["epoch"]) + 1 if rows else None
        path = folder / "metrics.jsonl"
        write_whole(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        try:
            self._file = path.open("a", encoding="utf-8")
            self._events = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        except OSError as error:
            raise CheckpointError(f"{folder}: cannot be written ({error.strerror})") from error

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the numbers of one epoch.

        Raises:
            CheckpointError: They could not be written.
        """
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
            for name, value in row.items():
                if isinstance(value, int | float) and name != "epoch":
                    self._events.add_scalar(name, value, row["epoch"])
            self._events.flush()
        except OSError as error:
            raise CheckpointError(
                f"{self._file.name}: cannot be written ({error.strerror}); free space, then go on with: "
                + command("train", "--resume", Path(self._file.name).parent)
            ) from error

    def close(self) -> None:
        """Finish the files."""
        # what could not be written was told by `add`; closing tries, and fails, once more
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._events.close()


def read_rows(folder: Path, last_epoch: int) -> list[dict[str, Any]]:
    """Return the rows that a run wrote up to and including an epoch.

    Raises:
        CheckpointError: The file is missing, or damaged before that epoch.
    """
    path, rows = folder / "metrics.jsonl", []
    # the last line may be cut where the run was, and the file may be missing
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            if row["epoch"] > last_epoch:
                break
            rows.append(row)
    if len(rows) < last_epoch:
        raise CheckpointError(
            f"{path}: {len(rows)} of {last_epoch} epochs can be read, the rest is missing or damaged; start a new run"
        )
    return rows


def goodness(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return what the best epoch has most of: accuracy, and of two as accurate, less loss."""
    return row["val_top1"], -row["val_loss"]


def plot_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw loss, accuracy and learning rate over the epochs as a PNG."""
    ink, muted, blue, orange = "#1f2933", "#7b8794", "#2563a8", "#c2571a"
    with matplotlib.rc_context(
        {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.color": ink}
    ):
        figure = Figure(figsize=(11, 3.6), dpi=130, layout="constrained")
        loss, top1, rate = figure.subplots(1, 3, width_ratios=(2, 2, 1))
        evaluated = [row for row in rows if "val_top1" in row]
        marker = "o" if len(rows) == 1 else None
        for axes, key in ((loss, "loss"), (top1, "top1")):
            for part, color, chosen in (("train", muted, rows), ("val", blue, evaluated)):
                points = [(row["epoch"], row[f"{part}_{key}"]) for row in chosen]
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
        best = max(evaluated, key=goodness, default=None)
        if best:
            top1.plot(best["epoch"], best["val_top1"], "o", color=blue)
        rate.plot([row["epoch"] for row in rows], [row["lr"] for row in rows], color=orange, marker=marker)
        rate.yaxis.set_major_formatter("{x:g}")
        reached = f": best {best['val_top1']:.2f} in epoch {best['epoch']}" if best else ""
        for axes, name in ((loss, "loss"), (top1, f"top-1 accuracy, %{reached}"), (rate, "learning rate")):
            axes.set_title(name, loc="left")
            axes.set_xlabel("epoch")
            axes.xaxis.get_major_locator().set_params(integer=True)
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold", parse_math=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    write_whole(path, buffer.getvalue())
