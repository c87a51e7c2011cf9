"""The commands of models at work: evaluate, predict, bench and verify."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from vitrail import choices
from vitrail.cli.options import (
    BatchSize,
    Checkpoint,
    CsvAsIs,
    Device,
    Engine,
    JsonFile,
    ModelRecipe,
    Precision,
    Settings,
    read_whole_number,
    read_whole_numbers,
    split_images,
)
from vitrail.cli.tables import show_line, show_result
from vitrail.distributed.launch import is_main_process
from vitrail.errors import CheckpointError, ConfigError, command

if TYPE_CHECKING:
    from vitrail.api.inference import Prediction

ImageOrSetting = Annotated[
    str,
    Parameter(
        help="Images, folders, quoted globs, .txt lists of paths, .csv, .tsv and .jsonl lists with "
        "data.root=FOLDER and data.path_column=COLUMN; and preprocess.key=value or "
        "weights.key=value."
    ),
]
PredictionFile = Annotated[
    Path | None,
    Parameter(
        help="File to write; predictions.json, .jsonl or .csv by default, with a free number."
    ),
]
PredictionFormat = Annotated[
    Literal["json", "jsonl", "csv"] | None,
    Parameter(
        help="json maps each path to its class; the others have names and probabilities. By default the one that "
        "--output ends in; json where it has no ending."
    ),
]
InputFolder = Annotated[
    Path | None,
    Parameter(
        help="Folder for what the model would see of each image, as float32 files for an inference program "
        "elsewhere; nothing is classified. `vitrail evaluate --answers` reads what that "
        "program answers."
    ),
]


def evaluate(
    checkpoint: Checkpoint,
    *settings: Settings,
    config: Annotated[
        str | None, Parameter(help="A recipe's name or file, for the images and the model.")
    ] = None,
    report: Annotated[
        Path | None,
        Parameter(help="Folder of the report; evaluations/NAME by default, with a free number."),
    ] = None,
    json_file: JsonFile = None,
    engine: Engine = None,
    precision: Annotated[
        choices.Precision | None,
        Parameter(
            help="Precision of the computation, as evaluate.precision; an exported file's own by default."
        ),
    ] = None,
    against: Annotated[
        Path | None,
        Parameter(help="Another file of the model, whose answers to the same images are compared."),
    ] = None,
    answers: Annotated[
        Path | None,
        Parameter(
            help="Folder with NAME_0.bin for each image, the logits that another program answered with the inputs of "
            "predict --write-inputs; they are counted, and the file is not run. A file of class "
            "names will do then."
        ),
    ] = None,
    acc_log: Annotated[
        Path | None,
        Parameter(help="Also write the two lines of the model zoo's acc.log to this file."),
    ] = None,
    sweep_preprocess: Annotated[
        bool,
        Parameter(
            help="Try the usual means, crops and filters instead, and say which fits the weights."
        ),
    ] = False,
) -> int:
    """Measure the accuracy of a trained model, or of what `vitrail export` made of it.

    Without settings, on the images it was validated with.

    ```
    vitrail evaluate runs/digits/best.safetensors
    vitrail evaluate best.onnx data.root=/data/pets --against best.safetensors
    vitrail evaluate best.safetensors data.root=/data/pets evaluate.split=all --report pets
    vitrail evaluate best.safetensors data.root=/data/pets --answers result_Files/ --acc-log acc.log
    ```
    """
    from vitrail.api import evaluation as api
    from vitrail.cli.terminal import open_terminal

    if sweep_preprocess:
        for name, value, what in (
            ("--report", report, "writes"),
            ("--against", against, "compares with"),
            ("--answers", answers, "takes"),
            ("--acc-log", acc_log, "writes"),
        ):
            if value is not None:
                raise ConfigError(f"{name}: --sweep-preprocess {what} none; leave one of them out")
        return _sweep(checkpoint, settings, config, json_file, engine, precision)
    with open_terminal() as display:
        result = api.evaluate(
            checkpoint,
            settings,
            config=config,
            report=True if report is None else report,
            json=json_file,
            engine=engine,
            precision=precision,
            against=against,
            answers=answers,
            acc_log=acc_log,
            display=display,
        )
    if is_main_process():
        show_result(result)
    return 0


def _sweep(
    checkpoint: Path,
    settings: Sequence[str],
    config: str | None,
    json_file: Path | None,
    engine: choices.Engine | None,
    precision: choices.Precision | None,
) -> int:
    """Try every usual way of reading images, and say how to type the best."""
    from vitrail.api import evaluation as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        sweep = api.sweep_preprocess(
            checkpoint,
            settings,
            config=config,
            json=json_file,
            engine=engine,
            precision=precision,
            display=display,
        )
    if is_main_process():
        show_result(sweep)
        words = []
        for key, value in sweep.best_settings.items():
            text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            words.append(f"{key}={text}")
        show_line(f"next: {command('evaluate', checkpoint, *words)}")
    return 0


def predict(
    checkpoint: Checkpoint,
    *inputs: ImageOrSetting,
    config: ModelRecipe = None,
    output: PredictionFile = None,
    format: PredictionFormat = None,
    topk: Annotated[
        int | None,
        Parameter(
            converter=read_whole_number,
            help="Classes to give for each image, 1 by default; of a multi-label model, at most so many of those that "
            "reach their thresholds, all by default.",
        ),
    ] = None,
    batch_size: BatchSize = 32,
    device: Device = "auto",
    engine: Engine = None,
    precision: Precision = None,
    csv_as_is: CsvAsIs = False,
    write_inputs: InputFolder = None,
) -> int:
    """Classify images; the exit status is 1 if any could not be read.

    ```
    vitrail predict runs/digits/best.safetensors seven.png
    vitrail predict best.safetensors photos/ 'more/*.jpg' list.txt --format csv --topk 5
    vitrail predict best.safetensors labels.csv data.root=/data/birds
    vitrail predict best.safetensors /data/pets/val --write-inputs inputs
    ```
    """
    from vitrail.api import inference as api
    from vitrail.cli.terminal import open_terminal

    images, settings = split_images(inputs)
    if write_inputs is not None:
        for name, value in (
            ("--output", output),
            ("--topk", topk),
            ("--engine", engine),
            ("--precision", precision),
        ):
            if value is not None:
                raise ConfigError(
                    f"{name} {value}: with --write-inputs nothing is classified; leave one of them "
                    "out"
                )
        return _write_inputs(checkpoint, images, settings, write_inputs, config)
    bad = 0
    with open_terminal() as display:
        for prediction in api.iterate_predictions(
            checkpoint,
            images,
            settings,
            config=config,
            output=output or _find_free_output(format),
            format=format,
            topk=topk,
            batch_size=batch_size,
            device=device,
            engine=engine,
            precision=precision,
            csv_as_is=csv_as_is,
            display=display,
        ):
            if prediction.error is None:
                show_line(line_of(prediction))
            else:
                bad += 1
    return int(bad > 0)


def _find_free_output(format: str | None) -> Path:
    """Return a name for the file of predictions that nobody named, so that it replaces nothing."""
    from vitrail.inference.prediction_file import find_free_name

    return find_free_name(Path(f"predictions.{format or 'json'}"))


def line_of(prediction: Prediction) -> str:
    """Return what is printed of an image: its class by number and name, or all that reach their thresholds by name."""
    if not prediction.multi_label:
        number = str(prediction.index)
        # a file without names calls its classes by their numbers
        name = "" if prediction.name == number else f", {prediction.name}"
        return f"{prediction.path} (class: {number}{name})"
    named = ", ".join(f"{choice.name} {choice.probability:.3f}" for choice in prediction.topk)
    return f"{prediction.path} (classes: {named or 'none'})"


def _write_inputs(
    checkpoint: Path,
    images: Sequence[str],
    settings: Sequence[str],
    folder: Path,
    config: str | None,
) -> int:
    """Write what a model would see of images."""
    from vitrail.api import inference as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        written = api.write_inputs(
            checkpoint, images, settings, folder=folder, config=config, display=display
        )
    show_result(written)
    show_line(
        f"next: {command('evaluate', checkpoint, 'data.root=FOLDER', '--answers', 'FOLDER_OF_NAME_0.bin')}"
    )
    return int(bool(written.bad_files))


def bench(
    *names: Annotated[
        str,
        Parameter(
            help="Models, which get fresh weights, weight files, names of published ones, and exported files."
        ),
    ],
    batch_size: Annotated[
        list[int] | None,
        Parameter(
            converter=read_whole_numbers,
            consume_multiple=True,
            help="Images that are computed together, one number or several; 1 and 8 by default.",
        ),
    ] = None,
    timm: Annotated[
        bool, Parameter(help="Measure timm's model beside each, where it has one.")
    ] = False,
    engine: Annotated[
        list[choices.Engine] | None,
        Parameter(help="What runs the exported files; may be given several times."),
    ] = None,
    precision: Precision = None,
    device: Device = "auto",
    threads: Annotated[
        int | None,
        Parameter(converter=read_whole_number, help="Threads on the CPU; all cores by default."),
    ] = None,
    rounds: Annotated[
        int,
        Parameter(
            converter=read_whole_number, help="Rounds in which all take turns, each with 5 runs."
        ),
    ] = 10,
    json_file: JsonFile = None,
) -> int:
    """Measure how fast models and exported files answer, each in a process of its own, taking turns.

    ```
    vitrail bench tnt_s_patch16_224 --timm
    vitrail bench best.safetensors best.onnx best.xml --batch-size 1 8 --threads 2
    ```
    """
    from vitrail.api import bench as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        latencies = api.bench(
            names,
            batch_size=batch_size or (1, 8),
            timm=timm,
            engine=engine or (),
            precision=precision,
            device=device,
            threads=threads,
            rounds=rounds,
            json=json_file,
            display=display,
        )
        show_result(latencies)
    return 0


def verify(
    *files: Annotated[
        Path,
        Parameter(
            help="Weight files, exported files, saves, lists of parts, indexes of shards, names of published weights."
        ),
    ],
) -> int:
    """Say whether files are as they were written, without running anything that is in them.

    Files of vitrail have a digest, archives of PyTorch have checksums, and some names hold a hash.
    The status is 2 where a file is damaged, is none of these, or is not there.

    ```
    vitrail verify runs/digits/best.safetensors runs/digits/best.onnx
    vitrail verify tnt_s.pth.tar model.safetensors.index.json
    ```
    """
    from vitrail.api import verify as api
    from vitrail.cli.terminal import open_terminal

    with open_terminal() as display:
        checks = api.verify(*files, display=display)
    show_result(checks)
    for wrong, what in (
        (checks.absent, "are not there, or no files"),
        (checks.damaged, "are damaged, or nothing that is known here"),
    ):
        if wrong:
            raise CheckpointError(
                f"{len(wrong)} of {len(checks)} files {what}, the first is {wrong[0].path}: "
                f"{wrong[0].by}"
            )
    return 0
