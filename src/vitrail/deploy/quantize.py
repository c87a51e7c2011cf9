"""A model in 8 bits that passed a gate: on labelled images, as accurate as its weights but for an allowed drop."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from vitrail.config.commands import EvaluateConfig
from vitrail.config.resolve import Layer
from vitrail.data.loader import build_eval_loader
from vitrail.data.opening import open_split
from vitrail.data.sources import Source
from vitrail.deploy.export import ADVICE, FORMATS, REJECTED, Plan, find_outputs, staged_files
from vitrail.deploy.int8 import Int8, quantizable, sensitivities
from vitrail.display import Display, Quiet
from vitrail.errors import ConfigError, DataError, MissingExtra
from vitrail.evaluation.evaluate import Evaluation, evaluate
from vitrail.evaluation.settings import resolve_for
from vitrail.files import write_whole
from vitrail.images.transforms import Preprocess, normalise
from vitrail.inference.bench import Subject, bench, find_subjects
from vitrail.inference.engines import openvino_capabilities
from vitrail.inference.exported import Making
from vitrail.weights.checkpoint import hash_file
from vitrail.weights.loading import open_model, override_preprocess
from vitrail.weights.request import resolve_request

CALIBRATION = 128
"""Images that ranges are found on."""
RANKED_ON = 8
"""Of these, what the layers are ranked on."""
SLOWER = 1.05
"""Times that are within so much of each other are taken for equal."""
MOST_KEPT = 0.5
"""Share of the layers that may stay in float; beyond it, little would be gained."""
Quantizable = Literal["onnx", "openvino"]
SUFFIXES: Mapping[Quantizable, str] = {"onnx": ".int8.onnx", "openvino": ".int8.xml"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One file in 8 bits, and what it answered."""

    kept: tuple[str, ...]
    """Layers that stay in float, the most sensitive first."""
    measure: float
    """Top-1, or mAP of a model that gives any number of classes, percent."""
    drop: float
    """Points below the weights."""
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What an alternative takes, and how accurate it is."""

    what: str
    about: str
    """Engine, precision and threads."""
    measure: float
    bytes: int
    ms: dict[int, float]
    """Of a batch, by its size: medians of alternating rounds, each in a process of its own."""


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What came of it."""

    path: Path
    """Ends in .rejected where no trial passed."""
    is_good: bool
    numbers: Path
    """File with all of this."""
    measured_by: Literal["top-1", "mAP"]
    exact: float
    """The measure of the weights."""
    max_drop: float
    """Points that may be lost."""
    images: int
    """Labelled, that it was measured on."""
    calibrated_on: str
    layers: int
    """That could be in 8 bits."""
    trials: tuple[Trial, ...]
    sensitivities: dict[str, float]
    """By layer, as `int8.sensitivities`, the largest first."""
    speeds: tuple[Speed, ...]


def quantize(
    checkpoint: Path,
    format: Quantizable,
    settings: Sequence[Layer] = (),
    *,
    output: Path | None = None,
    max_drop: float = 1.0,
    rounds: int = 5,
    display: Display | None = None,
) -> Quantized:
    """Write a trained model in 8 bits, with as few layers left in float as the allowed drop takes.

    All layers are tried in 8 bits first, then with the 1, 2, 4, ... most sensitive in float; the first file that passes
    is kept. Labelled images and their settings are those of `evaluate`.

    Args:
        checkpoint: The weight file.
        format: Of the file.
        settings: Of the sections weights, data, preprocess and evaluate.
        output: The file; None is beside the weights, ending in .int8.onnx or .int8.xml.
        max_drop: Points of top-1, or mAP, that may be lost.
        rounds: Of timing, of 5 runs each.
        display: Where progress is shown.

    Raises:
        CheckpointError: The weight file is not one, or the disk is full.
        ConfigError: A setting is wrong, or the model is no case for 8 bits.
        DataError: The images are not there, or their classes are not the model's.
        MissingExtra: A package is not installed.
    """
    display = display or Quiet()
    if not max_drop >= 0:
        raise ConfigError(f"--max-drop is {max_drop:g}; it must be at least 0 points")
    for package in (*FORMATS[format].packages, *(["nncf"] if format == "openvino" else [])):
        if find_spec(package) is None:
            raise MissingExtra(f"--format {format}: needs {package}; run: pip install 'vitrail[{format},int8]'")
    opened = open_model(checkpoint, resolve_request(settings))
    source = Path(opened.account.path)
    path = find_outputs([format], source, output or source.with_suffix(SUFFIXES[format]))[format]
    with staged_files(path, {path.suffix: [b""]}):  # whether it can be written, before it takes long
        pass
    config = resolve_for(opened.record, settings).config
    preprocess = override_preprocess(opened.record.preprocess, config.preprocess, Quiet())
    record = replace(opened.record, preprocess=preprocess)
    exact = evaluate(checkpoint, settings, display=display)
    images, calibrated_on = _calibration(config, preprocess, display)
    model = opened.build().float()
    layers = quantizable(model)
    display.begin("rank layers", len(layers))
    moved = sensitivities(model, layers, images[:RANKED_ON], display.advance)
    display.end()
    ranked = sorted(moved, key=lambda name: -moved[name])

    made: dict[Any, Any] = {}
    sha256 = hash_file(source)

    def write(kept: Sequence[str] | None, path: Path) -> AbstractContextManager[Path]:
        """Write a file with these layers in float, or with all of them, for a while."""
        return staged_files(path, FORMATS[format].write(plan(kept)))

    def plan(kept: Sequence[str] | None) -> Plan:
        """Return how to write the file with these layers in float, or with all of them."""
        int8 = None if kept is None else Int8([name for name in layers if name not in kept], images)
        details = {} if int8 is None else {"int8": f"{len(int8.layers)} of {len(layers)} layers, {calibrated_on}"}
        making = Making(
            format=format, source=source.name, sha256=sha256, precision="int8" if int8 else "float32",
            details=details,
        )  # fmt: skip
        return Plan(
            model=model, record=record, making=making, device=torch.device("cpu"), mindir_version=1, topk=1, int8=int8,
            made=made,
        )  # fmt: skip

    def ask(file: Path, **evaluation: str) -> Evaluation:
        # how weights are read is settled in the file
        rest = [Layer(one.origin, {k: v for k, v in one.values.items() if k != "weights"}) for one in settings]
        return evaluate(file, [*rest, Layer("quantize", {"evaluate": evaluation})], display=_Bars(display))

    trials: list[Trial] = []
    speeds: list[Speed] = []
    with ExitStack() as exits:

        def attempt(kept: tuple[str, ...]) -> tuple[Path, Evaluation]:
            display.note(f"in 8 bits: {len(layers) - len(kept)} of {len(layers)} layers")
            place = exits.enter_context(write(kept, path))
            found = ask(place)
            drop = measure(exact) - measure(found)
            trials.append(Trial(kept=kept, measure=measure(found), drop=drop, bytes=_size(place)))
            return place, found

        place, found = attempt(())
        for count in _counts(len(layers)):
            if trials[-1].drop <= max_drop:
                break
            place, found = attempt(tuple(ranked[:count]))
        is_good = trials[-1].drop <= max_drop
        if is_good:
            plain = exits.enter_context(write(None, path.with_suffix(f".float{path.suffix}")))
            files = [(source.name, source, {}, exact), (f"float32 {format}", plain, {}, ask(plain))]
            if format == "openvino" and "BF16" in openvino_capabilities():
                files.append(("bfloat16 openvino", plain, {"precision": "bfloat16"}, ask(plain, precision="bfloat16")))
            files.append((path.name, place, {}, found))
            subjects: list[Subject] = []
            for _, file, options, _ in files:
                subjects += find_subjects([str(file)], threads=torch.get_num_threads(), device="cpu", **options)
            timed = bench(subjects, (1, 8), rounds, display)
            sizes = [source.stat().st_size, *(_size(file) for _, file, _, _ in files[1:])]
            speeds = [
                Speed(
                    what=what, about=timed[2 * number].about, measure=measure(evaluation), bytes=sizes[number],
                    ms={one.batch_size: one.p50_ms for one in timed[2 * number : 2 * number + 2]},
                )
                for number, (what, _, _, evaluation) in enumerate(files)
            ]  # fmt: skip
        final = path if is_good else path.with_name(path.name + REJECTED)
        for part in _parts(place):
            ending = "" if is_good else REJECTED
            part.replace(path.with_name(part.name + ending))
    result = Quantized(
        path=final,
        is_good=is_good,
        numbers=final.with_name(f"{final.name}.json"),
        measured_by=exact.accuracy.headline,
        exact=measure(exact),
        max_drop=max_drop,
        images=exact.accuracy.n,
        calibrated_on=calibrated_on,
        layers=len(layers),
        trials=tuple(trials),
        sensitivities={name: moved[name] for name in ranked},
        speeds=tuple(speeds),
    )
    write_whole(result.numbers, (json.dumps(asdict(result), indent=1, default=str) + "\n").encode(), ADVICE)
    return result


def advice(done: Quantized) -> list[str]:
    """Say what the gate cannot tell, and where float would do better on this processor."""
    said = []
    if done.measured_by == "top-1" and 100 / done.images > done.max_drop:
        said.append(
            f"each of the {done.images:,} labelled images counts {100 / done.images:.2g} points, more than may be "
            "lost; measure on more"
        )
    if not done.speeds:
        return said
    *others, ours = done.speeds
    for one in others:
        if SLOWER * one.ms[8] < ours.ms[8]:
            closer = "as accurate" if one.measure >= ours.measure else f"{ours.measure - one.measure:.2f} points below"
            said.append(
                f"{ours.what} is slower here than {one.what} ({ours.ms[8]:.1f} ms and {one.ms[8]:.1f} ms a batch "
                f"of 8), which is {closer}; 8 bits save size alone"
            )
    if ours.what.endswith(".onnx") and torch.cpu.get_capabilities().get("amx_bf16"):
        said.append(
            "this processor has AMX, where bfloat16 in OpenVINO was faster and closer than 8 bits in our measurements: "
            "vitrail export CKPT --format openvino --precision bfloat16"
        )
    return said


def measure(found: Evaluation) -> float:
    """Return what the gate looks at, percent."""
    return -found.accuracy.best_first[0]


def _counts(layers: int) -> Iterator[int]:
    count = 1
    while count <= MOST_KEPT * layers:
        yield count
        count *= 2


def _parts(place: Path) -> list[Path]:
    return sorted(place.parent.iterdir())


def _size(place: Path) -> int:
    return sum(part.stat().st_size for part in _parts(place))


def _calibration(config: EvaluateConfig, preprocess: Preprocess, display: Display) -> tuple[Tensor, str]:
    """Return images evenly spaced over those of the training, or where there are none over those evaluated."""
    try:
        source, _ = open_split(config.data, "train" if config.evaluate.split == "val" else config.evaluate.split)
    except DataError as error:
        display.warn(f"calibrated on the images it is evaluated on, as there are no others ({error})")
        source, _ = open_split(config.data, config.evaluate.split)
    chosen = _spread(source, CALIBRATION)
    loader = build_eval_loader(
        chosen, preprocess, batch_size=CALIBRATION, workers=0, bad_files=config.data.bad_files
    )  # fmt: skip
    images = torch.cat([normalise(batch.images, preprocess.mean, preprocess.std) for batch in loader])
    if not len(images):
        raise DataError(f"{source.description}: none of {len(chosen)} images to calibrate on could be read")
    return images, f"calibrated on {len(images)} of the {len(source):,} images of {source.description}"


def _spread(source: Source, most: int) -> Source:
    count = min(most, len(source))
    chosen = np.zeros(len(source), dtype=bool)
    chosen[np.arange(count) * len(source) // count] = True
    return source.take(chosen, source.description, ())


class _Bars(Quiet):
    """The bars of another display, without what is said beside them."""

    def __init__(self, shown: Display) -> None:
        self.begin, self.advance, self.end = shown.begin, shown.advance, shown.end
