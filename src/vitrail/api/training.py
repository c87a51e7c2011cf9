"""Training from Python: train a model, check a machine for it, time the reading of images, and show settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from json import dumps
from pathlib import Path
from typing import Any

from vitrail.api.arguments import checked
from vitrail.api.options import path_or_none, read_settings, shown, tell_remarks, write_json
from vitrail.api.results import Picture, Result, ResultList, Table, copy_fields
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import flatten, resolve
from vitrail.display import Display
from vitrail.distributed.launch import is_main_process
from vitrail.errors import ConfigError, name_option, tell_count
from vitrail.files import refuse_output
from vitrail.migrate.given import Settings
from vitrail.migrate.recipes import open_recipe
from vitrail.training.start import begin

GROUPS = ("head", "medium", "tail")
"""Groups of classes by their training images, as in metrics.jsonl."""


@dataclass(frozen=True)
class TrainResult(Result):
    """A finished run: its folder, its numbers, its best weights."""

    folder: Path
    rows: tuple[dict[str, Any], ...]
    """Numbers of each epoch, as in metrics.jsonl."""
    best: dict[str, Any]
    """The row of the best weights; empty where no epoch was evaluated."""
    monitor: str
    """Number by which the best weights were chosen."""
    seconds: float
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read."""
    example: str
    """Path of a validation image."""
    report: Path | None
    """The page of the best weights; None where it could not be written, or nothing was trained."""
    has_head: bool
    """Whether the weights give classes; without labels, they give features alone."""

    @property
    def weights(self) -> Path:
        """The best weights, which `evaluate`, `predict`, `export` and `load_model` take."""
        return self.folder / "best.safetensors"

    @property
    def curves(self) -> Picture:
        """The picture of losses and accuracies by epoch, which a notebook shows."""
        return Picture(self.folder / "curves.png")

    def tables(self) -> Sequence[Table]:
        """Return the best and the last epoch."""
        columns = self._columns()
        rows = []
        for name, row in (("best", self.best), ("last", self.rows[-1])):
            if row:
                cells = [_cell(key, row.get(key)) for key in columns]
                rows.append((name, str(row["epoch"]), *cells))
        return [Table("", ("", "epoch", *columns.values()), tuple(rows))]

    def _columns(self) -> dict[str, str]:
        """Return the titles of the numbers that are shown."""
        last = self.rows[-1]
        columns = {"train_loss": "train loss", "val_loss": "val loss"}
        if "val_map" in last:
            columns |= {
                "val_map": "mAP, %",
                "val_macro_f1": "macro F1, %",
                "val_micro_f1": "micro F1, %",
            }
        elif self.has_head:
            columns |= {"val_top1": "top-1, %", "val_top5": "top-5, %"}
        groups = {f"val_{name}_top1": f"{name}, %" for name in GROUPS}
        present = {key: title for key, title in groups.items() if last.get(key) is not None}
        if len(present) > 1:  # where all classes are of one group, these say little more than top-1
            columns |= {
                "val_balanced_accuracy": "balanced, %",
                "val_macro_f1": "macro F1, %",
                **present,
            }
        columns.setdefault(self.monitor, self.monitor)
        return columns

    def lines(self) -> Sequence[str]:
        """Say which images could not be read, and where the files of the run are."""
        lines = []
        if self.bad_files:
            unread = tell_count(len(self.bad_files), "image was", "images were")
            lines.append(f"{unread} left out, unreadable:")
            lines += [f"  {name}: {reason}" for name, reason in self.bad_files]
        lines += self._neighbours()
        lines.append(f"{self.seconds:.0f} s; curves: {self.curves.path}")
        if self.report is not None:
            lines.append(f"report: {self.report}")
        return lines

    def _neighbours(self) -> list[str]:
        """Say what k-NN found before a training without labels and after it; nothing where it was not asked."""
        first = self.rows[0] if self.rows else {}
        for name, title in (("knn_top1", "top-1"), ("knn_map", "mAP")):
            if name in first and name in self.best:
                return [
                    f"k-NN {title} {first[name]:.1f} % before, {self.best[name]:.1f} % after, "
                    f"{first[f'teacher_{name}']:.1f} % of the teacher"
                ]
        return []

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row an epoch."""
        return self.rows


def _cell(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if "loss" in key else f"{value:.2f}"


@dataclass(frozen=True)
class MachineCheck:
    """One thing that was looked at on this machine."""

    name: str
    found: str
    fix: str
    """What to do about it; empty where it is good."""


class MachineChecks(ResultList[MachineCheck]):
    """Whether this machine is fit to train on."""

    @property
    def is_fit(self) -> bool:
        """Whether nothing has to be mended."""
        return not any(check.fix for check in self.items)

    def tables(self) -> Sequence[Table]:
        """Return one row for each thing that was looked at."""
        rows = tuple((check.name, check.found, check.fix or "good") for check in self.items)
        return [Table("", ("what", "found", "to do"), rows)]


@dataclass(frozen=True)
class LoadingSpeed(Result):
    """How fast training images are prepared on this machine, and how fast the model takes them."""

    stages: dict[str, float]
    """Seconds of one core for one image, by stage."""
    workers: int
    """Processes of the loader."""
    loader: float
    """Images per second of the whole loader."""
    model: float
    """Images per second of training updates on images that are there already."""
    device: str
    """Device that the updates were made on."""
    at_once: int
    """Images of a measured update."""
    unreadable: int
    """Images of the sample that could not be read."""
    advice: str
    """What limits training here, and what to do about it."""

    def tables(self) -> Sequence[Table]:
        """Return the stages, and all of them together."""
        from vitrail.training.bench_data import STAGES, rate

        rows = []
        for stage, text in STAGES.items():
            if seconds := self.stages[stage]:
                rows.append((stage, text, f"{1000 * seconds:.3f}", rate(1 / seconds)))
        together = sum(self.stages.values())
        rows.append(("together", "", f"{1000 * together:.3f}", rate(1 / together)))
        rows.append(("loader", f"{self.workers} workers", "", rate(self.loader)))
        updates = f"updates of {self.at_once:,} images on {self.device}"
        rows.append(("model", updates, "", rate(self.model)))
        title = "one image on one core, and all at work"
        return [Table(title, ("", "what", "ms", "images/s"), tuple(rows))]

    def lines(self) -> Sequence[str]:
        """Say what limits training here."""
        return [self.advice]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a stage."""
        return [{"stage": stage, "ms": 1000 * seconds} for stage, seconds in self.stages.items()]


@dataclass(frozen=True)
class ShownConfig(Result):
    """All settings of a recipe, and where each comes from."""

    recipe: str
    """File of the recipe."""
    values: dict[str, Any]
    """Each setting by its dotted key."""
    origins: dict[str, str]
    """Where each setting that is no default was written."""
    translated: Table | None
    """Keys of another project's file beside our settings."""

    def tables(self) -> Sequence[Table]:
        """Return one row a setting."""
        rows = [
            (key, dumps(value), self.origins.get(key, "default"))
            for key, value in self.values.items()
        ]
        table = Table(self.recipe, ("setting", "value", "from"), tuple(rows))
        return [table] if self.translated is None else [self.translated, table]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a setting."""
        return [
            {"setting": key, "value": value, "from": self.origins.get(key, "default")}
            for key, value in self.values.items()
        ]


@checked
def train(
    recipe: str | Path | None = None,
    settings: Settings | None = None,
    *,
    resume: str | Path | None = None,
    extend: str | Path | None = None,
    fork: str | Path | None = None,
    loss: Callable[[Any, Any], Any] | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> TrainResult:
    """Train a model and write its run folder.

    `vitrail.train("digits", {"train.epochs": 3}, output={"root": "runs"})` does what
    `vitrail train digits train.epochs=3 output.root=runs` does.

    Args:
        recipe: Name or file of a recipe, of other projects too; None is a small TNT on
            scikit-learn's digits.
        settings: Settings that go before the recipe's, such as {"optim.lr": 1e-3} or {"optim":
            {"lr": 1e-3}}.
        resume: Run folder to go on with; with a recipe, begun if it is not there yet.
        extend: Run folder to lengthen, with train.epochs.
        fork: Run folder whose weights a new run begins with.
        loss: A loss of your own instead of cross-entropy, such as one of torchvision.ops: it takes
            logits and targets, both (b, k), the targets with smoothing, mixing and class weights in
            them, and returns the loss of each image, (b,). The run records its name as train.loss,
            and is resumed with it only. `val_loss` stays the cross-entropy.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as optim={"lr": 1e-3}.

    Raises:
        ConfigError: Settings that are unknown, out of range, or do not fit together, the model or
            the data.
        DataError: The images are not there, or not as they should be.
        CheckpointError: A file of the run cannot be read or written.
        TrainingError: The loss is no longer finite, and going back did not help.
        Stopped: A signal or train.max_hours said so; everything is saved.
    """
    given = read_settings(train, settings, sections)
    if loss is not None:
        from vitrail.training.given_loss import name_loss

        of_training = {**given.layer.values.get("train", {}), "loss": name_loss(loss)}
        values = {**given.layer.values, "train": of_training}
        given = replace(given, layer=replace(given.layer, values=values))
    name = None if recipe is None else str(recipe)
    paths = {
        "resume": path_or_none(resume),
        "extend": path_or_none(extend),
        "fork": path_or_none(fork),
    }
    start = begin(name, given, **paths)

    from vitrail.training.initial_model import refuse_left_options
    from vitrail.training.train import train as run

    with shown(display, progress) as display:
        refuse_left_options(start.left, start.config.model.name)
        tell_remarks(display, start.remarks)
        done = run(
            start.config,
            name=start.name,
            resume=start.resume,
            fork=start.fork,
            display=display,
            loss=loss,
        )
    return TrainResult(**copy_fields(TrainResult, done))


@checked
def doctor(
    *,
    output: str | Path = "runs",
    json: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
) -> MachineChecks:
    """Look whether this machine is fit to train on, and say how to mend what is not.

    `vitrail.doctor()` does what `vitrail doctor` does.

    Args:
        output: Folder that runs are to be written to.
        json: File that everything is also written to, such as for a report of a fault.
        display: Where it is told that the file is written; None is the terminal or notebook.
        progress: Whether it is told in a terminal or notebook.

    Raises:
        ConfigError: The file cannot be written.
    """
    json_file = path_or_none(json)
    if json_file is not None:
        refuse_output("json", json_file, [])

    from vitrail.training.doctor import examine

    checks = examine(Path(output))
    result = MachineChecks(
        tuple(MachineCheck(check.name, check.found, check.fix) for check in checks)
    )
    if json_file is not None and is_main_process():
        with shown(display, progress) as display:
            whole = {"is_fit": result.is_fit, "checks": [asdict(check) for check in result.items]}
            write_json(json_file, whole, display)
    return result


@checked
def bench_data(
    recipe: str | Path | None = None,
    settings: Settings | None = None,
    *,
    seconds: float = 10.0,
    json: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> LoadingSpeed:
    """Measure how fast training images are read, decoded and varied here, against how fast the model takes them.

    `vitrail.bench_data("tnt_s_imagenet", {"data.root": FOLDER})` does what
    `vitrail bench-data tnt_s_imagenet data.root=FOLDER` does.

    Args:
        recipe: Name or file of a recipe.
        settings: Settings that go before the recipe's, such as {"data.workers": 8}.
        seconds: Time to measure the loader for, and again the model.
        json: File that the numbers are also written to.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"workers": 8}.

    Raises:
        ConfigError: Several processes, or settings that do not fit.
        DataError: The images are not there, or none of the sample can be read.
    """
    given = read_settings(bench_data, settings, sections)
    start = begin(None if recipe is None else str(recipe), given)
    if not seconds > 0:
        where = name_option("seconds")
        raise ConfigError(f"{where} is {seconds}; it must be above 0")
    json_file = path_or_none(json)
    written = [] if json_file is None else [("json", json_file)]
    if json_file is not None:
        refuse_output("json", json_file, [recipe or ""])

    from vitrail.training.bench_data import bench_data as run

    with shown(display, progress) as display:
        tell_remarks(display, start.remarks)
        speed = run(start.config, seconds, display, written)
        if json_file is not None:
            write_json(json_file, speed.to_dict(), display)
        if speed.unreadable:
            display.warn(
                f"{tell_count(speed.unreadable, 'image')} of the sample cannot be read; `vitrail check-data` "
                "names them"
            )
    return LoadingSpeed(
        stages=speed.seconds,
        workers=speed.workers,
        loader=speed.loader,
        model=speed.model,
        device=speed.device,
        at_once=speed.at_once,
        unreadable=speed.unreadable,
        advice=speed.advice,
    )


@checked
def show_config(
    recipe: str | Path | None = None, settings: Settings | None = None, **sections: Any
) -> ShownConfig:
    """Return a recipe's settings and where each comes from; a file of another project is translated first.

    `vitrail.show_config("digits", {"optim.lr": 1e-3})` does what `vitrail config digits
    optim.lr=1e-3` does.

    Args:
        recipe: Name or file of a recipe; None is digits.
        settings: Settings that go before the recipe's.
        sections: Settings by section, such as optim={"lr": 1e-3}.

    Raises:
        ConfigError: There is no such recipe, or a setting is wrong.
    """
    given = read_settings(show_config, settings, sections)
    read = open_recipe(None if recipe is None else str(recipe), given.keys)
    translated = None
    if (translation := read.translation) is not None:
        columns = ("their key", "their value", "our setting", "our value", "note")
        title = f"{read.path}: {translation.project}, {translation.compat}"
        translated = Table(title, columns, tuple(tuple(row) for row in translation.table()))
    resolved = resolve(TrainConfig, [read.layer, given.layer])
    return ShownConfig(read.path, flatten(resolved.config), dict(resolved.origins), translated)
