"""Models at work from Python: evaluate, predict, serve, measure speed, and check files."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrail.api.options import (
    path_or_none,
    read_settings,
    require_at_least,
    settings_alone,
    shown,
    tell_remarks,
    with_recipe,
    write_json,
)
from vitrail.api.results import Result, ResultList, Table, first_rows, rows_left_out
from vitrail.config.commands import DataConfig, PredictConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.config.sections import DataSection
from vitrail.display import Display
from vitrail.distributed.launch import is_main_process
from vitrail.errors import ConfigError, MissingExtra
from vitrail.files import files_of, refuse_output, refuse_within, write_whole
from vitrail.migrate.given import Given, Settings
from vitrail.migrate.rules import Say

if TYPE_CHECKING:
    from vitrail.evaluation.evaluate import Comparison
    from vitrail.evaluation.evaluate import Evaluation as Measured
    from vitrail.inference import predictor as predicting
    from vitrail.inference.bench import Measured as Latency
    from vitrail.inference.verify import Verified

Engine = Literal["torch", "onnxruntime", "openvino", "aotinductor", "torchscript", "mindspore"]
Precision = Literal["float32", "bfloat16", "float16"]
Device = Literal["auto", "cpu"]
Format = Literal["json", "jsonl", "csv"]
EVALUATE_SECTIONS = ("weights", "data", "preprocess", "evaluate")
"""Sections that say what is evaluated, and on which images."""
OF_WEIGHTS = ("weights", "preprocess")
"""Sections that say how a weight file and images are read."""
SERVE_NEEDS = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")
"""Packages of the server."""


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

    def tables(self) -> Sequence[Table]:
        """Return the numbers as one row."""
        row = (f"{self.images:,}", f"{len(self.bad_files):,}", *self.shown.values())
        return [Table(f"{self.checkpoint} on {self.data}", ("images", "unreadable", *self.shown), (row,))]

    def lines(self) -> Sequence[str]:
        """Say how another file compares, and where the report is."""
        lines = []
        if (other := self.agreement) is not None:
            numbers = ", ".join(f"{name} {value}" for name, value in other.shown.items())
            lines.append(
                f"same answer as {other.path}: {other.equal:,} of {other.n:,}; scores differ by {other.difference:.1e} "
                f"at most; its numbers: {numbers}"
            )
        if self.report is not None:
            lines.append(f"report: {self.report}")
        return lines

    def records(self) -> Sequence[dict[str, Any]]:
        """Return the single numbers as one row."""
        single = {name: value for name, value in self.numbers.items() if isinstance(value, int | float | str)}
        return [{"checkpoint": self.checkpoint, **single}]


@dataclass(frozen=True)
class Sweep(ResultList[Evaluation]):
    """Evaluations of one model with every usual way of reading images, the best first."""

    preprocess: tuple[dict[str, Any], ...]
    """How images were read in each."""

    @property
    def best_settings(self) -> dict[str, Any]:
        """The settings that fit the weights best, as `evaluate` and `predict` take them."""
        best = self.preprocess[0]
        return {f"preprocess.{name}": best[name] for name in ("mean", "std", "crop", "interpolation")}

    def tables(self) -> Sequence[Table]:
        """Return one row for each way of reading images."""
        rows = []
        for evaluation, read in zip(self.items, self.preprocess, strict=True):
            ways = (str(list(read["mean"])), str(list(read["std"])), f"{read['crop']:g}", read["interpolation"])
            rows.append((*ways, *evaluation.shown.values()))
        best = self.items[0]
        title = f"{best.checkpoint} on {best.images:,} images of {best.data}, the best first"
        return [Table(title, ("mean", "std", "crop", "interpolation", *best.shown), tuple(rows))]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row for each way of reading images."""
        pairs = zip(self.items, self.preprocess, strict=True)
        return [{**read, **evaluation.records()[0]} for evaluation, read in pairs]


@dataclass(frozen=True)
class Choice:
    """One class that an image was given."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The classes of one image, or why it could not be read."""

    path: str
    topk: tuple[Choice, ...]
    """The classes, the most probable first; of a multi-label model all that reach their thresholds."""
    error: str | None
    """Why the image could not be read; None where it was."""
    multi_label: bool
    """Whether the model gives an image any number of classes."""

    @property
    def name(self) -> str | None:
        """The name of the most probable class; None where there is none."""
        return self.topk[0].name if self.topk else None

    @property
    def index(self) -> int | None:
        """The number of the most probable class; None where there is none."""
        return self.topk[0].index if self.topk else None

    @property
    def probability(self) -> float | None:
        """The probability of that class."""
        return self.topk[0].probability if self.topk else None


@dataclass(frozen=True)
class Predictions(ResultList[Prediction]):
    """The predictions of several images, in the order given."""

    output: Path | None
    """File that they were written to, where one was asked for."""

    @property
    def bad_files(self) -> list[Prediction]:
        """The images that could not be read."""
        return [one for one in self.items if one.error is not None]

    def tables(self) -> Sequence[Table]:
        """Return one row an image."""
        rows = []
        for one in first_rows(self.items):
            names = ", ".join(choice.name for choice in one.topk)
            shares = ", ".join(f"{choice.probability:.3f}" for choice in one.topk)
            rows.append((one.path, names, shares, one.error or ""))
        return [Table("", ("image", "class", "probability", "error"), tuple(rows))]

    def lines(self) -> Sequence[str]:
        """Say how many images are not shown."""
        return rows_left_out(len(self.items))

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row an image, and further classes in columns of their own."""
        rows = []
        for one in self.items:
            row: dict[str, Any] = {"path": one.path, "name": one.name, "probability": one.probability}
            for place, choice in enumerate(one.topk[1:], 2):
                row |= {f"name_{place}": choice.name, f"probability_{place}": choice.probability}
            rows.append({**row, "error": one.error})
        return rows


@dataclass(frozen=True)
class WrittenInputs(Result):
    """Files with what a model sees of each image, for an inference program elsewhere."""

    folder: Path
    """Folder of the float32 files."""
    images: int
    shape: tuple[int, ...]
    """Channels, height and width of each."""
    bad_files: tuple[tuple[str, str], ...]
    """Path and reason of each image that could not be read."""
    replaced: bool
    """Whether earlier files were replaced."""

    def lines(self) -> Sequence[str]:
        """Say what was written."""
        end = " (replaced)" if self.replaced else ""
        return [f"{self.folder}: {self.images:,} images as float32 {self.shape}{end}"]


@dataclass(frozen=True)
class Latencies(ResultList[Any]):
    """How fast models and files answer, at each batch size."""

    items: tuple[Latency, ...]
    rounds: int
    """Alternating rounds that they were measured in."""

    def tables(self) -> Sequence[Table]:
        """Return one row for each model or file and batch size."""
        rows = []
        for one in self.items:
            times = (f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", f"{one.images_per_s:.1f}")
            sizes = (f"{one.peak_mib:,.0f}", f"{one.params / 1e6:.2f}", f"{one.macs / 1e9:.3f}")
            rows.append((one.name, one.about, str(one.batch_size), *times, *sizes))
        columns = ("what", "run by", "batch", "p50, ms", "p99, ms", "images/s", "peak, MiB", "params, M", "MACs, G")
        title = f"{self.items[0].runs} runs of each, in {self.rounds} alternating rounds"
        return [Table(title, columns, tuple(rows))]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row for each model or file and batch size."""
        return [asdict(one) for one in self.items]


@dataclass(frozen=True)
class FileChecks(ResultList[Any]):
    """Whether files are as they were written."""

    items: tuple[Verified, ...]

    @property
    def damaged(self) -> list[Verified]:
        """The files that are damaged, or of no known kind."""
        return [one for one in self.items if one.is_whole is False]

    def tables(self) -> Sequence[Table]:
        """Return one row a file."""
        rows = tuple((one.path, one.kind, one.verdict, one.by) for one in self.items)
        return [Table("", ("file", "what", "is", "by"), rows)]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a file."""
        return [asdict(one) for one in self.items]


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
    `vitrail evaluate best.safetensors data.root=FOLDER` does. Without settings, on the images it was validated with.

    Args:
        checkpoint: The weight file, of any project, or an exported file.
        settings: Settings of the sections weights, data, preprocess and evaluate.
        config: Name or file of a recipe, for the images and the model.
        report: Folder of the report, whose earlier report is replaced; True is a new folder in evaluations/.
        json: File that the numbers are also written to.
        engine: What runs an exported file, where two can, as .onnx.
        precision: Precision of the computation; None is evaluate.precision, or an exported file's own.
        against: Another file of the model, whose answers to the same images are compared.
        answers: Folder with NAME_0.bin for each image, logits of another program, which are counted instead.
        acc_log: File that the two lines of the model zoo's acc.log are also written to.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        CheckpointError: The file is not one, or damaged; or the report cannot be written.
        ConfigError: A setting is unknown, of the wrong type or out of range.
        DataError: The images are not there, or their classes are not the model's.
    """
    given = read_settings(evaluate, settings, sections)
    layers, remarks = _evaluate_layers(given, config, precision)
    checkpoint, against_path, answers_path = Path(checkpoint), path_or_none(against), path_or_none(answers)
    read = [*files_of(checkpoint), *(() if against_path is None else files_of(against_path)), config or ""]
    json_file, acc_file = path_or_none(json), path_or_none(acc_log)
    outputs = [(name, path) for name, path in (("--json", json_file), ("--acc-log", acc_file)) if path is not None]
    for name, path in outputs:
        refuse_output(name, path, read)
    if answers_path is not None:
        _refuse_with_answers(answers_path, outputs, engine, precision)

    from vitrail.evaluation.evaluate import evaluate as run
    from vitrail.evaluation.evaluate import report_folder, report_name

    with shown(display, progress) as display:
        tell_remarks(display, remarks)
        whole = None
        if report is not False:
            folder = Path("evaluations", report_name(checkpoint)) if report is True else Path(report)
            if answers_path is not None:
                refuse_within("--report", folder, "--answers", answers_path)
            whole = report_folder(folder, never_replace=report is True)
        measured = run(
            checkpoint,
            layers,
            engine=engine,
            against=against_path,
            answers=answers_path,
            report=whole,
            written=[(name, path) for name, path in outputs if name == "--json"],
            display=display,
        )
        result = _evaluation(checkpoint, measured)
        if is_main_process():
            for name, reason in result.bad_files:
                display.warn(f"{name}: {reason}; not counted")
            for warning in result.warnings:
                display.warn(warning)
            if json_file is not None:
                write_json(json_file, {"checkpoint": result.checkpoint, **result.numbers}, display)
            if acc_file is not None:
                write_whole(acc_file, measured.accuracy.acc_log().encode(), "choose another file with --acc-log")
                display.note(f"as the model zoo: {acc_file}")
    return result


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
        precision: Precision of the computation; None is evaluate.precision, or an exported file's own.
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
        refuse_output("--json", json_file, [*files_of(checkpoint), config or ""])

    from vitrail.evaluation.evaluate import sweep

    written = [] if json_file is None else [("--json", json_file)]
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
    answers: Path, outputs: Sequence[tuple[str, Path]], engine: Engine | None, precision: Precision | None
) -> None:
    """Refuse what has no meaning where nothing is computed, and files among the answers.

    Raises:
        ConfigError: There is such an option.
    """
    for name, path in outputs:
        refuse_within(name, path, "--answers", answers)
    for name, value in (("--engine", engine), ("--precision", precision)):
        if value is not None:
            raise ConfigError(f"{name} {value}: with --answers nothing is computed; leave one of them out")


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


def predict(
    checkpoint: str | Path,
    images: str | Path | Iterable[str | Path],
    settings: Settings | None = None,
    *,
    config: str | Path | None = None,
    output: str | Path | None = None,
    format: Format | None = None,
    topk: int | None = None,
    batch_size: int = 32,
    device: Device = "auto",
    engine: Engine | None = None,
    precision: Precision | None = None,
    csv_as_is: bool = False,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Predictions:
    """Classify images, and return a row for each, in the order given; a file is written only if `output` names one.

    `vitrail.predict("best.safetensors", "photos/", output="photos.csv", topk=5)` does what
    `vitrail predict best.safetensors photos/ --output photos.csv --topk 5` does. `iterate_predictions` of
    vitrail.api.inference yields the rows one by one, for images without number.

    Args:
        checkpoint: The weight file, of any project, or an exported file.
        images: An image, a folder, a glob, a list of paths in a file, or several of these.
        settings: How the file and images are read, of the sections weights and preprocess; for lists with columns,
            data.root and data.path_column.
        config: Name or file of a recipe, for the model and how images are read.
        output: File to write.
        format: Kind of that file; None is the one that `output` ends in, or json.
        topk: Classes to give for each image, 1 by default; of a multi-label model, the most of those that reach their
            thresholds, all by default.
        batch_size: Images that are computed together.
        device: auto takes the accelerator, where there is one.
        engine: What runs an exported file, where two can, as .onnx.
        precision: Precision of the computation; None is an exported file's own.
        csv_as_is: Put no apostrophe before texts in CSV that a spreadsheet would compute.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as preprocess={"crop": 1.0}.

    Raises:
        CheckpointError: The file is not one, or damaged; or the output cannot be written.
        ConfigError: A setting or an option is wrong, or the model tells no classes apart.
        DataError: There is no such image, or a list is wrong.
    """
    given = read_settings(predict, settings, sections)
    rows = iterate_predictions(
        checkpoint,
        images,
        given,
        config=config,
        output=output,
        format=format,
        topk=topk,
        batch_size=batch_size,
        device=device,
        engine=engine,
        precision=precision,
        csv_as_is=csv_as_is,
        display=display,
        progress=progress,
    )
    with closing(rows):
        return Predictions(tuple(rows), path_or_none(output))


def iterate_predictions(
    checkpoint: str | Path,
    images: str | Path | Iterable[str | Path],
    settings: Settings | Given | None = None,
    *,
    config: str | Path | None = None,
    output: str | Path | None = None,
    format: Format | None = None,
    topk: int | None = None,
    batch_size: int = 32,
    device: Device = "auto",
    engine: Engine | None = None,
    precision: Precision | None = None,
    csv_as_is: bool = False,
    display: Display | None = None,
    progress: bool = True,
) -> Generator[Prediction, None, None]:
    """Yield the rows of `predict` one by one, so that memory does not grow with the number of images.

    Arguments and errors are those of `predict`. Its file is whole once all rows were taken.
    """
    given = settings if isinstance(settings, Given) else read_settings(predict, settings, {})
    inputs = _Inputs.read(images, given)
    layers, remarks = with_recipe(config, inputs.settings, OF_WEIGHTS)
    resolve(PredictConfig, layers)  # a wrong setting is told before all else
    require_at_least(1, topk=topk, batch_size=batch_size)
    output_path = path_or_none(output)
    return _predict_each(
        Path(checkpoint),
        inputs,
        layers,
        remarks,
        _Classifying(config, output_path, format, topk, batch_size, device, engine, precision, csv_as_is),
        display,
        progress,
    )


@dataclass(frozen=True)
class _Classifying:
    """Options of a prediction."""

    config: str | Path | None
    output: Path | None
    format: Format | None
    topk: int | None
    batch_size: int
    device: Device
    engine: Engine | None
    precision: Precision | None
    csv_as_is: bool


def _predict_each(
    checkpoint: Path,
    inputs: _Inputs,
    layers: Sequence[Layer],
    remarks: Sequence[tuple[Say, str]],
    options: _Classifying,
    display: Display | None,
    progress: bool,
) -> Generator[Prediction, None, None]:
    """Yield predictions, and write them where that is wanted."""
    from vitrail.inference.prediction_file import format_of, open_output
    from vitrail.inference.predictor import open_predictor

    output = options.output
    if output is not None:
        read = chain(files_of(checkpoint), inputs.given, [options.config or ""], inputs.find(lambda _: None))
        refuse_output("--output", output, read)
    with shown(display, progress) as display:
        tell_remarks(display, remarks)
        predictor = open_predictor(
            checkpoint,
            layers,
            engine=options.engine,
            device=options.device,
            precision=options.precision,
            topk=options.topk,
            display=display,
        )
        total = bad = 0
        replaced = " (replaced)" if output is not None and output.exists() else ""
        with ExitStack() as exits:
            file = None
            if output is not None:
                file = exits.enter_context(
                    open_output(
                        output,
                        options.format or format_of(output),
                        predictor.classes,
                        predictor.topk,
                        is_multi_label=predictor.is_multi_label,
                        guard_csv=not options.csv_as_is,
                    )
                )
            display.begin("predict", None)
            for chosen in predictor.predict(inputs.find(display.note), batch_size=options.batch_size):
                if file is not None:
                    file.write(chosen)
                total += 1
                if chosen.error is not None:
                    bad += 1
                    display.warn(f"{chosen.path}: {chosen.error}")
                yield _named(chosen, predictor.classes, multi_label=predictor.is_multi_label)
                display.advance()
            display.end()
        written = "" if output is None else f": {output}{replaced}"
        display.note(f"{total:,} images, {bad:,} unreadable{written}")


def _named(chosen: predicting.Prediction, classes: Sequence[str], *, multi_label: bool) -> Prediction:
    pairs = zip(chosen.choices, chosen.probabilities, strict=True)
    topk = tuple(Choice(index, classes[index], probability) for index, probability in pairs)
    return Prediction(chosen.path, topk, chosen.error, multi_label)


@dataclass(frozen=True)
class _Inputs:
    """Images as they are named, and settings less those that say how lists of images are read."""

    given: tuple[str, ...]
    settings: Given
    root: str | None
    """Folder that the paths of lists with columns begin in; None is each list's own."""
    path_column: str
    """Column of such lists that has the paths."""

    @classmethod
    def read(cls, images: str | Path | Iterable[str | Path], settings: Given) -> _Inputs:
        """Check what is given, and tell the settings of lists from those of the model.

        Raises:
            ConfigError: No images are given, or settings of lists without a list.
        """
        names = (images,) if isinstance(images, str | Path) else tuple(images)
        given = tuple(os.fspath(name) for name in names)
        if not given:
            raise ConfigError("predict needs images: a file, a folder, a quoted glob, or a list of paths")
        values = dict(settings.layer.values)
        root, path_column = _read_list_settings(values.pop("data", None), settings.layer.origin, given)
        return cls(given, Given(Layer(settings.layer.origin, values), settings.keys), root, path_column)

    def find(self, note: Callable[[str], None]) -> Iterator[str]:
        """Yield the paths of the images."""
        from vitrail.inference.find_images import find_images

        return find_images(self.given, note, root=self.root, path_column=self.path_column)


def _read_list_settings(data: Mapping[str, Any] | None, origin: str, images: Sequence[str]) -> tuple[str | None, str]:
    """Return where the paths of lists with columns begin, and their column."""
    if not data:
        return None, "path"

    from vitrail.data.list_files import is_table

    lists = [text for text in images if is_table(Path(text))]
    if not lists:
        key, value = next(iter(data.items()))
        raise ConfigError(
            f"data.{key}={value}: is for lists that end in .csv, .tsv, .jsonl or .ndjson, and none is given"
        )
    listed = Layer("predict", {"data": {"list": lists[0]}})
    section = resolve(DataConfig, [listed, Layer(origin, {"data": data})]).config.data
    used = {"root": section.root, "path_column": section.path_column, "list": lists[0]}
    for key, value in vars(section).items():
        if value != used.get(key, getattr(DataSection, key)):
            raise ConfigError(f"data.{key} is {value}: has no meaning here; used are data.root and data.path_column")
    return section.root, section.path_column


def write_inputs(
    checkpoint: str | Path,
    images: str | Path | Iterable[str | Path],
    settings: Settings | None = None,
    *,
    folder: str | Path,
    config: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> WrittenInputs:
    """Write what a model would see of each image as float32 files, for an inference program elsewhere.

    `vitrail.write_inputs("best.safetensors", "val/", folder="inputs")` does what
    `vitrail predict best.safetensors val/ --write-inputs inputs` does.

    Args:
        checkpoint: The weight file, of any project, or an exported file.
        images: An image, a folder, a glob, a list of paths in a file, or several of these.
        settings: How the file and images are read, of the sections weights and preprocess.
        folder: Folder to write.
        config: Name or file of a recipe, for the model and how images are read.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as preprocess={"crop": 1.0}.

    Raises:
        CheckpointError: The file is not one, or damaged; or the folder cannot be written.
        ConfigError: A setting is wrong.
        DataError: There is no such image, or a list is wrong.
    """
    inputs = _Inputs.read(images, read_settings(write_inputs, settings, sections))
    layers, remarks = with_recipe(config, inputs.settings, OF_WEIGHTS)
    overrides = resolve(PredictConfig, layers).config.preprocess

    from vitrail.inference.bin_files import INPUTS, LABELS
    from vitrail.inference.bin_files import write_inputs as run
    from vitrail.inference.network import read_artifact
    from vitrail.weights.loading import override_preprocess
    from vitrail.weights.opened import show_account
    from vitrail.weights.request import resolve_request

    with shown(display, progress) as display:
        tell_remarks(display, remarks)
        artifact = read_artifact(checkpoint, None, resolve_request(layers))
        if artifact.weights is not None:
            show_account(artifact.weights, display)
        preprocess = override_preprocess(artifact.record.preprocess, overrides, display)
        paths = list(inputs.find(display.note))
        display.begin("write inputs", len(paths))
        done = run(paths, preprocess, artifact.record.classes, Path(folder), display.advance)
        display.end()
        for path, reason in done.bad:
            display.warn(f"{path}: {reason}; there is no file for it")
        if not done.has_labels:
            display.note(f"{LABELS}: not written, as not all images lie in folders called as classes of the model")
    shape = (preprocess.channels, *preprocess.size)
    return WrittenInputs(done.folder / INPUTS, done.images, shape, tuple(done.bad), done.replaced)


def bench(
    names: str | Path | Iterable[str | Path],
    *,
    batch_size: int | Sequence[int] = (1, 8),
    timm: bool = False,
    engine: Engine | Sequence[Engine] = (),
    precision: Precision | None = None,
    device: Device = "auto",
    threads: int | None = None,
    rounds: int = 10,
    json: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
) -> Latencies:
    """Measure how fast models and exported files answer, each in a process of its own, taking turns.

    `vitrail.bench(["best.safetensors", "best.onnx"], batch_size=8)` does what
    `vitrail bench best.safetensors best.onnx --batch-size 8` does.

    Args:
        names: Models, which get fresh weights, weight files, and exported files.
        batch_size: One or several.
        timm: Whether timm's model is measured beside each, where it has one.
        engine: One or several engines that run the exported files; none is the usual one.
        precision: Precision of the computation; None is an exported file's own.
        device: auto takes the accelerator, where there is one.
        threads: Threads on the CPU; None is all cores.
        rounds: Turns of each, of 5 runs.
        json: File that the numbers are also written to.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.

    Raises:
        CheckpointError: A file cannot be read.
        ConfigError: A name of nothing, an option that is wrong, or an engine that cannot run a file.
    """
    named = [os.fspath(name) for name in ((names,) if isinstance(names, str | Path) else names)]
    sizes = [batch_size] if isinstance(batch_size, int) else sorted(set(batch_size))
    if not named:
        raise ConfigError("bench needs models or files; `vitrail models` shows the models")
    require_at_least(1, batch_size=sizes[0], rounds=rounds, threads=threads)
    json_file = path_or_none(json)
    if json_file is not None:
        refuse_output("--json", json_file, [file for name in named for file in files_of(name)])

    from vitrail.inference.bench import bench as run
    from vitrail.inference.bench import beside_timm, find_subjects
    from vitrail.inference.network import tell_program

    engines = (engine,) if isinstance(engine, str) else tuple(engine)
    options = {"precision": precision, "device": device, "threads": threads}
    with shown(display, progress) as display:
        subjects = find_subjects(named, engines, **options)
        for name in named:
            tell_program(name, display)
        if timm:
            more, lacking = beside_timm(subjects, **options)
            subjects += more
            for name in lacking:
                display.warn(f"--timm: it has no {name} of that size; left out")
        results = run(subjects, sizes, rounds, display)
        if json_file is not None:
            write_json(json_file, [asdict(one) for one in results], display)
    return Latencies(tuple(results), rounds)


def serve(
    artifact: str | Path,
    settings: Settings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_batch: int = 16,
    max_wait_ms: float = 5.0,
    topk: int | None = None,
    api_key_file: str | Path | None = None,
    cors: Sequence[str] = (),
    host_name: Sequence[str] = (),
    max_bytes: int = 20 * 2**20,
    max_files: int = 16,
    max_pixels: int = 50_000_000,
    max_decode_s: float = 5.0,
    queue: int = 256,
    timeout_s: float = 30.0,
    device: Device = "auto",
    engine: Engine | None = None,
    precision: Precision | None = None,
    on_ready: Callable[[str], None] | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> None:
    """Answer HTTP requests with a model, and show a page to try it on, until SIGTERM or Ctrl-C.

    `vitrail.serve("best.safetensors", port=8080)` does what `vitrail serve best.safetensors --port 8080` does.

    Args:
        artifact: The weight file, of any project, or an exported file.
        settings: How the file and images are read, of the sections weights and preprocess.
        host: Address to listen at; 0.0.0.0 is every one of this machine.
        port: Port to listen at; 0 takes a free one.
        max_batch: Images that are computed together.
        max_wait_ms: Milliseconds that an image waits for others to be computed with.
        topk: Classes of each answer, 5 by default; of a multi-label model at most so many that reach their thresholds.
        api_key_file: File with the key that requests must bring; or it is given in VITRAIL_API_KEY.
        cors: Origins whose pages may ask.
        host_name: Names that clients call the server by, beside its addresses, localhost and `host`; * is any.
        max_bytes: Largest size of one uploaded file in bytes.
        max_files: Files of one request.
        max_pixels: Pixels of one image.
        max_decode_s: Seconds of a processor's time for decoding one image.
        queue: Images held at a time; more are told to come again.
        timeout_s: Seconds from a request's first byte to its answer.
        device: auto takes the accelerator, where there is one.
        engine: What runs an exported file, where two can, as .onnx.
        precision: Precision of the computation; None is an exported file's own.
        on_ready: Told in a line where the server is and what runs the model, once it answers; None shows that line.
        display: Where notes are shown; None is the terminal or notebook.
        progress: Whether notes are shown in a terminal or notebook.
        sections: Settings by section, such as preprocess={"crop": 1.0}.

    Raises:
        CheckpointError: The file is not one, or damaged.
        ConfigError: A setting or an option is wrong, or the port cannot be had.
        MissingExtra: The packages of the server are not installed.
    """
    layer = settings_alone(read_settings(serve, settings, sections))

    from vitrail.server.settings import Limits, Serving, read_key

    resolve(PredictConfig, [layer])  # a wrong setting is told before all else
    limits = Limits(
        max_bytes=max_bytes,
        max_files=max_files,
        max_pixels=max_pixels,
        decode_s=max_decode_s,
        queue=queue,
        timeout_s=timeout_s,
    )
    serving = Serving(
        host=host,
        port=port,
        max_batch=max_batch,
        max_wait_ms=max_wait_ms,
        topk=topk,
        api_key=read_key(path_or_none(api_key_file)),
        cors=tuple(cors),
        host_names=tuple(host_name),
        limits=limits,
    )
    if missing := [name for name in SERVE_NEEDS if find_spec(name) is None]:
        raise MissingExtra(f"serve needs {', '.join(missing)}; run: pip install 'vitrail[serve]'")

    from vitrail.devices import pick_device
    from vitrail.inference.predictor import read_predictor
    from vitrail.server.serve import DEFAULT_TOPK
    from vitrail.server.serve import serve as run

    with shown(display, progress) as display:
        unstarted = read_predictor(
            artifact, [layer], engine=engine, topk=topk, default_topk=DEFAULT_TOPK, display=display
        )
        tell = on_ready or display.note

        def tell_address(address: str, about: str) -> None:
            tell(f"{address}: {unstarted.record.model}, run by {about}; Ctrl-C ends it")

        run(unstarted, serving, device=pick_device(device), precision=precision, on_ready=tell_address)


def verify(*files: str | Path) -> FileChecks:
    """Say whether files are as they were written, without running anything that is in them.

    `vitrail.verify("best.safetensors", "best.onnx")` does what `vitrail verify best.safetensors best.onnx` does.

    Args:
        files: Weight files, exported files, saves, lists of parts, or indexes of shards.

    Raises:
        ConfigError: No file is given.
    """
    if not files:
        raise ConfigError("verify needs files, such as runs/digits/best.safetensors")

    from vitrail.inference.verify import verify as run

    return FileChecks(tuple(run(Path(file)) for file in files))
