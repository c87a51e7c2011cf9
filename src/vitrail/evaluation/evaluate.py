"""Evaluate weight files and exported files on labelled images, each counted exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import Accelerator

from vitrail.choices import Precision
from vitrail.classes.matching import read_class_names
from vitrail.config.commands import EvaluateConfig
from vitrail.config.resolve import Layer, to_dict
from vitrail.data.loader import ImageLoader, build_eval_loader
from vitrail.data.opening import list_files_read, open_split
from vitrail.data.sources import Source
from vitrail.data.tables.hub import pin_revision
from vitrail.display import Display, Quiet
from vitrail.distributed.processes import processes, share
from vitrail.errors import CheckpointError, ConfigError, DataError, name_option, write_option
from vitrail.evaluation.match import check_pixels, check_task, find_trained_images, match_classes
from vitrail.evaluation.measure import Measured, measure
from vitrail.evaluation.mistake_maps import MistakeMaps
from vitrail.evaluation.report import FILES, PAGE, Subject
from vitrail.evaluation.settings import resolve_for
from vitrail.evaluation.task import Metrics, Task, task_of
from vitrail.files import refuse_replacing
from vitrail.imagenet import IMAGENET_MEAN, IMAGENET_STD
from vitrail.images.input_check import InputCheck
from vitrail.images.preprocess import Preprocess, fit_statistics
from vitrail.inference.bin_files import LogitFiles, find_logits
from vitrail.inference.network import (
    Artifact,
    Network,
    read_artifact,
    require_classes,
    tell_program,
)
from vitrail.kernels.prepare import prepare_kernels
from vitrail.models.registry import kernels_of
from vitrail.weights.checkpoint import Record
from vitrail.weights.config_fields import RATES
from vitrail.weights.loading import override_preprocess
from vitrail.weights.opened import show_account
from vitrail.weights.request import resolve_request
from vitrail.whole_folder import WholeFolder

STATISTICS = ((IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3))
"""Mean and standard deviation that published models were trained with."""
CROPS = (0.875, 0.9, 1.0)
"""Shares of the shorter side that published models are evaluated on."""
INTERPOLATIONS: tuple[Literal["bicubic", "bilinear"], ...] = ("bicubic", "bilinear")
"""Filters that published models' images are resized by."""


@dataclass(frozen=True)
class Comparison:
    """How the answers of two files to the same images compare."""

    path: str
    """Path of the other file."""
    n: int
    """Images that both answered."""
    equal: int
    """Images with the same answer: the likeliest class, or in multi-label models all that reach
    their thresholds."""
    difference: float
    """Largest difference of any logarithm of a probability, or in multi-label models of any
    logit."""
    numbers: dict[str, Any]
    """The other file's metrics."""
    shown: dict[str, str]
    """The other file's metrics as a table shows them."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        about = {"path": self.path, "n": self.n, "equal": self.equal, "difference": self.difference}
        metrics = {name: value for name, value in self.numbers.items() if name != "n"}
        return {**about, **metrics}


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of one model on one set of images."""

    accuracy: Metrics
    """The numbers."""
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read; none of them is counted as right or
    wrong."""
    data: str
    """Description of the images."""
    preprocess: Preprocess
    """How images were read."""
    engine: str
    """The software that computed, its precision and device."""
    report: Path | None = None
    """The report's page."""
    agreement: Comparison | None = None
    """Comparison with another file, where one was given."""

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON."""
        metrics, unreadable = self.accuracy, len(self.bad_files)
        values = {name: value for name, value in metrics.numbers().items() if name != "n"}
        values |= metrics.numbers_of_all_images(unreadable)
        values |= {
            "n_ok": metrics.n,
            "n_bad": unreadable,
            "bad_files": [{"path": name, "error": reason} for name, reason in self.bad_files],
            "warnings": list(metrics.warnings),
            "data": self.data,
            "preprocess": self.preprocess.to_dict(),
            "engine": self.engine,
        }
        if self.agreement:
            values["agreement"] = self.agreement.to_dict()
        return values


def evaluate(
    path: Path,
    settings: Sequence[Layer] = (),
    *,
    engine: str | None = None,
    against: Path | None = None,
    answers: Path | None = None,
    report: WholeFolder | None = None,
    written: Sequence[tuple[str, Path]] = (),
    display: Display | None = None,
) -> Evaluation:
    """Evaluate a weight file or an exported file on the images that `settings` name, or on those it was validated with.

    Args:
        path: The weight file, of any project, or what `vitrail export` wrote; with `answers` a file
            of names will do.
        settings: Settings of the sections weights, data, preprocess and evaluate.
        engine: Engine that is to run an exported file; None is the usual one.
        against: Another file of the same model, whose answers to the same images are compared.
        answers: Folder with the logits of each image, NAME_0.bin, which are counted instead of
            running the file.
        report: Folder of the report, see `report_folder`; None writes none.
        written: Files that are written afterwards, by the option that names each; none may be one
            of the images.
        display: Shows progress, notes and warnings.

    Raises:
        CheckpointError: The file is damaged, or of no known kind; or the report cannot be written.
        ConfigError: A setting is unknown, of the wrong type or out of range.
        DataError: The images are not there, or their classes are not the model's.
    """
    files = _open_files(path, settings, engine, against, answers, display or Quiet())
    with _started(files, report, written) as job:
        display = job.display
        maps = _open_maps(job, report)
        loader = job.build_loader(job.preprocess)
        passes = 1 if files.other is None else 2
        display.begin("evaluate", passes * len(loader))
        inputs = InputCheck()
        keep_answers = report is not None or files.other is not None
        measured = job.measure(loader, job.preprocess, keep_answers, inputs)
        if doubt := inputs.doubt(job.preprocess.mean, job.preprocess.std):
            display.warn(doubt)
        agreement = (
            _compare(job, files.other, loader, measured) if files.other is not None else None
        )
        page = _publish(job, report, measured, maps) if report is not None else None
        display.end()
        return job.result(measured, job.preprocess, page, agreement)


def sweep(
    path: Path,
    settings: Sequence[Layer] = (),
    *,
    engine: str | None = None,
    written: Sequence[tuple[str, Path]] = (),
    display: Display | None = None,
) -> list[Evaluation]:
    """Evaluate a weight file with every usual way of reading images, the best first, to find the one that fits it.

    Raises: As `evaluate` does.
    """
    files = _open_files(path, settings, engine, None, None, display or Quiet())
    with _started(files, None, written) as job:
        loaders = [
            (preprocess, job.build_loader(preprocess)) for preprocess in _usual_ways(job.preprocess)
        ]
        job.display.begin("evaluate", sum(len(loader) for _, loader in loaders))
        results = []
        for preprocess, loader in loaders:
            # images that do not look as usual are expected here, so nothing watches the inputs
            measured = job.measure(loader, preprocess, keep_answers=False, inputs=None)
            results.append(job.result(measured, preprocess))
        job.display.end()
    return sorted(results, key=lambda result: result.accuracy.best_first)


def report_folder(folder: Path, *, never_replace: bool = False) -> WholeFolder:
    """Return a folder to write a report to.

    Args:
        folder: The folder; an earlier report there is replaced, anything else is not.
        never_replace: Take the next number that is free instead: digits, digits-2, digits-3.
    """
    advice = f"free space or choose another folder with {write_option('report')}"
    return WholeFolder(folder, FILES, advice, never_replace=never_replace)


def report_name(path: Path) -> str:
    """Return the name of a report on a weight file: that of the run whose best weights it holds, or else the file's.

    Colons, which names of published weights have, are none that every file system takes.
    """
    path = path.absolute()
    is_best_of_a_run = path.name.startswith("best") and path.suffix == ".safetensors"
    return (path.parent.name if is_best_of_a_run else path.stem).replace(":", "-")


@dataclass(frozen=True)
class _Files:
    """The files that are evaluated, and the settings."""

    path: Path
    artifact: Artifact
    other: Artifact | None
    """Another file, whose answers are compared."""
    answers: Path | None
    """Folder of logits that another program gave."""
    config: EvaluateConfig
    precision: Precision | None
    """Precision that is asked for; None is an exported file's own."""
    display: Display


def _open_files(
    path: Path,
    settings: Sequence[Layer],
    engine: str | None,
    against: Path | None,
    answers: Path | None,
    display: Display,
) -> _Files:
    """Read the files' descriptions, and settle the settings, before any image is looked for."""
    if answers is not None and path.suffix.lower() in (".txt", ".json"):
        artifact = _read_names(path)
    else:
        artifact = read_artifact(path, engine, resolve_request(settings), display=display)
    other = None if against is None else _same_model(artifact, against, display)
    require_classes(artifact.record, path)
    for opened in (artifact, other):
        if opened is not None and opened.weights is not None:
            show_account(opened.weights, display)
    if answers is None:
        tell_program(path, display)
    if against is not None:
        tell_program(against, display)
    resolved = resolve_for(artifact.record, settings)
    check_pixels(artifact.record, resolved.config.data, path)
    precision = (
        resolved.config.evaluate.precision if "evaluate.precision" in resolved.origins else None
    )
    return _Files(path, artifact, other, answers, resolved.config, precision, display)


def _read_names(path: Path) -> Artifact:
    """Read a file of class names, which describes a model that gave its answers elsewhere."""
    classes = read_class_names(path, "names of classes")
    options = {"num_classes": len(classes), "in_channels": 3}
    record = Record(
        model="not named", options=options, classes=classes, preprocess=Preprocess(size=(224, 224))
    )
    return Artifact(path=str(path), record=record, engine="torch")


def _same_model(artifact: Artifact, against: Path, display: Display) -> Artifact:
    """Open a file whose answers are to be compared.

    Where one of the two names no classes, as those of MindSpore, it is taken to have the other's.

    Raises:
        ConfigError: The file is of another model, or of other classes.
    """
    other = read_artifact(against, display=display)
    nameless = [one.path for one in (artifact, other) if not one.record.classes]
    for what in ("model", "options", *(() if nameless else ("classes",))):
        if _deciding(other.record, what) != _deciding(artifact.record, what):
            where = write_option("against", against)
            raise ConfigError(
                f"{where}: has other {what} than {artifact.path}; give what it was made from"
            )
    if len(nameless) == 1:
        display.warn(f"{nameless[0]}: names no classes; its outputs are taken in the other's order")
    return other


def _deciding(record: Record, what: str) -> object:
    """Return a part of a description, without the rates that count in training alone."""
    value = getattr(record, what)
    if what != "options":
        return value
    return {name: option for name, option in value.items() if name not in RATES}


@dataclass(frozen=True)
class _Job:
    """A started evaluation, on each of its processes: settings, images, network."""

    files: _Files
    config: EvaluateConfig
    """The settings, with the revision of a data set of the Hub pinned."""
    record: Record
    """The model's description, with the classes in the order of the labels."""
    source: Source
    preprocess: Preprocess
    network: Network | LogitFiles
    accelerator: Accelerator

    @property
    def display(self) -> Display:
        return self.files.display

    @property
    def task(self) -> Task:
        counts = self.record.provenance.get("training_counts")
        training_counts = None if counts is None else np.array(counts)
        return task_of(
            self.source, training_counts=training_counts, thresholds=self.record.thresholds
        )

    def build_loader(self, preprocess: Preprocess) -> ImageLoader:
        """Return a loader of this process's share of the images."""
        return build_eval_loader(
            self.source,
            preprocess,
            batch_size=self.config.evaluate.batch_size,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            workers=self.config.data.workers,
            bad_files=self.config.data.bad_files,
            pin_memory=self.accelerator.device.type == "cuda",
        )

    def measure(
        self,
        loader: ImageLoader,
        preprocess: Preprocess,
        keep_answers: bool,
        inputs: InputCheck | None,
        other: Network | None = None,
    ) -> Measured:
        """Evaluate the network, or another on the same images."""
        network = other or self.network
        batches = loader
        if isinstance(network, LogitFiles):
            batches = network.batches(
                self.source, self.accelerator.process_index, self.accelerator.num_processes
            )
        return measure(
            network,
            batches,
            self.task,
            preprocess,
            self.accelerator,
            advance=self.display.advance,
            keep_answers=keep_answers,
            inputs=inputs,
        )

    def result(
        self,
        measured: Measured,
        preprocess: Preprocess,
        page: Path | None = None,
        agreement: Comparison | None = None,
    ) -> Evaluation:
        """Return the numbers with their origin."""
        return Evaluation(
            accuracy=measured.metrics,
            bad_files=tuple(measured.bad_files),
            data=self.source.description,
            preprocess=preprocess,
            engine=self.network.about,
            report=page,
            agreement=agreement,
        )


@contextmanager
def _started(
    files: _Files, report: WholeFolder | None, written: Sequence[tuple[str, Path]]
) -> Iterator[_Job]:
    """Join the processes, bring model and images together, and start the network."""
    path, config, display = files.path, files.config, files.display
    with processes("float32", config.evaluate.device) as accelerator, _staged(report, accelerator):
        # Images: a set is downloaded once, by one process of a machine.
        pinned = pin_revision(config.data) if accelerator.is_main_process else None
        data = share(accelerator, pinned)
        with accelerator.local_main_process_first():
            source, notes = open_split(data, config.evaluate.split)
        outputs = [*written]
        if report is not None:
            outputs += [("report", file) for file in report.earlier_files()]
        for flag, file in outputs:
            refuse_replacing(flag, file, list_files_read(data, source))

        # Model and images: of one kind of labels, with the same classes in the same order.
        config = replace(config, data=data)
        check_task(files.artifact.record, source, path)
        record, source = match_classes(files.artifact.record, source, data, path, display)
        if trained := find_trained_images(record, config, source):
            display.warn(trained)
        preprocess = override_preprocess(record.preprocess, config.preprocess, display)
        for note in notes:
            display.note(note)

        # The network, or the answers that it gave elsewhere.
        if files.answers is None:
            prepare_kernels(kernels_of(record.model), accelerator.device.type, display.note)
            network = files.artifact.start(accelerator.device, files.precision)
            if files.artifact.weights is None:
                display.note(f"{path}: run by {network.about}")
        else:
            network = _read_logits(files.answers, source, record, data.bad_files)
        yield _Job(files, config, record, source, preprocess, network, accelerator)


@contextmanager
def _staged(report: WholeFolder | None, accelerator: Accelerator) -> Iterator[None]:
    """Prepare the folder of a report on the first process, so that what hinders it is found before the work."""
    if report is None or not accelerator.is_main_process:
        yield
        return
    with report.staged():
        yield


def _read_logits(folder: Path, source: Source, record: Record, bad_files: str) -> LogitFiles:
    """Find the logits of each image.

    Raises:
        DataError: One of them cannot be read, and none may be left out.
    """
    logits = find_logits(folder, source, record.options["num_classes"], record.preprocess.pixels)
    if logits.bad and bad_files != "skip":
        index, reason = next(iter(logits.bad.items()))
        raise DataError(
            f"{source.name(index)}: cannot be read, {reason}; repair or remove it, or set "
            "data.bad_files=skip"
        )
    return logits


def _compare(
    job: _Job, other: Artifact, loader: ImageLoader, measured: Measured
) -> Comparison | None:
    """Evaluate another file on the same images, and compare the answers on the first process."""
    network = other.start(job.accelerator.device)
    theirs = job.measure(loader, job.preprocess, keep_answers=True, inputs=None, other=network)
    if measured.answers is None or theirs.answers is None:
        return None
    difference = float(np.abs(measured.answers.scores - theirs.answers.scores).max())
    equal = int(job.task.same_answers(measured.answers, theirs.answers, theirs.metrics).sum())
    return Comparison(
        path=other.path,
        n=len(measured.answers.indices),
        equal=equal,
        difference=difference,
        numbers=theirs.metrics.numbers(),
        shown=theirs.metrics.shown,
    )


def _open_maps(job: _Job, report: WholeFolder | None) -> MistakeMaps | None:
    """Return what draws the maps of mistakes, before any image is answered; None where they are not asked for.

    Raises:
        ConfigError: The answers are another program's, so that there is no model to explain.
        MissingExtra: The method needs captum, which is not installed.
    """
    if not job.config.evaluate.explain:
        return None
    if isinstance(job.network, LogitFiles):
        raise ConfigError(
            f"evaluate.explain=true: with {name_option('answers')} there is no model to explain; "
            "leave it out"
        )
    if report is None:
        job.display.warn(
            f"evaluate.explain=true: maps are shown in a report; ask for one with "
            f"{write_option('report', True)}"
        )
        return None
    if not job.accelerator.is_main_process:
        return None
    return MistakeMaps(job.network, job.preprocess, job.record.classes)


def _publish(
    job: _Job, report: WholeFolder, measured: Measured, maps: MistakeMaps | None
) -> Path | None:
    """Write the report on the first process, and return its page."""
    if measured.answers is None:
        return None
    engine = "answers" if isinstance(job.network, LogitFiles) else job.network.engine
    subject = Subject(
        name=report_name(job.files.path),
        path=Path(job.files.artifact.path),
        record=job.record,
        source=job.source,
        preprocess=job.preprocess,
        settings=to_dict(job.config),
        device=job.accelerator.device,
        engine=engine,
        guard_csv=job.config.evaluate.guard_csv,
        maps=maps,
    )
    files = job.task.report_files(subject, measured.answers, measured.metrics, measured.bad_files)
    try:
        folder, replaced = report.publish(files)
    except CheckpointError as error:
        # the work may have taken an hour, so its outcome is told all the same
        raise CheckpointError(
            f"{error}; the evaluation itself found {_in_words(measured.metrics)}"
        ) from error
    if replaced:
        job.display.note(f"{folder}: held an earlier report, which is replaced")
    return folder / PAGE


def _in_words(metrics: Metrics) -> str:
    """Return the numbers of a table in a sentence: `loss 0.5, top-1 90.0 %`."""
    phrases = []
    for title, value in metrics.shown.items():
        name, *unit = title.split(", ")
        phrases.append(" ".join((name, value, *unit)))
    return ", ".join(phrases)


def _usual_ways(stored: Preprocess) -> list[Preprocess]:
    """Return every usual way of reading images, and those that a weight file names."""
    # nothing is cut off a squashed or framed image
    crops = {stored.crop, *CROPS} if stored.resize == "crop" else {stored.crop}
    pairs = ((stored.mean, stored.std), *STATISTICS)
    statistics = dict.fromkeys(fit_statistics(stored.channels, mean, std) for mean, std in pairs)
    return [
        replace(stored, mean=mean, std=std, crop=crop, interpolation=interpolation)
        for mean, std in statistics
        for crop in sorted(crops)
        for interpolation in INTERPOLATIONS
    ]
