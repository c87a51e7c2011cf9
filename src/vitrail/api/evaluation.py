"""Evaluate from Python: the accuracy of a model on labelled images, and the preprocessing that fits its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitrail.api.arguments import checked
from vitrail.api.options import (
    path_or_none,
    read_settings,
    shown,
    tell_remarks,
    with_recipe,
    write_json,
)
from vitrail.api.results import Picture, Result, ResultList, Table
from vitrail.choices import Engine, Precision
from vitrail.config.resolve import Layer
from vitrail.display import Display
from vitrail.distributed.launch import is_main_process
from vitrail.errors import ConfigError, list_values, write_option
from vitrail.files import files_of, refuse_output, refuse_within, write_whole
from vitrail.migrate.given import Given, Settings
from vitrail.migrate.rules import Say

if TYPE_CHECKING:
    from vitrail.evaluation.evaluate import Comparison
    from vitrail.evaluation.evaluate import Evaluation as Measured
    from vitrail.whole_folder import WholeFolder

EVALUATE_SECTIONS = ("weights", "data", "preprocess", "evaluate")
"""Sections that say what is evaluated, and on which images."""


@dataclass(frozen=True)
class Evaluation(Result):
    """The accuracy of one model on one set of images."""

    checkpoint: str
    numbers: dict[str, Any]
    """Every number, such as top1 and loss, and where they come from, as --json writes them."""
    shown: dict[str, str]
    """The numbers of the table, by their titles."""
    images: int
    """Images that were counted."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read; none of them is counted."""
    warnings: tuple[str, ...]
    """What looks wrong about the labels or the answers."""
    data: str
    """Description of the images."""
    engine: str
    """Software that computed, its precision and device."""
    report: Path | None
    """The page of the report; None where none was asked for."""
    agreement: Comparison | None
    """How the answers compare with those of another file, where one was given."""

    @property
    def confusion(self) -> Picture | None:
        """The picture of true classes and answers, which a notebook shows; None without a report of one."""
        if self.report is None:
            return None
        path = self.report.with_name("confusion.png")
        return Picture(path) if path.is_file() else None

    def tables(self) -> Sequence[Table]:
        """Return the numbers as one row."""
        row = (f"{self.images:,}", f"{len(self.bad_files):,}", *self.shown.values())
        return [
            Table(
                f"{self.checkpoint} on {self.data}", ("images", "unreadable", *self.shown), (row,)
            )
        ]

    def lines(self) -> Sequence[str]:
        """Say how another file compares, and where the report is."""
        lines = []
        if (other := self.agreement) is not None:
            numbers = list_values(other.shown)
            lines.append(
                f"same answer as {other.path}: {other.equal:,} of {other.n:,}; scores differ by "
                f"{other.difference:.1e} at most; its numbers: {numbers}"
            )
        if self.report is not None:
            lines.append(f"report: {self.report}")
        return lines

    def records(self) -> Sequence[dict[str, Any]]:
        """Return the single numbers as one row."""
        row: dict[str, Any] = {"checkpoint": self.checkpoint}
        for name, value in self.numbers.items():
            if isinstance(value, int | float | str):
                row[name] = value
        return [row]


@dataclass(frozen=True)
class Sweep(ResultList[Evaluation]):
    """Evaluations of one model with every usual way of reading images, the best first."""

    preprocess: tuple[dict[str, Any], ...]
    """How images were read in each."""

    @property
    def best_settings(self) -> dict[str, Any]:
        """The settings that fit the weights best, as `evaluate` and `predict` take them."""
        best = self.preprocess[0]
        return {
            f"preprocess.{name}": best[name] for name in ("mean", "std", "crop", "interpolation")
        }

    def tables(self) -> Sequence[Table]:
        """Return one row for each way of reading images."""
        rows = []
        for evaluation, read in zip(self.items, self.preprocess, strict=True):
            ways = (
                str(list(read["mean"])),
                str(list(read["std"])),
                f"{read['crop']:g}",
                read["interpolation"],
            )
            rows.append((*ways, *evaluation.shown.values()))
        best = self.items[0]
        title = f"{best.checkpoint} on {best.images:,} images of {best.data}, the best first"
        return [Table(title, ("mean", "std", "crop", "interpolation", *best.shown), tuple(rows))]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row for each way of reading images."""
        pairs = zip(self.items, self.preprocess, strict=True)
        return [{**read, **evaluation.records()[0]} for evaluation, read in pairs]


@checked
def evaluate(
    checkpoint: str | Path,
    settings: Settings | None = None,
    *,
    config: str | Path | None = None,
    report: str | Path | bool = False,
    json: str | Path | None = None,
    engine: Engine | None = None,
    precision: Precision | None = None,
    against: str | Path | None = None,
    answers: str | Path | None = None,
    acc_log: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Evaluation:
    """Measure the accuracy of a trained model, or of what `export` made of it.

    `vitrail.evaluate("best.safetensors", {"data.root": FOLDER}, report=True)` does what
    `vitrail evaluate best.safetensors data.root=FOLDER` does. Without settings, on the images it
    was validated with.

    Args:
        checkpoint: The weight file, of any project, or an exported file.
        settings: Settings of the sections weights, data, preprocess and evaluate.
        config: Name or file of a recipe, for the images and the model.
        report: Folder of the report, whose earlier report is replaced; True is a new folder in
            evaluations/.
        json: File that the numbers are also written to.
        engine: What runs an exported file, where two can, as .onnx.
        precision: Precision of the computation; None is evaluate.precision, or an exported file's
            own.
        against: Another file of the model, whose answers to the same images are compared.
        answers: Folder with NAME_0.bin for each image, logits of another program, which are counted
            instead.
        acc_log: File that the two lines of the model zoo's acc.log are also written to.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        CheckpointError: The file is not one, or damaged; or the report cannot be written.
        ConfigError: A setting is unknown, of the wrong type or out of range.
        DataError: The images are not there, or their classes are not the model's.
    """
    layers, remarks = _evaluate_layers(
        read_settings(evaluate, settings, sections), config, precision
    )
    checkpoint, against_path = Path(checkpoint), path_or_none(against)
    answers_path = path_or_none(answers)
    outputs = _Outputs(path_or_none(json), path_or_none(acc_log))
    read = [*files_of(checkpoint), config or ""]
    if against_path is not None:
        read += files_of(against_path)
    for name, path in outputs.named():
        refuse_output(name, path, read)
    if answers_path is not None:
        _refuse_with_answers(answers_path, outputs, engine, precision)

    from vitrail.evaluation.evaluate import evaluate as run

    with shown(display, progress) as display:
        tell_remarks(display, remarks)
        measured = run(
            checkpoint,
            layers,
            engine=engine,
            against=against_path,
            answers=answers_path,
            report=_find_report_folder(report, checkpoint, answers_path),
            written=[] if outputs.json is None else [("json", outputs.json)],
            display=display,
        )
        result = _evaluation(checkpoint, measured)
        if is_main_process():
            _tell_and_write(result, measured, outputs, display)
    return result


@dataclass(frozen=True)
class _Outputs:
    """Files that the numbers of an evaluation are also written to."""

    json: Path | None
    acc_log: Path | None

    def named(self) -> list[tuple[str, Path]]:
        """Return those that are asked for, each with its option."""
        options = {"json": self.json, "acc_log": self.acc_log}
        return [(name, path) for name, path in options.items() if path is not None]


def _find_report_folder(
    report: str | Path | bool, checkpoint: Path, answers: Path | None
) -> WholeFolder | None:
    """Return the folder that a report is written to; None where none is asked for.

    Raises:
        ConfigError: It would stand among the answers of another program.
    """
    from vitrail.evaluation.evaluate import report_folder, report_name

    if report is False:
        return None
    folder = Path("evaluations", report_name(checkpoint)) if report is True else Path(report)
    if answers is not None:
        refuse_within("report", folder, "answers", answers)
    return report_folder(folder, never_replace=report is True)


def _tell_and_write(
    result: Evaluation, measured: Measured, outputs: _Outputs, display: Display
) -> None:
    """Warn of what is wrong with the images and labels, and write the numbers where that is asked for."""
    for name, reason in result.bad_files:
        display.warn(f"{name}: {reason}; not counted")
    for warning in result.warnings:
        display.warn(warning)
    if outputs.json is not None:
        write_json(outputs.json, {"checkpoint": result.checkpoint, **result.numbers}, display)
    if outputs.acc_log is not None:
        advice = f"choose another file with {write_option('acc_log')}"
        write_whole(outputs.acc_log, measured.accuracy.acc_log().encode(), advice)
        display.note(f"as the model zoo: {outputs.acc_log}")


@checked
def sweep_preprocess(
    checkpoint: str | Path,
    settings: Settings | None = None,
    *,
    config: str | Path | None = None,
    json: str | Path | None = None,
    engine: Engine | None = None,
    precision: Precision | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Sweep:
    """Evaluate a model with the usual means, crops and filters, to find those that fit its weights.

    `vitrail.sweep_preprocess("tnt_small.ckpt", {"data.root": FOLDER})` does what
    `vitrail evaluate tnt_small.ckpt data.root=FOLDER --sweep-preprocess` does.

    Args:
        checkpoint: The weight file, of any project, or an exported file.
        settings: Settings of the sections weights, data, preprocess and evaluate.
        config: Name or file of a recipe, for the images and the model.
        json: File that the numbers are also written to.
        engine: What runs an exported file, where two can, as .onnx.
        precision: Precision of the computation; None is evaluate.precision, or an exported file's
            own.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        CheckpointError: The file is not one, or damaged.
        ConfigError: A setting is unknown, of the wrong type or out of range.
        DataError: The images are not there, or their classes are not the model's.
    """
    given = read_settings(sweep_preprocess, settings, sections)
    layers, remarks = _evaluate_layers(given, config, precision)
    checkpoint, json_file = Path(checkpoint), path_or_none(json)
    if json_file is not None:
        refuse_output("json", json_file, [*files_of(checkpoint), config or ""])

    from vitrail.evaluation.evaluate import sweep

    written = [] if json_file is None else [("json", json_file)]
    with shown(display, progress) as display:
        tell_remarks(display, remarks)
        tried = sweep(checkpoint, layers, engine=engine, written=written, display=display)
        if json_file is not None and is_main_process():
            write_json(json_file, [one.to_dict() for one in tried], display)
    ways = tuple(_way_of_reading(one) for one in tried)
    return Sweep(tuple(_evaluation(checkpoint, one) for one in tried), ways)


def _way_of_reading(measured: Measured) -> dict[str, Any]:
    preprocess = measured.preprocess
    return {name: getattr(preprocess, name) for name in ("mean", "std", "crop", "interpolation")}


def _evaluate_layers(
    given: Given, config: str | Path | None, precision: Precision | None
) -> tuple[list[Layer], list[tuple[Say, str]]]:
    """Return the settings of an evaluation, and what their translation says."""
    layers, remarks = with_recipe(config, given, EVALUATE_SECTIONS)
    if precision is not None:
        layers.append(Layer(given.layer.origin, {"evaluate": {"precision": precision}}))
    return layers, remarks


def _refuse_with_answers(
    answers: Path,
    outputs: _Outputs,
    engine: Engine | None,
    precision: Precision | None,
) -> None:
    """Refuse what has no meaning where nothing is computed, and files among the answers.

    Raises:
        ConfigError: There is such an option.
    """
    for name, path in outputs.named():
        refuse_within(name, path, "answers", answers)
    for name, value in (("engine", engine), ("precision", precision)):
        if value is not None:
            where, other = write_option(name, value), write_option("answers")
            raise ConfigError(f"{where}: with {other} nothing is computed; leave one of them out")


def _evaluation(checkpoint: Path, measured: Measured) -> Evaluation:
    accuracy = measured.accuracy
    return Evaluation(
        checkpoint=str(checkpoint),
        numbers=measured.to_dict(),
        shown=accuracy.shown,
        images=accuracy.n,
        bad_files=measured.bad_files,
        warnings=accuracy.warnings,
        data=measured.data,
        engine=measured.engine,
        report=measured.report,
        agreement=measured.agreement,
    )
