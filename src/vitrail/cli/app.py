"""The command line: parse, call one function, show what it returned. The only file that exits."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter, Token

from vitrail.cli.channel import outlive_output
from vitrail.cli.tables import show_line, show_quantized, show_sweep, show_table, show_training, show_verdicts
from vitrail.distributed.launch import is_said_by_first_process, understand_launch, without_local_rank
from vitrail.errors import (
    CheckpointError,
    ConfigError,
    ExportError,
    Interrupted,
    LostWorker,
    MissingExtra,
    OutputLost,
    Stopped,
    TrainingError,
    VitrailError,
    command,
    harmless,
)
from vitrail.files import files_of, refuse_output, refuse_within, staging, write_whole

if TYPE_CHECKING:
    from vitrail.config.resolve import Layer
    from vitrail.config.sections import PreprocessSection
    from vitrail.data.audit.check_data import Checked
    from vitrail.data.manifest import Manifest
    from vitrail.display import Terminal
    from vitrail.migrate.rules import Say

app = App(
    name="vitrail",
    help="Vision transformers that look inside the patch: TNT, T2T-ViT and Twins.",
    version_flags=["--version"],
    default_parameter=Parameter(negative=""),
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # main says that it was stopped
)

Settings = Annotated[
    str, Parameter(show_default=False, help="Settings as section.key=value; `vitrail config` lists all of them.")
]


def _whole_number(_: type, tokens: Sequence[Token]) -> int:
    """Read a number, where cyclopts would cut off what stands behind a point."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise ConfigError(f"{tokens[0].keyword} is {tokens[0].value!r}; it must be a whole number") from None


def _whole_numbers(kind: type, tokens: Sequence[Token]) -> list[int]:
    """Read several numbers."""
    return [_whole_number(kind, [token]) for token in tokens]


Engine = Annotated[
    Literal["torch", "onnxruntime", "openvino", "aotinductor", "torchscript", "mindspore"] | None,
    Parameter(help="What runs an exported file, where two can, as .onnx."),
]
OF_WEIGHTS = ("weights", "preprocess")
"""Sections of a file that say how weights and images are read."""
SPEAK_AFTER_S = 3.0
"""Until a process that is not the first of its machine says what is wrong, where the first does not say the same."""
ENDED_AFTER_S = 12.0
"""Until a process that torchrun was told to end ends by itself."""
ASK_AGAIN_S = 2.0
"""Until torchrun is told once more to end, as it loses a signal that comes within a destructor or a lock's callback."""
EVALUATE_SECTIONS = ("weights", "data", "preprocess", "evaluate")
OF_LISTS = ("list", "path_column", "label_column", "labels_column", "train_split", "val_split")
"""Settings of data that are settled once a list is packed."""


@app.command
def train(
    *settings: Annotated[str, Parameter(help="A recipe's name or file, and settings as section.key=value.")],
    config: Annotated[str | None, Parameter(help="A recipe's name or file, of MindSpore's projects too.")] = None,
    resume: Annotated[
        Path | None, Parameter(help="Run to go on with; with a recipe, begun if it is not there yet.")
    ] = None,
    extend: Annotated[Path | None, Parameter(help="Run to lengthen, with train.epochs=N.")] = None,
    fork: Annotated[Path | None, Parameter(help="Run whose weights a new run begins with.")] = None,
) -> int:
    """Train a model; without arguments, a small TNT on scikit-learn's digits.

    Status 75 says that the run was stopped and saved, and that the same command with --resume goes on.

    ```
    vitrail train
    vitrail train --resume runs/digits
    vitrail train cifar10_tnt data.root=/data/cifar10
    torchrun --nproc-per-node 8 -m vitrail train tnt_s_imagenet data.root=/data/imagenet --resume runs/tnt
    vitrail train --config configs/tnt/tnt_s_gpu.yaml --data_dir /data/imagenet
    ```
    """
    from vitrail.training.start import begin

    recipe, tokens = _split_settings(settings, config)
    start = begin(recipe, tokens, resume=resume, extend=extend, fork=fork)

    from vitrail.training.train import train as run

    outlive_output()  # log.txt has what was to be shown
    with _terminal() as display:
        _say(display, start.remarks)
        result = run(start.config, name=start.name, resume=start.resume, fork=start.fork, display=display)
        if _is_main_process():
            show_training(result)
            with redirect_stdout(StringIO()) as shown:
                show_training(result)
            display.record(shown.getvalue())
    return 0


@app.command
def evaluate(
    checkpoint: Path,
    *settings: Settings,
    config: Annotated[str | None, Parameter(help="A recipe's name or file, for the images and the model.")] = None,
    report: Annotated[
        Path | None,
        Parameter(help="Folder of the report; evaluations/NAME by default, with a free number."),
    ] = None,
    json_file: Annotated[Path | None, Parameter(name="--json", help="Also write the numbers to this file.")] = None,
    engine: Engine = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="Same as evaluate.precision; an exported file's own by default."),
    ] = None,
    against: Annotated[
        Path | None, Parameter(help="Another file of the model, whose answers to the same images are compared.")
    ] = None,
    answers: Annotated[
        Path | None,
        Parameter(
            help="Folder with NAME_0.bin for each image, the logits that another program answered with the inputs of "
            "predict --write-inputs; they are counted, and the file is not run. A file of class names will do then."
        ),
    ] = None,
    acc_log: Annotated[
        Path | None, Parameter(help="Also write the two lines of the model zoo's acc.log to this file.")
    ] = None,
    sweep_preprocess: Annotated[
        bool, Parameter(help="Try the usual means, crops and filters instead, and say which fits the weights.")
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
    from vitrail.config.resolve import command_line
    from vitrail.migrate.recipes import read_part, split_keys

    keys, tokens = split_keys(settings)
    part = read_part(config, keys, EVALUATE_SECTIONS)
    if precision is not None:
        tokens = [*tokens, f"evaluate.precision={precision}"]
    layers = [*([part.layer] if part else []), command_line(tokens)]
    read = [*files_of(checkpoint), *(files_of(against) if against is not None else ()), config or ""]
    for name, value in (("--json", json_file), ("--acc-log", acc_log)):
        if value is not None:
            refuse_output(name, value, read)
    for name, value in (("--json", json_file), ("--acc-log", acc_log)):
        if value is not None and answers is not None:
            refuse_within(name, value, "--answers", answers)
    for name, value, what in (
        ("--report", report, "writes"), ("--against", against, "compares with"), ("--answers", answers, "takes"),
        ("--acc-log", acc_log, "writes"),
    ):  # fmt: skip
        if value is not None and sweep_preprocess:
            raise ConfigError(f"{name}: --sweep-preprocess {what} none; leave one of them out")
    for name, value in (("--engine", engine), ("--precision", precision)):
        if value is not None and answers is not None:
            raise ConfigError(f"{name} {value}: with --answers nothing is computed; leave one of them out")

    from vitrail.evaluation.evaluate import evaluate as run
    from vitrail.evaluation.evaluate import report_folder, report_name, sweep

    with _terminal() as display:
        if part is not None and part.translation is not None:
            _say(display, part.translation.remarks(EVALUATE_SECTIONS))
        written = [] if json_file is None else [("--json", json_file)]
        if sweep_preprocess:
            tried = sweep(checkpoint, layers, engine=engine, written=written, display=display)
            if _is_main_process():
                if json_file is not None:
                    text = json.dumps([result.to_dict() for result in tried], indent=1) + "\n"
                    write_whole(json_file, text.encode(), "choose another file with --json")
                show_sweep(checkpoint, tried)
            return 0
        default = report is None
        folder = Path("evaluations", report_name(checkpoint)) if report is None else report
        if answers is not None:
            refuse_within("--report", folder, "--answers", answers)
        whole = report_folder(folder, never_replace=default)
        result = run(
            checkpoint, layers, engine=engine, against=against, answers=answers, report=whole, written=written,
            display=display,
        )  # fmt: skip
        if not _is_main_process():
            return 0
        for name, reason in result.bad_files:
            display.warn(f"{name}: {reason}; not counted")
        for warning in result.accuracy.warnings:
            display.warn(warning)
        if json_file is not None:
            text = json.dumps({"checkpoint": str(checkpoint), **result.to_dict()}, indent=1) + "\n"
            write_whole(json_file, text.encode(), "choose another file with --json")
            display.note(f"numbers: {json_file}")
        if acc_log is not None:
            write_whole(acc_log, result.accuracy.acc_log().encode(), "choose another file with --acc-log")
            display.note(f"as the model zoo: {acc_log}")
        found = result.accuracy
        show_table(
            f"{checkpoint} on {result.data}",
            ("images", "unreadable", *found.shown),
            [(f"{found.n:,}", f"{len(result.bad_files):,}", *found.shown.values())],
        )
        if (found := result.agreement) is not None:
            show_line(
                f"same answer as {found.path}: {found.equal:,} of {found.n:,}; scores differ by {found.difference:.1e} "
                f"at most; its numbers: {', '.join(f'{name} {value}' for name, value in found.shown.items())}"
            )
        show_line(f"report: {result.report}")
    return 0


@app.command
def predict(
    checkpoint: Path,
    *inputs: Annotated[
        str,
        Parameter(
            help="Images, folders, quoted globs, .txt lists of paths, .csv, .tsv and .jsonl lists with "
            "data.root=FOLDER and data.path_column=COLUMN; and preprocess.key=value or weights.key=value."
        ),
    ],
    config: Annotated[
        str | None, Parameter(help="A recipe's name or file, for the model and how images are read.")
    ] = None,
    output: Annotated[
        Path | None, Parameter(help="File to write; predictions.json, .jsonl or .csv by default.")
    ] = None,
    format: Annotated[
        Literal["json", "jsonl", "csv"] | None,
        Parameter(
            help="json maps each path to its class; the others have names and probabilities. By default the one that "
            "--output ends in, or json."
        ),
    ] = None,
    topk: Annotated[
        int | None,
        Parameter(
            converter=_whole_number,
            help="Classes to give for each image, 1 by default; of a multi-label model, at most so many of those that "
            "reach their thresholds, all by default.",
        ),
    ] = None,
    batch_size: Annotated[int, Parameter(converter=_whole_number)] = 32,
    device: Literal["auto", "cpu"] = "auto",
    engine: Engine = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="What is computed in; an exported file's own by default."),
    ] = None,
    csv_as_is: Annotated[
        bool,
        Parameter(
            help="Put no apostrophe before the paths and names in CSV that a spreadsheet would compute, as they begin "
            "with = + - or @."
        ),
    ] = False,
    write_inputs: Annotated[
        Path | None,
        Parameter(
            help="Folder for what the model would see of each image, as float32 files for an inference program "
            "elsewhere; nothing is classified. `vitrail evaluate --answers` reads what that program answers."
        ),
    ] = None,
) -> int:
    """Classify images; the exit status is 1 if any could not be read.

    ```
    vitrail predict runs/digits/best.safetensors seven.png
    vitrail predict best.safetensors photos/ 'more/*.jpg' list.txt --format csv --topk 5
    vitrail predict best.safetensors labels.csv data.root=/data/birds
    vitrail predict best.safetensors /data/pets/val --write-inputs inputs
    ```
    """
    from itertools import chain

    from vitrail.config.commands import PredictConfig
    from vitrail.config.resolve import resolve

    of_lists = [text for text in inputs if text.startswith("data.") and "=" in text]
    tokens, images = [], []
    for text in inputs:
        if text not in of_lists:
            is_setting = text.startswith(("preprocess.", "weights.")) and "=" in text
            (tokens if is_setting or _is_key(text) else images).append(text)
    layers, remarks = _about_weights(config, tokens)
    settings = resolve(PredictConfig, layers).config
    if not images:
        raise ConfigError("predict needs images: a file, a folder, a quoted glob, or a list of paths")
    root, path_column = _of_lists(of_lists, images)
    for name, value in (("--topk", topk), ("--batch-size", batch_size)):
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if write_inputs is not None:
        for name, value in (("--output", output), ("--topk", topk), ("--engine", engine), ("--precision", precision)):
            if value is not None:
                raise ConfigError(f"{name} {value}: with --write-inputs nothing is classified; leave one of them out")

    from vitrail.inference.find_images import find_images
    from vitrail.inference.prediction_file import format_of, open_output
    from vitrail.inference.predictor import open_predictor

    def found_images(note: Callable[[str], None]) -> Iterator[str]:
        return find_images(images, note, root=root, path_column=path_column)

    if write_inputs is not None:
        with _terminal() as display:
            _say(display, remarks)
            return _write_inputs(checkpoint, layers, settings.preprocess, found_images, write_inputs, display)
    format = format or format_of(output)
    output = output or Path(f"predictions.{format}")
    refuse_output("--output", output, chain(files_of(checkpoint), images, [config or ""], found_images(lambda _: None)))
    with _terminal() as display:
        _say(display, remarks)
        predictor = open_predictor(
            checkpoint, layers, engine=engine, device=device, precision=precision, topk=topk, display=display
        )
        classes = predictor.classes
        total = bad = 0
        replaced = " (replaced)" if output.exists() else ""
        with open_output(
            output, format, classes, predictor.topk, is_multi_label=predictor.is_multi_label, guard_csv=not csv_as_is
        ) as file:
            display.begin("predict", None)
            for found in predictor.predict(found_images(display.note), batch_size=batch_size):
                file.write(found)
                total, bad = total + 1, bad + (found.error is not None)
                if found.error is not None:
                    display.warn(f"{found.path}: {found.error}")
                elif not predictor.is_multi_label:
                    show_line(f"{found.path} (class: {found.choices[0]})")
                else:
                    pairs = zip(found.choices, found.probabilities, strict=True)
                    named = ", ".join(f"{classes[choice]} {share:.3f}" for choice, share in pairs)
                    show_line(f"{found.path} (classes: {named or 'none'})")
                display.advance()
            display.end()
        display.note(f"{total:,} images, {bad:,} unreadable: {output}{replaced}")
    return int(bad > 0)


def _write_inputs(
    checkpoint: Path,
    layers: Sequence[Layer],
    overrides: PreprocessSection,
    find: Callable[[Callable[[str], None]], Iterator[str]],
    folder: Path,
    display: Terminal,
) -> int:
    """Write what a model would see of images."""
    from vitrail.inference.bin_files import INPUTS, LABELS, write_inputs
    from vitrail.inference.network import read_artifact
    from vitrail.weights.loading import override_preprocess
    from vitrail.weights.opened import show_account
    from vitrail.weights.request import resolve_request

    artifact = read_artifact(checkpoint, None, resolve_request(layers))
    if artifact.weights is not None:
        show_account(artifact.weights, display)
    preprocess = override_preprocess(artifact.record.preprocess, overrides, display)
    paths = list(find(display.note))
    display.begin("write inputs", len(paths))
    done = write_inputs(paths, preprocess, artifact.record.classes, folder, display.advance)
    display.end()
    for path, reason in done.bad:
        display.warn(f"{path}: {reason}; there is no file for it")
    if not done.has_labels:
        display.note(f"{LABELS}: not written, as not all images lie in folders called as classes of the model")
    shape = (preprocess.channels, *preprocess.size)
    show_line(
        f"{done.folder / INPUTS}: {done.images:,} images as float32 {shape}{' (replaced)' if done.replaced else ''}"
    )
    show_line(f"next: {command('evaluate', checkpoint, 'data.root=FOLDER', '--answers', 'FOLDER_OF_NAME_0.bin')}")
    return int(bool(done.bad))


@app.command
def convert(
    source: Annotated[str, Parameter(help="A weight file, a folder of timm's or the hub's, or hf-hub:OWNER/NAME.")],
    target: Annotated[Path, Parameter(help="File to write; its ending says of which kind. For timm, also a folder.")],
    *settings: Annotated[str, Parameter(show_default=False, help="How the source is read: weights.key=value.")],
    to: Annotated[
        Literal["official", "timm", "mmpretrain", "mindcv", "zoo", "vitrail"],
        Parameter(help="The project that is to read it: the paper's own, timm, mmpretrain, MindCV, MindSpore's zoo."),
    ],
    report: Annotated[Path | None, Parameter(help="Also write what became of each weight to this JSON file.")] = None,
) -> int:
    """Write a weight file for another project, with an account of every weight; read it back and compare.

    ```
    vitrail convert 82.9_T2T_ViT.pth.tar t2t.ckpt --to zoo weights.model=t2t_vit_14
    vitrail convert tnt_s.ckpt tnt_s/ --to timm
    ```
    """
    from vitrail.config.commands import ConvertConfig
    from vitrail.config.resolve import command_line, resolve

    config = resolve(ConvertConfig, [command_line(settings)]).config

    from vitrail.weights.convert import convert as run
    from vitrail.weights.request import make_request

    if report is not None:
        if staging(report)[0] == staging(target)[0]:
            raise ConfigError(f"--report {report}: is the file that the weights are written to; choose another")
        refuse_output("--report", report, [*files_of(source), *files_of(target)])
    replaced = " (replaced)" if target.exists() else ""
    with _terminal() as display:
        done = run(source, target, to, make_request(config.weights))
        for note in done.read.notes:
            display.note(note)
        for doubt in (*done.read.doubts, *done.doubts):
            display.warn(doubt)
        rows = [(what, f"{count:,}", ", ".join(examples)) for what, count, examples in done.read.summarised()]
        if report is not None:
            write_whole(report, (json.dumps(done.to_dict(), indent=1) + "\n").encode(), "choose another file")
        show_table(f"{source}: {done.read.dialect} {done.read.model}", ("weights", "number", "such as"), rows)
        show_line(f"logits differ by {done.difference:.1e} at most, of a standard deviation of {done.scale:.1e}")
        show_line(f"written and read back, every weight equal: {', '.join(done.written)}{replaced}")
        needed = [done.image_size] if done.image_size else []
        show_line(f"next: {command('evaluate', target, 'data.root=FOLDER', *needed)}")
    return 0


@app.command
def export(
    checkpoint: Path,
    *settings: Annotated[
        str, Parameter(show_default=False, help="How the file is read: weights.key=value and preprocess.key=value.")
    ],
    format: Annotated[
        list[Literal["onnx", "openvino", "pt2", "torchscript", "mindir"]],
        Parameter(help="What to write; may be given several times. mindir is for MindSpore and MindSpore Lite."),
    ],
    output: Annotated[
        Path | None, Parameter(help="File to write, or for several a folder; beside the checkpoint by default.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"],
        Parameter(help="What the file computes in; images and logits are float32."),
    ] = "float32",
    images: Annotated[
        Path | None, Parameter(help="Folder of images to compare answers on; pictures are drawn by default.")
    ] = None,
    batch_size: Annotated[
        int | None,
        Parameter(converter=_whole_number, help="Images that the file takes at once; any number, and 1 for mindir."),
    ] = None,
    with_preprocess: Annotated[
        bool, Parameter(help="Let the onnx file read whole images itself, and yield probabilities.")
    ] = False,
    topk: Annotated[
        int | None, Parameter(converter=_whole_number, help="Likeliest classes that it then yields too, 5 by default.")
    ] = None,
    config: Annotated[
        str | None, Parameter(help="A recipe's name or file, for the model and how images are read.")
    ] = None,
    device: Annotated[Literal["auto", "cpu"], Parameter(help="What a pt2 is compiled for.")] = "auto",
    mindir_version: Annotated[
        Literal[1, 3] | None,
        Parameter(
            help="1, the default, is read by MindSpore 2.0 and newer, and Lite; 3 by newer ones, which can export it "
            "again."
        ),
    ] = None,
) -> int:
    """Write a trained model for other runtimes, and compare the answers of each file with PyTorch's.

    A file whose logits are too far off is kept as FILE.rejected, and the status is 2.

    ```
    vitrail export runs/digits/best.safetensors --format onnx --format openvino
    vitrail export best.safetensors --format onnx --with-preprocess --images photos/
    vitrail export best.safetensors --format mindir --batch-size 8 --output served.mindir
    ```
    """
    from vitrail.config.commands import PredictConfig
    from vitrail.config.resolve import resolve

    layers, remarks = _about_weights(config, settings)
    wishes = resolve(PredictConfig, layers).config
    formats = list(dict.fromkeys(format))
    if topk is not None and not with_preprocess:
        raise ConfigError(f"--topk {topk}: goes with --with-preprocess; without it a file yields logits")
    if mindir_version is not None and "mindir" not in formats:
        raise ConfigError(f"--mindir-version {mindir_version}: goes with --format mindir")

    from dataclasses import replace

    from vitrail.deploy.compare import gather_sample
    from vitrail.deploy.export import check_request, find_outputs
    from vitrail.deploy.export import export as run
    from vitrail.devices import pick_device
    from vitrail.weights.loading import open_model, override_preprocess
    from vitrail.weights.opened import show_account
    from vitrail.weights.request import resolve_request

    check_request(formats, precision, batch_size, with_preprocess)
    with _terminal() as display:
        _say(display, remarks)
        opened = open_model(checkpoint, resolve_request(layers))
        show_account(opened, display)
        preprocess = override_preprocess(opened.record.preprocess, wishes.preprocess, display)
        opened = replace(opened, record=replace(opened.record, preprocess=preprocess))
        classes = opened.record.options["num_classes"]
        if topk is not None and classes and not 1 <= topk <= classes:
            raise ConfigError(f"--topk is {topk}; it must be 1 to {classes}, the model's classes")
        source = Path(opened.account.path)
        if with_preprocess and output is None:  # not the name of the file that takes what is resized
            output = source.with_suffix(".image.onnx")
        outputs = find_outputs(formats, source, output)
        sample = gather_sample(opened.record, images, display.note)
        display.begin("export", len(formats))
        done = []
        for one in run(
            opened,
            outputs,
            sample,
            precision=precision,
            batch_size=batch_size,
            with_preprocess=with_preprocess,
            topk=topk or min(5, classes),
            device=pick_device(device),
            mindir_version=mindir_version or 1,
        ):
            display.note(f"{one.path}: {one.bytes / 2**20:,.1f} MiB, written in {one.seconds:.0f} s")
            display.advance()
            done.append(one)
        display.end()
    show_verdicts(done, sample.what)
    if bad := [one for one in done if not one.is_good]:
        names = ", ".join(str(one.path) for one in bad)
        raise ExportError(f"{names}: answers otherwise than PyTorch, by more than is allowed; try another --precision")
    for one in done:
        if one.script is not None:
            show_line(f"next: {shlex.join(['python', str(one.script)])}  # where MindSpore is")
        elif with_preprocess:
            code = (
                "import numpy, onnxruntime, PIL.Image; image = numpy.array(PIL.Image.open('IMAGE').convert('RGB')); "
                f"print(onnxruntime.InferenceSession({str(one.path)!r}).run(None, {{'image': image[None]}})[1:])"
            )
            show_line(f"next: {shlex.join(['python', '-c', code])}")
        elif classes < 2 and opened.record.thresholds is None:  # `evaluate` and `predict` have no use for it
            show_line(f"next: {command('bench', one.path)}")
        else:
            data = [] if opened.record.recipe.get("data") else ["data.root=FOLDER"]
            show_line(f"next: {command('evaluate', one.path, *data, '--against', checkpoint)}")
    return 0


@app.command
def quantize(
    checkpoint: Path,
    *settings: Settings,
    format: Annotated[Literal["onnx", "openvino"], Parameter(help="What to write.")],
    max_drop: Annotated[float, Parameter(help="Points of top-1, or of mAP, that may be lost.")] = 1.0,
    output: Annotated[
        Path | None, Parameter(help="File to write; NAME.int8.onnx or NAME.int8.xml beside the checkpoint by default.")
    ] = None,
    rounds: Annotated[int, Parameter(converter=_whole_number, help="Turns of timing each file, of 5 runs.")] = 5,
) -> int:
    """Write a trained model in 8 bits, if it stays accurate on labelled images.

    Accuracy is measured on the images the weights were validated with, or on those that data.* names; ranges of inputs
    are found on 128 images of the training. The 1, 2, 4, ... layers that suffer most stay in float until the drop is
    allowed; if that takes more than half of them, the file is kept as FILE.rejected, and the status is 2.

    ```
    vitrail quantize runs/digits/best.safetensors --format onnx
    vitrail quantize best.safetensors --format openvino data.root=/data/birds --max-drop 0.5
    ```
    """
    from vitrail.config.resolve import command_line

    layers = [command_line(settings)]
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; it must be at least 1")

    from vitrail.deploy.quantize import find_drawbacks
    from vitrail.deploy.quantize import quantize as run

    with _terminal() as display:
        result = run(
            checkpoint, format, layers, output=output, max_drop=max_drop, rounds=rounds, display=display
        )  # fmt: skip
        display.note(f"numbers: {result.numbers}")
    show_quantized(result)
    for line in find_drawbacks(result):
        display.warn(line)
    if not result.is_good:
        raise ExportError(
            f"{result.path}: loses {result.trials[-1].drop:.2f} points of {result.measured_by} with "
            f"{len(result.trials[-1].kept)} of {result.layers} layers in float, and {max_drop:g} "
            "are allowed; use float, or allow more with --max-drop"
        )
    data = [text for text in settings if text.startswith(("data.", "evaluate."))]
    show_line(f"next: {command('evaluate', result.path, *data, '--against', checkpoint)}")
    return 0


@app.command
def bench(
    *names: Annotated[str, Parameter(help="Models, which get fresh weights, weight files, and exported files.")],
    batch_size: Annotated[
        list[int] | None,
        Parameter(converter=_whole_numbers, consume_multiple=True, help="One or several; 1 and 8 by default."),
    ] = None,
    timm: Annotated[bool, Parameter(help="Measure timm's model beside each, where it has one.")] = False,
    engine: Annotated[
        list[Literal["torch", "onnxruntime", "openvino", "aotinductor", "torchscript", "mindspore"]] | None,
        Parameter(help="What runs the exported files; may be given several times."),
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="What is computed in; an exported file's own by default."),
    ] = None,
    device: Literal["auto", "cpu"] = "auto",
    threads: Annotated[int | None, Parameter(converter=_whole_number, help="On the CPU; all cores by default.")] = None,
    rounds: Annotated[int, Parameter(converter=_whole_number, help="Turns of each, of 5 runs.")] = 10,
    json_file: Annotated[Path | None, Parameter(name="--json", help="Also write the numbers to this file.")] = None,
) -> int:
    """Measure how fast models and exported files answer, each in a process of its own, taking turns.

    ```
    vitrail bench tnt_s_patch16_224 --timm
    vitrail bench best.safetensors best.onnx best.xml --batch-size 1 8 --threads 2
    ```
    """
    sizes = sorted({1, 8} if batch_size is None else set(batch_size))
    if not names:
        raise ConfigError("bench needs models or files; `vitrail models` shows the models")
    for name, value in (("--batch-size", sizes[0]), ("--rounds", rounds), ("--threads", threads or 1)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if json_file is not None:
        refuse_output("--json", json_file, [file for name in names for file in files_of(name)])

    from dataclasses import asdict

    from vitrail.inference.bench import bench as run
    from vitrail.inference.bench import beside_timm, find_subjects
    from vitrail.inference.network import tell_program

    with _terminal() as display:
        options = {"precision": precision, "device": device, "threads": threads}
        subjects = find_subjects(names, engine or (), **options)
        for name in names:
            tell_program(name, display)
        if timm:
            more, lacking = beside_timm(subjects, **options)
            subjects += more
            for name in lacking:
                display.warn(f"--timm: it has no {name} of that size; left out")
        results = run(subjects, sizes, rounds, display)
        rows = [
            (
                one.name, one.about, str(one.batch_size), f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}",
                f"{one.images_per_s:.1f}", f"{one.peak_mib:,.0f}", f"{one.params / 1e6:.2f}", f"{one.macs / 1e9:.3f}",
            )
            for one in results
        ]  # fmt: skip
        columns = ("what", "run by", "batch", "p50, ms", "p99, ms", "images/s", "peak, MiB", "params, M", "MACs, G")
        if json_file is not None:
            text = json.dumps([asdict(one) for one in results], indent=1) + "\n"
            write_whole(json_file, text.encode(), "choose another file with --json")
            display.note(f"numbers: {json_file}")
        show_table(f"{results[0].runs} runs of each, in {rounds} alternating rounds", columns, rows)
    return 0


@app.command
def serve(
    artifact: Annotated[Path, Parameter(help="A weight file, or what `vitrail export` made of one.")],
    *settings: Annotated[
        str, Parameter(show_default=False, help="How the file is read: weights.key=value and preprocess.key=value.")
    ],
    host: Annotated[str, Parameter(help="Address to listen at; 0.0.0.0 is every one of this machine.")] = "127.0.0.1",
    port: Annotated[int, Parameter(converter=_whole_number, help="0 takes a free one.")] = 8000,
    max_batch: Annotated[int, Parameter(converter=_whole_number, help="Images that are computed together.")] = 16,
    max_wait_ms: Annotated[float, Parameter(help="How long an image waits for others to be computed with.")] = 5.0,
    topk: Annotated[
        int | None,
        Parameter(
            converter=_whole_number,
            help="Classes of each answer, 5 by default; a model that gives any number of classes answers with at most "
            "so many that reach their thresholds, all by default.",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, Parameter(help="Holds the key that requests must bring; or give it in VITRAIL_API_KEY.")
    ] = None,
    cors: Annotated[list[str] | None, Parameter(help="Origin whose pages may ask; may be given several times.")] = None,
    host_name: Annotated[
        list[str] | None,
        Parameter(
            help="Name that clients call the server by, beside its addresses, localhost and --host; may be given "
            "several times, and * is any name."
        ),
    ] = None,
    max_bytes: Annotated[int, Parameter(converter=_whole_number, help="Of one file.")] = 20 * 2**20,
    max_files: Annotated[int, Parameter(converter=_whole_number, help="Of one request.")] = 16,
    max_pixels: Annotated[int, Parameter(converter=_whole_number, help="Of one image.")] = 50_000_000,
    max_decode_s: Annotated[float, Parameter(help="Of a processor's time, for decoding one image.")] = 5.0,
    queue: Annotated[
        int, Parameter(converter=_whole_number, help="Images held at a time; more are told to come again.")
    ] = 256,
    timeout_s: Annotated[float, Parameter(help="From a request's first byte to its answer.")] = 30.0,
    device: Literal["auto", "cpu"] = "auto",
    engine: Engine = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        Parameter(help="What is computed in; an exported file's own by default."),
    ] = None,
) -> int:
    """Answer HTTP requests with a model, and show a page to try it on.

    SIGTERM and Ctrl-C end it once the requests that it has begun are answered. The log goes to standard error as JSON.

    ```
    vitrail serve runs/digits/best.safetensors
    vitrail serve best.xml --host 0.0.0.0 --api-key-file key.txt --max-batch 32
    curl -F files=@seven.png http://127.0.0.1:8000/predict
    ```
    """
    from vitrail.config.commands import PredictConfig
    from vitrail.config.resolve import command_line, resolve
    from vitrail.server.settings import Limits, Serving, read_key

    layers = [command_line(settings)]
    resolve(PredictConfig, layers)  # a wrong setting is told before all else
    limits = Limits(
        max_bytes=max_bytes, max_files=max_files, max_pixels=max_pixels, decode_s=max_decode_s, queue=queue,
        timeout_s=timeout_s,
    )  # fmt: skip
    serving = Serving(
        host=host, port=port, max_batch=max_batch, max_wait_ms=max_wait_ms, topk=topk,
        api_key=read_key(api_key_file), cors=tuple(cors or ()), host_names=tuple(host_name or ()), limits=limits,
    )  # fmt: skip
    missing = [
        name for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client") if find_spec(name) is None
    ]
    if missing:
        raise MissingExtra(f"serve needs {', '.join(missing)}; run: pip install 'vitrail[serve]'")

    from vitrail.devices import pick_device
    from vitrail.inference.predictor import read_predictor
    from vitrail.server.log import LogDisplay, write_json_lines
    from vitrail.server.serve import DEFAULT_TOPK
    from vitrail.server.serve import serve as run

    outlive_output()
    write_json_lines()
    unstarted = read_predictor(
        artifact, layers, engine=engine, topk=serving.topk, default_topk=DEFAULT_TOPK, display=LogDisplay()
    )

    def say(address: str, about: str) -> None:
        show_line(f"{address}: {unstarted.record.model}, run by {about}; Ctrl-C ends it")
        sys.stdout.flush()

    run(unstarted, serving, device=pick_device(device), precision=precision, on_ready=say)
    return 0


@app.command
def models(
    pattern: Annotated[str, Parameter(help="A shell pattern such as '*svt*'.")] = "*",
    *,
    markdown: Annotated[bool, Parameter(help="Print the table of the README.")] = False,
) -> int:
    """List the models: parameters, multiply-adds at 224, published accuracy, preprocessing."""
    from vitrail.models.catalogue import COLUMNS, catalogue

    rows = catalogue(pattern)
    if not rows:
        raise ConfigError(f"no model matches {pattern!r}; `vitrail models` shows all")
    if markdown:
        print("| " + " | ".join(COLUMNS) + " |\n|" + "|".join(["-"] * len(COLUMNS)) + "|")
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    else:
        show_table("", COLUMNS, rows)
    return 0


@app.command
def config(
    recipe: Annotated[str | None, Parameter(help="A recipe's name or file.")] = None,
    *settings: Settings,
    markdown: Annotated[bool, Parameter(help="Print the reference page of all settings.")] = False,
) -> int:
    """Show a recipe's settings and where each comes from; without a recipe, list the recipes.

    A file of another project is translated key by key first.

    ```
    vitrail config digits optim.lr=1e-3
    vitrail config configs/tnt/tnt_s_gpu.yaml --batch_size 16
    ```
    """
    from vitrail.config.commands import TrainConfig
    from vitrail.config.recipes import find_recipe, list_recipes
    from vitrail.config.reference import write_reference
    from vitrail.config.resolve import command_line, flat, resolve
    from vitrail.migrate.recipes import open_recipe, split_keys

    if markdown:
        print(write_reference(), end="")
        return 0
    if recipe is None:
        show_table(
            "recipes", ("name", "what"), [(name, _first_comment(find_recipe(name)[1])) for name in list_recipes()]
        )
        print("`vitrail config NAME` shows one, `vitrail config --markdown` explains every setting.")
        return 0
    given, tokens = _split_settings([recipe, *settings], None)
    keys, tokens = split_keys(tokens)
    read = open_recipe(given, keys)
    if (translation := read.translation) is not None:
        columns = ("their key", "their value", "our setting", "our value", "note")
        show_table(f"{read.path}: {translation.project}, {translation.compat}", columns, translation.table())
    resolved = resolve(TrainConfig, [read.layer, command_line(tokens)])
    rows = [
        (key, json.dumps(value), resolved.origins.get(key, "default")) for key, value in flat(resolved.config).items()
    ]
    show_table(read.path, ("setting", "value", "from"), rows)
    return 0


@app.command
def check_data(
    *settings: Settings,
    output: Annotated[Path, Parameter(help="Folder for the page and the same as JSON.")] = Path("data-check"),
    imagenet_devkit: Annotated[
        Path | None, Parameter(help="First bring ImageNet's validation images into class folders, by this kit.")
    ] = None,
) -> int:
    """Look at every image of a folder, and say what is wrong with them; status 1 if anything is.

    What was looked at is kept, and only files that have changed are read again.

    ```
    vitrail check-data data.root=/data/pets
    vitrail check-data data.root=/data/imagenet data.manifest=imagenet.manifest
    vitrail check-data data.root=/data/imagenet --imagenet-devkit ILSVRC2012_devkit_t12.tar.gz
    ```
    """
    from vitrail.config.commands import CheckConfig
    from vitrail.config.resolve import command_line, resolve

    config = resolve(CheckConfig, [command_line(settings)]).config

    from vitrail.data.audit.check_data import check_data as run
    from vitrail.data.imagenet_val import prepare_imagenet_val

    with _terminal() as display:
        if imagenet_devkit is not None:
            if config.data.root is None or config.data.val_split is None:
                raise ConfigError("--imagenet-devkit needs data.root, the folder with val/")
            done = prepare_imagenet_val(Path(config.data.root).expanduser() / config.data.val_split, imagenet_devkit)
            display.note(f"{done.moved:,} images moved into class folders, {done.there:,} were there")
            if done.absent:
                display.warn(f"{done.absent:,} of ImageNet's validation images are not there")
        checked = run(config, output, display)
        for note in checked.manifest.notes:
            display.note(note)
    found = checked.findings
    numbers = found.statistics
    rows = [(problem.severity, problem.what, problem.advice) for problem in found.problems]
    title = (
        f"{config.data.list or checked.manifest.root}: {numbers['images']:,} images of {numbers['classes']:,} classes, "
        f"{numbers['training']:,} to train on, {numbers['validation']:,} to validate with"
    )
    show_table(title, ("", "found", "to do"), rows or [("", "nothing is wrong as far as it can be seen", "")])
    show_line(f"page: {checked.folder / 'check.html'}{' (replaced)' if checked.replaced else ''}")
    if found.has_errors:
        print("mend what is wrong first")
    else:
        fitted = [*_for_labels(checked.manifest), *_for_numbers(checked)]
        show_line(f"next: {command('train', 'tnt_s_imagenet', *settings, *fitted)}")
    return int(found.has_errors)


def _for_labels(manifest: Manifest) -> list[str]:
    """Return what a recipe for one class an image needs beside it where an image has any number."""
    return [] if manifest.label_sets is None else ["augment.label_smoothing=0"]


def _for_numbers(checked: Checked) -> list[str]:
    """Return what a recipe for photographs needs beside it for other images."""
    if checked.manifest.pixels.is_picture:
        return []
    measured = checked.findings.statistics["pixels"]
    values = {name: [round(value, 4) for value in measured[name]] for name in ("mean", "std")}
    fitted = [f"preprocess.{name}={json.dumps(values[name], separators=(',', ':'))}" for name in values]
    return ["augment.auto_augment=null", *fitted]


@app.command
def bench_data(
    *settings: Annotated[str, Parameter(help="As for `vitrail train`: a recipe, and settings as section.key=value.")],
    seconds: Annotated[float, Parameter(help="For the loader, and for the model.")] = 10.0,
    json_file: Annotated[Path | None, Parameter(name="--json", help="Also write the numbers to this file.")] = None,
) -> int:
    """Measure how fast training images are read, decoded and varied here, against how fast the model takes them.

    ```
    vitrail bench-data tnt_s_imagenet data.root=/data/imagenet
    vitrail bench-data cifar10_tnt data.root=/data/cifar10 data.workers=8 --json speed.json
    ```
    """
    from vitrail.training.start import begin

    recipe, tokens = _split_settings(settings, None)
    start = begin(recipe, tokens)
    if not seconds > 0:
        raise ConfigError(f"--seconds is {seconds}; it must be above 0")
    if json_file is not None:
        refuse_output("--json", json_file, [recipe or ""])

    from vitrail.training.bench_data import STAGES, rate
    from vitrail.training.bench_data import bench_data as run

    with _terminal() as display:
        _say(display, start.remarks)
        found = run(start.config, seconds, display, [] if json_file is None else [("--json", json_file)])
        if json_file is not None:
            text = json.dumps(found.to_dict(), indent=1) + "\n"
            write_whole(json_file, text.encode(), "choose another file with --json")
            display.note(f"numbers: {json_file}")
        if found.unreadable:
            display.warn(f"{found.unreadable:,} images of the sample cannot be read; `vitrail check-data` names them")
    rows = [
        (stage, what, f"{1000 * found.seconds[stage]:.3f}", rate(1 / found.seconds[stage]))
        for stage, what in STAGES.items()
        if found.seconds[stage]
    ]
    together = sum(found.seconds.values())
    rows += [
        ("together", "", f"{1000 * together:.3f}", rate(1 / together)),
        ("loader", f"{found.workers} workers", "", rate(found.loader)),
        ("model", f"updates of {found.at_once:,} images on {found.device}", "", rate(found.model)),
    ]
    show_table("one image on one core, and all at work", ("", "what", "ms", "images/s"), rows)
    show_line(found.advice)
    return 0


@app.command
def pack(
    *settings: Settings,
    output: Annotated[Path, Parameter(help="Folder for the shards and their index.")],
    shard_mb: Annotated[
        int, Parameter(converter=_whole_number, help="Megabytes that a shard has at most, in millions of bytes.")
    ] = 512,
) -> int:
    """Pack a folder of images into tar shards, for disks that are slow with many small files.

    The files are copied as they are. Training and evaluation give the same numbers on the shards as on the folder.

    ```
    vitrail pack data.root=/data/imagenet --output /fast/imagenet
    vitrail train tnt_s_imagenet data.root=/fast/imagenet
    ```
    """
    from vitrail.config.commands import DataConfig
    from vitrail.config.resolve import command_line, resolve

    config = resolve(DataConfig, [command_line(settings)]).config
    if shard_mb < 1:
        raise ConfigError(f"--shard-mb is {shard_mb}; it must be at least 1")

    from vitrail.data.pack import pack as run

    with _terminal() as display:
        done = run(config.data, output, shard_mb * 1_000_000, display)
        for note in done.manifest.notes:
            display.note(note)
    images, classes, size = len(done.manifest), len(done.manifest.classes), sum(shard.bytes for shard in done.shards)
    show_line(
        f"{done.folder}: {images:,} images of {classes:,} classes in {len(done.shards):,} shards, {size / 1e9:,.3f} GB"
        f"{' (replaced)' if done.replaced else ''}"
    )
    here = _with_root(settings, done.folder, OF_LISTS if config.data.list is not None else ())
    show_line(f"next: {command('train', 'tnt_s_imagenet', *here, *_for_labels(done.manifest))}")
    show_line(f"      {command('check-data', *here)}  # also verifies the shards")
    return 0


@app.command
def resize_data(
    *settings: Settings,
    output: Annotated[Path, Parameter(help="Folder to write, of the same structure.")],
    short_side: Annotated[int, Parameter(converter=_whole_number, help="Pixels; smaller images are copied.")],
    quality: Annotated[int, Parameter(converter=_whole_number, help="Of JPEG and lossy WebP, to 100.")] = 95,
) -> int:
    """Write a folder of images anew with fewer pixels, to be read and decoded in less time.

    The new folder says that its pixels were changed, and so do the weights trained on it. What was stopped goes on when
    it is called again.

    ```
    vitrail resize-data data.root=/data/imagenet --output /data/imagenet-256 --short-side 256
    ```
    """
    from vitrail.config.commands import DataConfig
    from vitrail.config.resolve import command_line, resolve

    config = resolve(DataConfig, [command_line(settings)]).config
    if short_side < 1:
        raise ConfigError(f"--short-side is {short_side}; it must be at least 1")
    if not 1 <= quality <= 100:
        raise ConfigError(f"--quality is {quality}; it must be from 1 to 100")

    from vitrail.data.resize import resize_data as run

    with _terminal() as display:
        done = run(config.data, output, short_side, quality, display)
    show_line(f"{done.folder}: {done.before / 1e9:,.3f} GB became {done.after / 1e9:,.3f} GB")
    rows = [("resized", f"{done.resized:,}"), *((f"copied: {why}", f"{n:,}") for why, n in done.copied.most_common())]
    show_table("", ("", "images"), rows)
    if done.bad:
        what = "left out" if config.data.bad_files == "quarantine" else "copied"
        show_line(f"{len(done.bad)} images could not be read and were {what}:")
        for _, name, reason in done.bad:
            show_line(f"  {name}: {reason}")
    show_line(f"next: {command('train', 'tnt_s_imagenet', *_with_root(settings, done.folder))}")
    show_line(f"      {command('pack', f'data.root={done.folder}', '--output', 'SHARDS')}")
    return 0


@app.command
def verify(
    *files: Annotated[
        Path, Parameter(help="Weight files, exported files, saves, lists of parts, or indexes of shards.")
    ],
) -> int:
    """Say whether files are as they were written, without running anything that is in them.

    Files of vitrail have a digest, archives of PyTorch have checksums, and some names hold a hash. The status is 2
    where a file is damaged, or is none of these.

    ```
    vitrail verify runs/digits/best.safetensors runs/digits/best.onnx
    vitrail verify tnt_s.pth.tar model.safetensors.index.json
    ```
    """
    if not files:
        raise ConfigError("verify needs files, such as runs/digits/best.safetensors")

    from vitrail.inference.verify import verify as run

    found = [run(file) for file in files]
    show_table("", ("file", "what", "is", "by"), [(one.path, one.kind, one.verdict, one.by) for one in found])
    if damaged := [one for one in found if one.is_whole is False]:
        raise CheckpointError(
            f"{len(damaged)} of {len(found)} files are damaged, or nothing that is known here, the first is "
            f"{damaged[0].path}: {damaged[0].by}"
        )
    return 0


@app.command
def doctor(*, output: Annotated[Path, Parameter(help="Folder that runs are to be written to.")] = Path("runs")) -> int:
    """Look whether this machine is fit to train on, and say how to mend what is not; status 1 if anything is not.

    ```
    vitrail doctor
    torchrun --nproc-per-node 8 -m vitrail doctor
    ```
    """
    from vitrail.training.doctor import examine

    checks = examine(output)
    if _is_main_process():
        rows = [(check.name, check.found, check.fix or "good") for check in checks]
        show_table("", ("what", "found", "to do"), rows)
    return int(any(check.fix for check in checks))


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, or 2 with one line for what the user can mend."""
    arguments = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in arguments
    arguments = [token for token in arguments if token != "--debug"]
    try:
        arguments = without_local_rank(arguments, os.environ)
        understand_launch(os.environ, arguments[0] if arguments else "")
        arguments, notes = understood(arguments)
        if _is_main_process():
            for note in notes:
                print(harmless(note), file=sys.stderr)
        status = app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # what cannot be shown is found here, while it can be said
    except (Interrupted, KeyboardInterrupt) as error:
        print(harmless(error) or "stopped", file=sys.stderr)
        status = 130
    except Stopped as error:
        if _is_main_process():
            print(harmless(error), file=sys.stderr)
        status = os.EX_TEMPFAIL
        _tell_torchrun(harmless(error), restart=False)
    except VitrailError as error:
        if debug:
            raise
        status = os.EX_TEMPFAIL if isinstance(error, LostWorker) else 2
        _fail(
            str(error),
            restart=not isinstance(error, ConfigError | MissingExtra | OutputLost | TrainingError),
            status=status,
        )
    except CycloptsError as error:
        _fail(f"{error}; `vitrail --help` shows the commands", restart=False)
    except OSError as error:  # a path that may not be looked at, or is too long to be one
        if debug or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; choose another path, or mend its permissions")
    sys.exit(status or 0)


def understood(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command with the flags of other projects as ours, and a note for each that it has no use for."""
    from vitrail.migrate.flags import COMMANDS, translate_flags

    if not tokens or tokens[0] not in COMMANDS:
        return list(tokens), []
    arguments = app[tokens[0]].assemble_argument_collection() if tokens[0] in app else []  # export is to come
    own = {name: one.hint is not bool for one in arguments for name in one.names if name.startswith("--")}
    return translate_flags(tokens, {"--help": False, "--version": False, **own})


def _of_lists(tokens: Sequence[str], images: Sequence[str]) -> tuple[str | None, str]:
    """Return where the paths of lists with columns begin, and their column."""
    if not tokens:
        return None, "path"

    from vitrail.config.commands import DataConfig
    from vitrail.config.resolve import Layer, command_line, resolve
    from vitrail.config.sections import DataSection
    from vitrail.data.list_files import is_table

    lists = [text for text in images if is_table(Path(text))]
    if not lists:
        raise ConfigError(f"{tokens[0]}: is for lists that end in .csv, .tsv, .jsonl or .ndjson, and none is given")
    listed = Layer("predict", {"data": {"list": lists[0]}})
    section = resolve(DataConfig, [listed, command_line(tokens)]).config.data
    used = {"root": section.root, "path_column": section.path_column, "list": lists[0]}
    for key, value in vars(section).items():
        if value != used.get(key, getattr(DataSection, key)):
            raise ConfigError(f"data.{key} is {value}: has no meaning here; used are data.root and data.path_column")
    return section.root, section.path_column


def _fail(message: str, restart: bool = True, status: int = 2) -> NoReturn:
    """Say what is wrong in one line and exit; without `restart` it would be wrong the next time too."""
    who = "error" if _is_main_process() else f"error in process {os.environ['RANK']}"
    line = harmless(" ".join(message.split()))  # a file's name may hold what a terminal obeys
    if os.environ.get("LOCAL_RANK", "0") != "0" and is_said_by_first_process(line, os.environ, SPEAK_AFTER_S):
        time.sleep(ENDED_AFTER_S)  # torchrun ends it before
        sys.exit(status)
    print(f"{who}: {line}", file=sys.stderr)
    _tell_torchrun(line, restart)
    sys.exit(status)


def _tell_torchrun(line: str, restart: bool) -> None:
    """Let torchrun say in its own report why a process ended, and keep it from starting all of them again.

    It restarts whatever failed as long as it may; only a signal ends it before, which one process of a machine sends.
    """
    if (report := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
        # as torch.distributed.elastic writes it, whose import takes a second; a traceback would be shown instead
        told = {"message": {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}}
        with suppress(OSError):  # the line itself was printed
            Path(report).write_text(json.dumps(told))
    left = [int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("MAX_RESTARTS", "RESTART_COUNT")]
    if not restart and left[0] > left[1] and os.environ["LOCAL_RANK"] == "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # were this process gone before the signal is heard, all would be started again
        torchrun, deadline = os.getppid(), time.monotonic() + ENDED_AFTER_S
        while os.getppid() == torchrun and time.monotonic() < deadline:
            os.kill(torchrun, signal.SIGTERM)
            time.sleep(ASK_AGAIN_S)


def _split_settings(tokens: Sequence[str], config: str | None) -> tuple[str | None, list[str]]:
    """Tell the one recipe among key=value tokens."""
    recipes = [token for token in tokens if "=" not in token] + ([config] if config is not None else [])
    if len(recipes) > 1:
        raise ConfigError(
            f"two recipes are given, {recipes[0]} and {recipes[1]}; settings are written section.key=value"
        )
    return (recipes[0] if recipes else None), [token for token in tokens if "=" in token]


def _is_key(text: str) -> bool:
    """Tell a key of another project, as in image_size=64, from the name of an image."""
    from vitrail.migrate.translate import KEYS

    return text.partition("=")[0] in KEYS and "=" in text and not Path(text).exists()


def _about_weights(config: str | None, settings: Sequence[str]) -> tuple[list[Layer], list[tuple[Say, str]]]:
    """Return what a file of settings and the command line say of a weight file and of how images are read.

    Beside it stands what is to be said about the translation of another project's file.
    """
    from vitrail.config.resolve import command_line
    from vitrail.migrate.recipes import read_part, split_keys

    keys, tokens = split_keys(settings)
    part = read_part(config, keys, OF_WEIGHTS)
    remarks = part.translation.remarks(OF_WEIGHTS) if part and part.translation else []
    return [*([part.layer] if part else []), command_line(tokens)], remarks


def _with_root(settings: Sequence[str], root: Path, settled: Sequence[str] = ()) -> list[str]:
    """Return settings of data for what was made of it elsewhere, where some are settled."""
    dropped = tuple(f"data.{name}=" for name in ("root", "manifest", *settled))
    return [f"data.root={root}", *(text for text in settings if not text.startswith(dropped))]


def _say(display: Terminal, remarks: Sequence[tuple[Say, str]]) -> None:
    """Show what is to be said about the translation of another project's file."""
    for kind, text in remarks:
        (display.warn if kind == "warning" else display.note)(text)


@contextmanager
def _terminal() -> Iterator[Terminal]:
    """Show progress on the terminal of the first process, and our own warnings as one line each."""
    from vitrail.display import Terminal

    display = Terminal(silent=not _is_main_process())
    original = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any) -> None:
        if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
            display.warn(str(message))
        else:
            text = "\n".join(map(harmless, str(message).split("\n")))
            original(text, category, filename, *rest)
            display.record(warnings.formatwarning(text, category, filename, rest[0]))

    warnings.showwarning = show
    try:
        yield display
    except BaseException as error:
        display.record(_last_words(error))
        raise
    finally:
        display.end()
        warnings.showwarning = original


def _last_words(error: BaseException) -> str:
    """Return what the command will end with."""
    if isinstance(error, Interrupted | KeyboardInterrupt | Stopped):
        return str(error) or "stopped"
    return f"error: {error}" if isinstance(error, VitrailError) else traceback.format_exc()


def _is_main_process() -> bool:
    return int(os.environ.get("RANK", "0")) == 0  # set by torchrun


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    return first.removeprefix("#").strip()
