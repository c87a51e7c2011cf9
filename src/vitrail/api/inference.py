"""Predict from Python: the classes of images, and inputs of a model for other programs."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrail.api.arguments import checked
from vitrail.api.options import (
    OF_WEIGHTS,
    path_or_none,
    read_settings,
    require_at_least,
    shown,
    tell_remarks,
    with_recipe,
)
from vitrail.api.results import Result, ResultList, Table, first_rows, rows_left_out
from vitrail.choices import Device, Engine, Precision
from vitrail.config.commands import DataConfig, PredictConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.config.sections import DataSection
from vitrail.display import Display
from vitrail.errors import ConfigError, tell_count
from vitrail.files import files_of, refuse_output
from vitrail.migrate.given import Given, Settings
from vitrail.migrate.rules import Say

if TYPE_CHECKING:
    from vitrail.inference import predictor as predicting

Format = Literal["json", "jsonl", "csv"]


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
    """The classes, the most probable first; of a multi-label model all that reach their
    thresholds."""
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
    replaced: bool = False
    """Whether an earlier file of that name was replaced."""

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
        """Say how many images are not shown, and where all of them were written."""
        lines = rows_left_out(len(self.items))
        if self.output is not None:
            lines.append(f"written: {self.output}{' (replaced)' if self.replaced else ''}")
        return lines

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row an image, and further classes in columns of their own."""
        rows = []
        for one in self.items:
            row: dict[str, Any] = {
                "path": one.path,
                "name": one.name,
                "probability": one.probability,
            }
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
        return [f"{self.folder}: {tell_count(self.images, 'image')} as float32 {self.shape}{end}"]


@checked
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
    `vitrail predict best.safetensors photos/ --output photos.csv --topk 5` does.
    `iterate_predictions` of vitrail.api.inference yields the rows one by one, for images without
    number.

    Args:
        checkpoint: The weight file, of any project, or an exported file.
        images: An image, a folder, a glob, a list of paths in a file, or several of these.
        settings: How the file and images are read, of the sections weights and preprocess; for
            lists with columns, data.root and data.path_column.
        config: Name or file of a recipe, for the model and how images are read.
        output: File to write.
        format: Kind of that file; None is the one that `output` ends in, and json where it has no
            ending.
        topk: Classes to give for each image, 1 by default; of a multi-label model, the most of
            those that reach their thresholds, all by default.
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
    output_file = path_or_none(output)
    is_replaced = output_file is not None and output_file.is_file()
    with closing(rows):
        return Predictions(tuple(rows), output_file, is_replaced)


@checked
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
    inputs = Inputs.read(images, given)
    layers, remarks = inputs.read_layers(config)
    require_at_least(1, topk=topk, batch_size=batch_size)
    output_path = path_or_none(output)
    return _predict_each(
        Path(checkpoint),
        inputs,
        layers,
        remarks,
        _Classifying(
            config, output_path, format, topk, batch_size, device, engine, precision, csv_as_is
        ),
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
    inputs: Inputs,
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
        read = chain(
            files_of(checkpoint), inputs.given, [options.config or ""], inputs.find(lambda _: None)
        )
        refuse_output("output", output, read)
    form = options.format or "json"
    if output is not None and options.format is None:
        form = format_of(output)
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
        replaced = " (replaced)" if output is not None and output.is_file() else ""
        with ExitStack() as exits:
            file = None
            if output is not None:
                file = exits.enter_context(
                    open_output(
                        output,
                        form,
                        predictor.classes,
                        predictor.topk,
                        is_multi_label=predictor.is_multi_label,
                        guard_csv=not options.csv_as_is,
                    )
                )
            display.begin("predict", None)
            for chosen in predictor.predict(
                inputs.find(display.note), batch_size=options.batch_size
            ):
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
        display.note(f"{tell_count(total, 'image')}, {bad:,} unreadable{written}")


def _named(
    chosen: predicting.Prediction, classes: Sequence[str], *, multi_label: bool
) -> Prediction:
    pairs = zip(chosen.choices, chosen.probabilities, strict=True)
    topk = tuple(Choice(index, classes[index], probability) for index, probability in pairs)
    return Prediction(chosen.path, topk, chosen.error, multi_label)


@dataclass(frozen=True)
class Inputs:
    """Images as they are named, and settings less those that say how lists of images are read."""

    given: tuple[str, ...]
    settings: Given
    root: str | None
    """Folder that the paths of lists with columns begin in; None is each list's own."""
    path_column: str
    """Column of such lists that has the paths."""

    @classmethod
    def read(
        cls, images: str | Path | Iterable[str | Path], settings: Given, program: str = "predict"
    ) -> Inputs:
        """Check what is given, and tell the settings of lists from those of the model.

        Args:
            images: Images, folders, globs and lists of paths.
            settings: Settings, those of lists among them.
            program: What is to be done with the images, as messages call it.

        Raises:
            ConfigError: No images are given, or settings of lists without a list.
        """
        names = (images,) if isinstance(images, str | Path) else tuple(images)
        given = tuple(os.fspath(name) for name in names)
        if not given:
            raise ConfigError(
                f"{program} needs images: a file, a folder, a quoted glob, or a list of paths"
            )
        values = dict(settings.layer.values)
        root, path_column = _read_list_settings(
            values.pop("data", None), settings.layer.origin, given
        )
        return cls(
            given, Given(Layer(settings.layer.origin, values), settings.keys), root, path_column
        )

    def read_layers(
        self, config: str | Path | None = None
    ) -> tuple[list[Layer], list[tuple[Say, str]]]:
        """Return the settings by which file and images are read, and remarks on them.

        Args:
            config: Name or file of a recipe that they are put over.

        Raises:
            ConfigError: One of them is wrong, which is told before all else.
        """
        layers, remarks = with_recipe(config, self.settings, OF_WEIGHTS)
        resolve(PredictConfig, layers)
        return layers, remarks

    def find(self, note: Callable[[str], None]) -> Iterator[str]:
        """Yield the paths of the images."""
        from vitrail.inference.find_images import find_images

        return find_images(self.given, note, root=self.root, path_column=self.path_column)


def _read_list_settings(
    data: Mapping[str, Any] | None, origin: str, images: Sequence[str]
) -> tuple[str | None, str]:
    """Return where the paths of lists with columns begin, and their column."""
    if not data:
        return None, "path"

    from vitrail.data.list_files import is_table

    lists = [text for text in images if is_table(Path(text))]
    if not lists:
        key, value = next(iter(data.items()))
        raise ConfigError(
            f"data.{key}={value}: beside images it is for lists that end in .csv, .tsv, .jsonl or "
            ".ndjson, and none is given"
        )
    listed = Layer("predict", {"data": {"list": lists[0]}})
    section = resolve(DataConfig, [listed, Layer(origin, {"data": data})]).config.data
    used = {"root": section.root, "path_column": section.path_column, "list": lists[0]}
    for key, value in vars(section).items():
        if value != used.get(key, getattr(DataSection, key)):
            raise ConfigError(
                f"data.{key} is {value}: has no meaning here; used are data.root and "
                "data.path_column"
            )
    return section.root, section.path_column


@checked
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
    inputs = Inputs.read(images, read_settings(write_inputs, settings, sections))
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
        artifact = read_artifact(checkpoint, None, resolve_request(layers), display=display)
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
            display.note(
                f"{LABELS}: not written, as not all images lie in folders called as classes of the "
                "model"
            )
    shape = (preprocess.channels, *preprocess.size)
    return WrittenInputs(done.folder / INPUTS, done.images, shape, tuple(done.bad), done.replaced)
