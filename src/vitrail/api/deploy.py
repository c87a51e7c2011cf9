"""Files for other runtimes and projects from Python: convert weights, export models, quantize them to 8 bits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from vitrail.api.arguments import checked
from vitrail.api.options import (
    OF_WEIGHTS,
    path_or_none,
    read_settings,
    require_at_least,
    settings_alone,
    shown,
    tell_remarks,
    with_recipe,
)
from vitrail.api.results import Result, ResultList, Table, copy_fields
from vitrail.choices import Device, ExportFormat, Precision, QuantizedFormat
from vitrail.config.commands import ConvertConfig, PredictConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.deploy.quantized import Quantized, Speed
from vitrail.display import Display
from vitrail.errors import ConfigError, ExportError, name_option, write_option
from vitrail.files import files_of, refuse_output, staging, write_whole
from vitrail.migrate.given import Settings

if TYPE_CHECKING:
    from vitrail.deploy.compare import Verdict
    from vitrail.deploy.export import Exported
    from vitrail.weights.opened import Opened

Project = Literal["official", "timm", "mmpretrain", "mindcv", "zoo", "mindspore", "vitrail"]
SHOWN_LAYERS = 10
"""Layers of a quantized model that are shown, the most sensitive ones."""


@dataclass(frozen=True)
class Conversion(Result):
    """A weight file written for another project, and an account of every weight."""

    source: str
    target: Path
    dialect: str
    """Project whose names the source uses."""
    model: str
    written: tuple[str, ...]
    """Files that were written, read back and found equal."""
    weights: tuple[tuple[str, int, tuple[str, ...]], ...]
    """What became of the weights, how many of them, and some names."""
    difference: float
    """Largest difference between logits of the source and of the target."""
    scale: float
    """Standard deviation of those logits."""
    doubts: tuple[str, ...]
    """Where the other project computes or reads images otherwise."""
    settings: tuple[str, ...]
    """Settings that vitrail needs to read the target, where nothing in it tells its model or the
    size of its images."""
    replaced: bool
    """Whether an earlier target was replaced."""

    def tables(self) -> Sequence[Table]:
        """Return what became of the weights."""
        rows = tuple(
            (what, f"{count:,}", ", ".join(examples)) for what, count, examples in self.weights
        )
        return [
            Table(
                f"{self.source}: {self.dialect} {self.model}",
                ("weights", "number", "such as"),
                rows,
            )
        ]

    def lines(self) -> Sequence[str]:
        """Say how the logits compare, and what was written."""
        end = " (replaced)" if self.replaced else ""
        return [
            f"logits differ by {self.difference:.1e} at most, of a standard deviation of "
            f"{self.scale:.1e}",
            f"written and read back, every weight equal: {', '.join(self.written)}{end}",
        ]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row for each thing that became of weights."""
        return [
            {"weights": what, "number": count, "examples": examples}
            for what, count, examples in self.weights
        ]


@dataclass(frozen=True)
class ExportedFile:
    """One exported file, and how its answers compare with PyTorch's."""

    format: str
    path: Path
    """The file; it ends in .rejected where its answers are too far off."""
    bytes: int
    """Size of all its files."""
    seconds: float
    """Seconds to write it, without the comparison."""
    is_good: bool
    """Whether its answers are close enough, or could not be compared here."""
    verdict: Verdict | None
    """How it compares: difference, share of the same answers, times; None where its runtime is not
    here."""
    script: Path | None
    """Program that compares it where MindSpore is."""


@dataclass(frozen=True)
class Exports(ResultList[ExportedFile]):
    """Exported files, and how each compares with PyTorch."""

    sample: str
    """Images that they were compared on."""
    num_classes: int
    multi_label: bool
    """Whether an image may have several classes."""
    has_data: bool
    """Whether the weights tell the images that they were validated with."""

    @property
    def rejected(self) -> list[ExportedFile]:
        """The files whose answers are too far off."""
        return [one for one in self.items if not one.is_good]

    def tables(self) -> Sequence[Table]:
        """Return one row a file."""
        compared = [one.verdict.of for one in self.items if one.verdict]
        of = compared[0] if compared else "logits"
        columns = (
            "file", "run by", f"{of} differ by", "of the largest", "same top-1", "batch 1, ms", "batch 8, ms",
        )  # fmt: skip
        title = (
            f"compared with PyTorch in float32 on {self.sample}; times are the file's / PyTorch's"
        )
        return [Table(title, columns, tuple(map(_verdict_row, self.items)))]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row a file."""
        rows = []
        for one in self.items:
            row = copy_fields(ExportedFile, one)
            verdict = row.pop("verdict")
            rows.append(row if verdict is None else {**row, **asdict(verdict)})
        return rows


def _verdict_row(one: ExportedFile) -> tuple[str, ...]:
    verdict = one.verdict
    if verdict is None:
        return (one.path.name, "MindSpore is not here", "", "", "", "", "")
    times = []
    for size in (1, 8):
        seconds = verdict.seconds.get(size, ())
        times.append(" / ".join(f"{1000 * value:.1f}" for value in seconds))
    share = f"{verdict.relative:.1e} (up to {verdict.tolerance:g})"
    agree = f"{verdict.agree} of {verdict.images}"
    return (one.path.name, verdict.about, f"{verdict.difference:.1e}", share, agree, *times)


@dataclass(frozen=True, kw_only=True)
class Quantization(Quantized, Result):
    """A model in 8 bits: what was tried, and how accurate, large and fast it is."""

    def tables(self) -> Sequence[Table]:
        """Return the most sensitive layers, the trials, and the alternatives."""
        worst = list(self.sensitivities.items())[:SHOWN_LAYERS]
        title = f"the {len(worst)} most sensitive of {self.layers} layers, {self.calibrated_on}"
        columns = ("layer in 8 bits alone", "logits move by, % of their spread")
        tables = [
            Table(title, columns, tuple((name, f"{100 * moved:.2f}") for name, moved in worst))
        ]
        measured = f"{self.measured_by}, %"
        rows = []
        for trial in self.trials:
            size = f"{trial.bytes / 2**20:.1f}"
            rows.append((str(len(trial.kept)), f"{trial.measure:.2f}", f"{trial.drop:.2f}", size))
        title = f"on {self.images:,} labelled images, where the weights have {self.exact:.2f}"
        tables.append(
            Table(title, ("layers in float", measured, "drop, points", "MiB"), tuple(rows))
        )
        if self.speeds:
            rows = list(map(_speed_row, self.speeds))
            columns = ("file", "run by", measured, "MiB", "batch 1, ms", "batch 8, ms")
            tables.append(Table("accuracy, size and latency", columns, tuple(rows)))
        return tables

    def records(self) -> Sequence[dict[str, Any]]:
        """Return one row for each alternative."""
        return [asdict(speed) for speed in self.speeds]


def _speed_row(one: Speed) -> tuple[str, ...]:
    size = f"{one.bytes / 2**20:.1f}"
    return (one.what, one.about, f"{one.measure:.2f}", size, f"{one.ms[1]:.1f}", f"{one.ms[8]:.1f}")


class Rejected(ExportError):
    """Files that were written and refused, as they answer otherwise than PyTorch.

    Args:
        message: What is wrong, and what to try.
        result: How the files compare; each is kept with .rejected behind its name.
    """

    def __init__(self, message: str, result: Exports | Quantization) -> None:
        super().__init__(message)
        self.result = result


@checked
def convert(
    source: str | Path,
    target: str | Path,
    settings: Settings | None = None,
    *,
    to: Project,
    report: str | Path | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Conversion:
    """Write a weight file for another project, with an account of every weight; read it back and compare.

    `vitrail.convert("tnt_s.ckpt", "tnt_s/", to="timm")` does what `vitrail convert tnt_s.ckpt
    tnt_s/ --to timm` does.

    Args:
        source: A weight file, a folder of timm's or the hub's, or hf-hub:OWNER/NAME.
        target: File to write; its ending says of which kind. For timm, also a folder.
        settings: How the source is read, such as {"weights.model": "t2t_vit_14"}.
        to: The project that is to read it: official is the paper's own, zoo is MindSpore's.
        report: JSON file that what became of each weight is also written to.
        display: Where notes are shown; None is the terminal or notebook.
        progress: Whether notes are shown in a terminal or notebook.
        sections: Settings by section, such as weights={"model": "t2t_vit_14"}.

    Raises:
        CheckpointError: The source cannot be read, or the project has no place for such weights.
        ConfigError: A setting is wrong, or the target would replace what is read.
    """
    given = settings_alone(read_settings(convert, settings, sections))
    config = resolve(ConvertConfig, [given]).config

    from vitrail.weights.convert import convert as run
    from vitrail.weights.request import make_request

    target, report_file = Path(target), path_or_none(report)
    if report_file is not None:
        if staging(report_file)[0] == staging(target)[0]:
            where = write_option("report", report)
            raise ConfigError(
                f"{where}: is the file that the weights are written to; choose another"
            )
        refuse_output("report", report_file, [*files_of(source), *files_of(target)])
    is_replaced = target.exists()
    with shown(display, progress) as display:
        done = run(source, target, to, make_request(config.weights), display)
        for note in done.read.notes:
            display.note(note)
        for doubt in (*done.read.doubts, *done.doubts):
            display.warn(doubt)
        if report_file is not None:
            text = json.dumps(done.to_dict(), indent=1) + "\n"
            write_whole(report_file, text.encode(), "choose another file")
    weights = tuple(
        (what, count, tuple(examples)) for what, count, examples in done.read.summarised()
    )
    return Conversion(
        source=str(source),
        target=target,
        dialect=done.read.dialect,
        model=done.read.model,
        written=done.written,
        weights=weights,
        difference=done.difference,
        scale=done.scale,
        doubts=done.doubts,
        settings=done.settings,
        replaced=is_replaced,
    )


@checked
def export(
    checkpoint: str | Path,
    settings: Settings | None = None,
    *,
    format: ExportFormat | Sequence[ExportFormat],
    output: str | Path | None = None,
    precision: Precision = "float32",
    images: str | Path | None = None,
    batch_size: int | None = None,
    with_preprocess: bool = False,
    topk: int | None = None,
    config: str | Path | None = None,
    device: Device = "auto",
    mindir_version: Literal[1, 3] | None = None,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Exports:
    """Write a trained model for other runtimes, and compare the answers of each file with PyTorch's.

    `vitrail.export("best.safetensors", format=["onnx", "openvino"])` does what
    `vitrail export best.safetensors --format onnx --format openvino` does.

    Args:
        checkpoint: The weight file, of any project.
        settings: How the file and images are read, of the sections weights and preprocess.
        format: One kind of file, or several.
        output: File to write, or for several a folder; beside the checkpoint by default.
        precision: What the file computes in; images and logits are float32.
        images: Folder of images to compare answers on; pictures are drawn by default.
        batch_size: Images that the file takes at once; None is any number, and 1 for mindir.
        with_preprocess: Let the onnx file read whole images itself, and yield probabilities.
        topk: Likeliest classes that it then yields too, 5 by default.
        config: Name or file of a recipe, for the model and how images are read.
        device: What a pt2 is compiled for.
        mindir_version: Version of a mindir: 1, the default, is read by MindSpore 2.0 and newer, 3
            by newer ones.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as preprocess={"crop": 1.0}.

    Raises:
        CheckpointError: The weights do not fit, or the disk is full.
        ConfigError: A setting or an option is wrong.
        ExportError: An operation has no counterpart in the format, or a compiler is missing.
        Rejected: The logits of a file are too far off; it is kept as FILE.rejected.
    """
    layers, remarks = with_recipe(config, read_settings(export, settings, sections), OF_WEIGHTS)
    formats: list[ExportFormat] = [*dict.fromkeys([format] if isinstance(format, str) else format)]
    _check_formats(formats, topk, with_preprocess, mindir_version)

    from vitrail.deploy.compare import gather_sample
    from vitrail.deploy.export import check_request
    from vitrail.deploy.export import export as run
    from vitrail.devices import pick_device

    check_request(formats, precision, batch_size, with_preprocess)
    with shown(display, progress) as display:
        tell_remarks(display, remarks)
        opened = _open_with_preprocess(checkpoint, layers, display)
        num_classes = opened.record.options["num_classes"]
        _check_topk(topk, num_classes)
        outputs = _find_outputs(formats, checkpoint, opened, path_or_none(output), with_preprocess)
        sample = gather_sample(opened.record, path_or_none(images), display.note)

        # Write and compare each file
        display.begin("export", len(formats))
        exported = []
        for file in run(
            opened,
            outputs,
            sample,
            precision=precision,
            batch_size=batch_size,
            with_preprocess=with_preprocess,
            topk=topk or min(5, num_classes),
            device=pick_device(device),
            mindir_version=mindir_version or 1,
        ):
            exported.append(_describe_exported(file, display))
        display.end()
    has_data = bool(opened.record.recipe.get("data"))
    result = Exports(
        tuple(exported), sample.what, num_classes, opened.record.is_multi_label, has_data
    )
    _refuse_rejected(result)
    return result


def _find_outputs(
    formats: Sequence[ExportFormat],
    checkpoint: str | Path,
    opened: Opened,
    output: Path | None,
    with_preprocess: bool,
) -> dict[ExportFormat, Path]:
    """Return the file of each format, beside the checkpoint where no other is asked for."""
    from vitrail.deploy.export import find_outputs
    from vitrail.weights.published.catalogue import choose_namesake

    source = choose_namesake(checkpoint, opened.account.path)
    if output is None and with_preprocess:
        # not the name of the file that takes what is resized
        output = source.with_suffix(".image.onnx")
    return find_outputs(formats, source, output)


def _describe_exported(file: Exported, display: Display) -> ExportedFile:
    """Tell of a file that was written, and return its row."""
    display.note(f"{file.path}: {file.bytes / 2**20:,.1f} MiB, written in {file.seconds:.0f} s")
    display.advance()
    return ExportedFile(**copy_fields(ExportedFile, file))


def _open_with_preprocess(
    checkpoint: str | Path, layers: Sequence[Layer], display: Display
) -> Opened:
    """Open a weight file, with the preprocessing that the settings ask for."""
    from vitrail.weights.loading import open_model, override_preprocess
    from vitrail.weights.opened import show_account
    from vitrail.weights.request import resolve_request

    asked = resolve(PredictConfig, layers).config
    opened = open_model(checkpoint, resolve_request(layers), display)
    show_account(opened, display)
    preprocess = override_preprocess(opened.record.preprocess, asked.preprocess, display)
    return replace(opened, record=replace(opened.record, preprocess=preprocess))


def _check_formats(
    formats: Sequence[str], topk: int | None, with_preprocess: bool, mindir_version: int | None
) -> None:
    """Refuse to export to no format, and options that none of the formats has a use for."""
    if not formats:
        raise ConfigError(
            f"export needs {name_option('format')}: one of {', '.join(get_args(ExportFormat))}, or "
            "several"
        )
    if topk is not None and not with_preprocess:
        where = write_option("topk", topk)
        raise ConfigError(
            f"{where}: goes with {write_option('with_preprocess', True)}; without it a file yields "
            "logits"
        )
    if mindir_version is not None and "mindir" not in formats:
        where = write_option("mindir_version", mindir_version)
        raise ConfigError(f"{where}: goes with {write_option('format', 'mindir')}")


def _check_topk(topk: int | None, num_classes: int) -> None:
    """Refuse to yield more classes than a model has."""
    if topk is not None and num_classes and not 1 <= topk <= num_classes:
        where = name_option("topk")
        raise ConfigError(f"{where} is {topk}; it must be 1 to {num_classes}, the model's classes")


def _refuse_rejected(result: Exports) -> None:
    """Raise with the files whose answers were too far from PyTorch's, if there are any."""
    if result.rejected:
        names = ", ".join(str(one.path) for one in result.rejected)
        reason = f"answers otherwise than PyTorch, by more than is allowed; try another {write_option('precision')}"
        raise Rejected(f"{names}: {reason}", result)


@checked
def quantize(
    checkpoint: str | Path,
    settings: Settings | None = None,
    *,
    format: QuantizedFormat,
    max_drop: float = 1.0,
    output: str | Path | None = None,
    rounds: int = 5,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> Quantization:
    """Write a trained model in 8 bits, if it stays accurate on labelled images.

    `vitrail.quantize("best.safetensors", format="onnx")` does what `vitrail quantize
    best.safetensors --format onnx` does. The 1, 2, 4, ... layers that suffer most stay in float
    until the drop is allowed.

    Args:
        checkpoint: The weight file.
        settings: Settings of the sections weights, data, preprocess and evaluate, such as
            {"data.root": FOLDER}.
        format: Kind of file.
        max_drop: Points of top-1, or of mAP, that may be lost.
        output: File to write; NAME.int8.onnx or NAME.int8.xml beside the checkpoint by default.
        rounds: Turns of timing each file, of 5 runs.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as data={"root": FOLDER}.

    Raises:
        CheckpointError: The weight file is not one, or the disk is full.
        ConfigError: A setting is wrong, or the model is no case for 8 bits.
        DataError: The images are not there, or their classes are not the model's.
        Rejected: More than half of the layers would have to stay in float; the file is kept as
            FILE.rejected.
    """
    layer = settings_alone(read_settings(quantize, settings, sections))
    require_at_least(1, rounds=rounds)

    from vitrail.deploy.quantize import find_drawbacks
    from vitrail.deploy.quantize import quantize as run

    with shown(display, progress) as display:
        done = run(
            Path(checkpoint),
            format,
            [layer],
            output=path_or_none(output),
            max_drop=max_drop,
            rounds=rounds,
            display=display,
        )
        display.note(f"numbers: {done.numbers}")
        for line in find_drawbacks(done):
            display.warn(line)
    result = Quantization(**copy_fields(Quantization, done))
    if not result.is_good:
        last = result.trials[-1]
        raise Rejected(
            f"{result.path}: loses {last.drop:.2f} points of {result.measured_by} with "
            f"{len(last.kept)} of {result.layers} layers in float, and {max_drop:g} are allowed; "
            f"use float, or allow more with {write_option('max_drop')}",
            result,
        )
    return result
