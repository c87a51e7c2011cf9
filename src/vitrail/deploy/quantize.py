"""8-bit post-training quantization: the fewest layers left in float that keep accuracy within an allowed drop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vitrail.choices import Precision, QuantizedFormat
from vitrail.config.commands import EvaluateConfig
from vitrail.config.resolve import Layer
from vitrail.data.loader import build_eval_loader
from vitrail.data.opening import open_split
from vitrail.data.sources import Source
from vitrail.deploy.export import REJECTED, advise_elsewhere, find_outputs, publish, staged_files
from vitrail.deploy.formats import FORMATS, Plan
from vitrail.deploy.int8 import Int8, find_quantizable, measure_sensitivities
from vitrail.deploy.quantized import Quantized, Speed, Trial
from vitrail.display import Display, Quiet
from vitrail.errors import ConfigError, DataError, MissingExtra, name_option, write_option
from vitrail.evaluation.evaluate import Evaluation, evaluate
from vitrail.evaluation.settings import resolve_for
from vitrail.files import write_whole
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.inference.bench import Subject, bench, find_subjects
from vitrail.inference.engines import openvino_capabilities
from vitrail.inference.exported import Making
from vitrail.models.family import VisionModel
from vitrail.weights.checkpoint import Record, hash_file
from vitrail.weights.loading import open_model, override_preprocess
from vitrail.weights.published.catalogue import choose_namesake
from vitrail.weights.request import resolve_request

CALIBRATION_IMAGES = 128
"""Images on which the ranges of inputs are found."""
RANKING_IMAGES = 8
"""Images on which the sensitivity of layers is measured, the first of those for calibration."""
BATCH_SIZES = (1, 8)
"""Batch sizes at which latencies are compared, in rising order."""
SLOWER = 1.05
"""Latencies whose ratio is below this count as equal."""
MOST_KEPT = 0.5
"""Share of the layers that may stay in float; beyond it, little would be gained."""
SUFFIXES: Mapping[QuantizedFormat, str] = {"onnx": ".int8.onnx", "openvino": ".int8.xml"}


def quantize(
    checkpoint: Path,
    format: QuantizedFormat,
    settings: Sequence[Layer] = (),
    *,
    output: Path | None = None,
    max_drop: float = 1.0,
    rounds: int = 5,
    display: Display | None = None,
) -> Quantized:
    """Write a trained model in 8 bits, with as few layers left in float as the allowed drop of accuracy takes.

    All layers are tried in 8 bits first, then with the 1, 2, 4, ... most sensitive in float; the
    first file that passes is kept. Labelled images and their settings are those of `evaluate`.

    Args:
        checkpoint: The weight file.
        format: Kind of file to write.
        settings: Layers of settings for the sections weights, data, preprocess and evaluate.
        output: The file to write; None is beside the weights, ending in .int8.onnx or .int8.xml.
        max_drop: Points of top-1, or mAP, that may be lost.
        rounds: Rounds of timing, of 5 runs each.
        display: Where progress is shown.

    Raises:
        CheckpointError: The weight file is not one, or the disk is full.
        ConfigError: A setting is wrong, or the model is no case for 8 bits.
        DataError: The images are not there, or their classes are not the model's.
        MissingExtra: A package is not installed.
    """
    display = display or Quiet()
    if not max_drop >= 0:
        where = name_option("max_drop")
        raise ConfigError(f"{where} is {max_drop:g}; it must be at least 0 points")
    _check_packages(format)

    job = _prepare(checkpoint, format, settings, output, display)
    with ExitStack() as exits:
        trials, last = _try_layers(job, max_drop, exits)
        is_good = trials[-1].drop <= max_drop
        speeds: tuple[Speed, ...] = ()
        if is_good:
            speeds = _time_alternatives(job, last, rounds, exits)
        ending = "" if is_good else REJECTED
        publish(last.file, job.path, ending)
        path = job.path.with_name(job.path.name + ending)

    accuracy = job.exact.accuracy
    result = Quantized(
        path=path,
        is_good=is_good,
        numbers=path.with_name(f"{path.name}.json"),
        measured_by=accuracy.headline,
        exact=read_measure(job.exact),
        max_drop=max_drop,
        images=accuracy.n,
        calibrated_on=job.calibrated_on,
        layers=len(job.layers),
        trials=tuple(trials),
        sensitivities=job.sensitivities,
        speeds=speeds,
    )
    content = json.dumps(asdict(result), indent=1, default=str) + "\n"
    write_whole(result.numbers, content.encode(), advise_elsewhere())
    return result


def find_drawbacks(result: Quantized) -> list[str]:
    """Say what the drop of accuracy cannot tell, and where float would do better on this processor."""
    drawbacks = []
    points_an_image = 100 / result.images
    if result.measured_by == "top-1" and points_an_image > result.max_drop:
        drawbacks.append(
            f"each of the {result.images:,} labelled images counts {points_an_image:.2g} points, "
            "more than may be lost; measure on more"
        )
    if not result.speeds:
        return drawbacks

    *alternatives, ours = result.speeds
    for other in alternatives:
        if SLOWER * other.ms[8] < ours.ms[8]:
            drawbacks.append(_describe_slower(ours, other))
    if ours.what.endswith(".onnx") and torch.cpu.get_capabilities().get("amx_bf16"):
        drawbacks.append(
            "this processor has AMX, where bfloat16 in OpenVINO was faster and closer than 8 bits "
            "in our measurements: vitrail export CKPT --format openvino --precision bfloat16"
        )
    return drawbacks


def _describe_slower(ours: Speed, other: Speed) -> str:
    accuracy = "as accurate"
    if other.measure < ours.measure:
        accuracy = f"{ours.measure - other.measure:.2f} points below"
    return (
        f"{ours.what} is slower here than {other.what} ({ours.ms[8]:.1f} ms and {other.ms[8]:.1f} "
        f"ms a batch of 8), which is {accuracy}; 8 bits save size alone"
    )


def read_measure(evaluation: Evaluation) -> float:
    """Return the number that may drop by so much, in percent: top-1, or mAP of a multi-label model."""
    return -evaluation.accuracy.best_first[0]


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One model to be quantized: what its files are written from and measured with."""

    source: Path
    """The weight file."""
    format: QuantizedFormat
    path: Path
    """The file that is wanted."""
    settings: Sequence[Layer]
    model: VisionModel
    record: Record
    sha256: str
    """Digest of the weight file."""
    exact: Evaluation
    """Evaluation of the weights, which those of the 8-bit files are compared with."""
    images: Tensor
    """Normalised images for calibration."""
    calibrated_on: str
    layers: tuple[str, ...]
    """Layers that may be in 8 bits, in the order of the model."""
    sensitivities: dict[str, float]
    """Sensitivity by layer, the most sensitive first."""
    display: Display
    cache: dict[Any, Any] = field(default_factory=dict)
    """Programs and graphs that all files are written from, made once."""

    def write(self, path: Path, kept: Sequence[str] | None) -> AbstractContextManager[Path]:
        """Write a file with some layers left in float, or an all-float one for None, until the context ends."""
        return staged_files(path, FORMATS[self.format].write(self._plan(kept)))

    def _plan(self, kept: Sequence[str] | None) -> Plan:
        int8 = None
        details = {}
        if kept is not None:
            int8 = Int8([name for name in self.layers if name not in kept], self.images)
            count = f"{len(int8.layers)} of {len(self.layers)} layers"
            details["int8"] = f"{count}, {self.calibrated_on}"
        making = Making(
            format=self.format,
            source=self.source.name,
            sha256=self.sha256,
            precision="float32" if int8 is None else "int8",
            details=details,
        )
        return Plan(
            model=self.model,
            record=self.record,
            making=making,
            device=torch.device("cpu"),
            mindir_version=1,
            topk=1,
            int8=int8,
            cache=self.cache,
        )

    def evaluate(self, file: Path, **evaluation: str) -> Evaluation:
        """Evaluate an exported file on the images that the weights were evaluated on.

        Args:
            file: The exported file.
            evaluation: Settings of the section evaluate.
        """
        # how weights are read is settled in the file, and would be refused beside it
        layers = []
        for layer in self.settings:
            values = dict(layer.values)
            values.pop("weights", None)
            layers.append(Layer(layer.origin, values))
        layers.append(Layer("quantize", {"evaluate": evaluation}))
        return evaluate(file, layers, display=_ProgressOnly(self.display))


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    """A file whose latency is measured beside others."""

    what: str
    file: Path
    bytes: int
    evaluation: Evaluation
    precision: Precision | None = None
    """Precision to run it in; None is the file's own."""


def _check_packages(format: QuantizedFormat) -> None:
    packages = [*FORMATS[format].packages]
    if format == "openvino":
        packages.append("nncf")
    for package in packages:
        if find_spec(package) is None:
            where = write_option("format", format)
            raise MissingExtra(
                f"{where}: needs {package}; run: pip install 'vitrail[{format},int8]'"
            )


def _prepare(
    checkpoint: Path,
    format: QuantizedFormat,
    settings: Sequence[Layer],
    output: Path | None,
    display: Display,
) -> _Job:
    """Open the weights, evaluate them, read images for calibration, and rank the layers by sensitivity."""
    opened = open_model(checkpoint, resolve_request(settings), display)
    source = Path(opened.account.path)
    wanted = output or choose_namesake(checkpoint, opened.account.path).with_suffix(
        SUFFIXES[format]
    )
    path = find_outputs([format], source, wanted)[format]
    # whether it can be written, before it takes long
    with staged_files(path, {path.suffix: [b""]}):
        pass
    config = resolve_for(opened.record, settings).config
    preprocess = override_preprocess(opened.record.preprocess, config.preprocess, Quiet())

    exact = evaluate(checkpoint, settings, display=display)
    images, calibrated_on = _read_calibration_images(config, preprocess, display)
    model = opened.build().float()
    layers = find_quantizable(model)
    display.begin("rank layers", len(layers))
    moved = measure_sensitivities(model, layers, images[:RANKING_IMAGES], display.advance)
    display.end()
    return _Job(
        source=source,
        format=format,
        path=path,
        settings=settings,
        model=model,
        record=replace(opened.record, preprocess=preprocess),
        sha256=hash_file(source),
        exact=exact,
        images=images,
        calibrated_on=calibrated_on,
        layers=layers,
        sensitivities=dict(sorted(moved.items(), key=lambda item: -item[1])),
        display=display,
    )


def _try_layers(job: _Job, max_drop: float, exits: ExitStack) -> tuple[list[Trial], _Candidate]:
    """Write and evaluate files with ever more layers in float, until one passes; return all trials and the last file.

    Args:
        job: The model.
        max_drop: Points that may be lost.
        exits: Removes all of the files at its end.
    """
    ranked = tuple(job.sensitivities)
    trials: list[Trial] = []
    files: list[_Candidate] = []
    for count in _list_counts(len(ranked)):
        kept = ranked[:count]
        job.display.note(f"in 8 bits: {len(ranked) - count} of {len(ranked)} layers")
        file = exits.enter_context(job.write(job.path, kept))
        evaluation = job.evaluate(file)
        size = _measure_size(file)
        files.append(_Candidate(what=job.path.name, file=file, bytes=size, evaluation=evaluation))
        measure = read_measure(evaluation)
        drop = read_measure(job.exact) - measure
        trials.append(Trial(kept=kept, measure=measure, drop=drop, bytes=size))
        if drop <= max_drop:
            break
    return trials, files[-1]


def _list_counts(layers: int) -> Iterator[int]:
    """Yield how many layers stay in float, trial by trial."""
    yield 0
    count = 1
    while count <= MOST_KEPT * layers:
        yield count
        count *= 2


def _time_alternatives(
    job: _Job, ours: _Candidate, rounds: int, exits: ExitStack
) -> tuple[Speed, ...]:
    """Measure the 8-bit file beside the weights and the same format in float; ours comes last."""
    weights = _Candidate(
        what=job.source.name, file=job.source, bytes=job.source.stat().st_size, evaluation=job.exact
    )
    in_float = exits.enter_context(
        job.write(job.path.with_suffix(f".float{job.path.suffix}"), None)
    )
    float32 = _Candidate(
        what=f"float32 {job.format}",
        file=in_float,
        bytes=_measure_size(in_float),
        evaluation=job.evaluate(in_float),
    )
    candidates = [weights, float32]
    if job.format == "openvino" and "BF16" in openvino_capabilities():
        bfloat16 = replace(
            float32,
            what="bfloat16 openvino",
            evaluation=job.evaluate(in_float, precision="bfloat16"),
            precision="bfloat16",
        )
        candidates.append(bfloat16)
    candidates.append(ours)

    subjects: list[Subject] = []
    for one in candidates:
        options = {"threads": torch.get_num_threads(), "device": "cpu", "precision": one.precision}
        subjects += find_subjects([str(one.file)], **options)
    measured = bench(subjects, BATCH_SIZES, rounds, job.display)

    speeds = []
    for number, one in enumerate(candidates):
        # each candidate has as many measurements in a row as there are batch sizes
        first = number * len(BATCH_SIZES)
        its_own = measured[first : first + len(BATCH_SIZES)]
        speeds.append(
            Speed(
                what=one.what,
                about=its_own[0].about,
                measure=read_measure(one.evaluation),
                bytes=one.bytes,
                ms={batch.batch_size: batch.p50_ms for batch in its_own},
            )
        )
    return tuple(speeds)


def _list_parts(file: Path) -> list[Path]:
    """Return all that belongs to a staged file, which has a folder of its own."""
    return sorted(file.parent.iterdir())


def _measure_size(file: Path) -> int:
    return sum(part.stat().st_size for part in _list_parts(file))


def _read_calibration_images(
    config: EvaluateConfig, preprocess: Preprocess, display: Display
) -> tuple[Tensor, str]:
    """Return normalised images evenly spaced over the training split, or the evaluated one where there is none."""
    evaluated = config.evaluate.split
    try:
        source, _ = open_split(config.data, "train" if evaluated == "val" else evaluated)
    except DataError as error:
        display.warn(
            f"calibrated on the images it is evaluated on, as there are no others ({error})"
        )
        source, _ = open_split(config.data, evaluated)

    chosen = _take_evenly(source, CALIBRATION_IMAGES)
    loader = build_eval_loader(
        chosen,
        preprocess,
        batch_size=CALIBRATION_IMAGES,
        workers=0,
        bad_files=config.data.bad_files,
    )
    images = torch.cat(
        [normalise(batch.images, preprocess.mean, preprocess.std) for batch in loader]
    )
    if not len(images):
        raise DataError(
            f"{source.description}: none of {len(chosen)} images to calibrate on could be read"
        )
    return (
        images,
        f"calibrated on {len(images)} of the {len(source):,} images of {source.description}",
    )


def _take_evenly(source: Source, most: int) -> Source:
    """Return at most so many images of a source, evenly spaced."""
    count = min(most, len(source))
    chosen = np.zeros(len(source), dtype=bool)
    chosen[np.arange(count) * len(source) // count] = True
    return source.take(chosen, source.description, ())


class _ProgressOnly(Quiet):
    """The progress bars of another display; notes and warnings, which the weights' evaluation gave, are dropped."""

    def __init__(self, shown: Display) -> None:
        self.begin = shown.begin
        self.advance = shown.advance
        self.end = shown.end
