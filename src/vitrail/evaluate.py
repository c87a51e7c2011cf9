"""Accuracy of a model on labelled images, each counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from vitrail.checkpoint import Record
from vitrail.config import ConvertConfig, DataSection, EvaluateConfig, Layer, PreprocessSection, resolve, to_dict
from vitrail.data import open_split
from vitrail.data.loader import ImageLoader, build_eval_loader
from vitrail.display import Display, Quiet
from vitrail.engine import Precision, autocast, gather_texts, processes, sum_over_processes
from vitrail.errors import DataError
from vitrail.loading import Opened, open_model, require_rgb, tell, wanted
from vitrail.metrics import SHOTS, Accuracy, Counter, accuracy
from vitrail.models.registry import IMAGENET_MEAN, IMAGENET_STD, VisionModel
from vitrail.transforms import Preprocess, normalise

STATISTICS = ((IMAGENET_MEAN, IMAGENET_STD), ((0.5,) * 3, (0.5,) * 3), ((0.0,) * 3, (1.0,) * 3))
"""Mean and std that published models were trained with."""
CROPS = (0.875, 0.9, 1.0)
INTERPOLATIONS: tuple[Literal["bicubic", "bilinear"], ...] = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of one model on one set of images."""

    accuracy: Accuracy
    bad_files: tuple[tuple[str, str], ...]
    """Name and reason of each image that could not be read; none of them is counted as right or wrong."""
    data: str
    preprocess: Preprocess

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers as plain values for JSON."""
        found = self.accuracy
        return {
            "top1": found.top1,
            "top5": found.top5,
            "loss": found.loss,
            "balanced_accuracy": found.balanced_accuracy,
            "macro_f1": found.macro_f1,
            **{f"{name}_top1": getattr(found, f"{name}_top1") for name in SHOTS},
            "n_ok": found.n,
            "n_bad": len(self.bad_files),
            "bad_files": [{"path": name, "error": reason} for name, reason in self.bad_files],
            "warnings": list(found.warnings),
            "data": self.data,
            "preprocess": self.preprocess.to_dict(),
        }


def evaluate(path: Path, settings: Sequence[Layer] = (), *, display: Display | None = None) -> Evaluation:
    """Evaluate a weight file on the images that `settings` name, or else on those it was validated with.

    Raises:
        CheckpointError: The file is not one, or damaged.
        ConfigError: A setting is unknown, of the wrong type or out of range.
        DataError: The images are not there, or their classes are not the model's.
    """
    return _evaluate(path, settings, display or Quiet(), lambda stored: [stored])[0]


def sweep(path: Path, settings: Sequence[Layer] = (), *, display: Display | None = None) -> list[Evaluation]:
    """Evaluate a weight file with every usual way of reading images, the best first, to find the one that fits it.

    Raises: As `evaluate` does.
    """

    def candidates(stored: Preprocess) -> list[Preprocess]:
        ways = [
            replace(stored, mean=mean, std=std, crop=crop, interpolation=interpolation)
            for mean, std in dict.fromkeys([(stored.mean, stored.std), *STATISTICS])
            for crop in sorted({stored.crop, *CROPS})
            for interpolation in INTERPOLATIONS
        ]
        return ways

    found = _evaluate(path, settings, display or Quiet(), candidates)
    return sorted(found, key=lambda result: (-result.accuracy.top1, result.accuracy.loss))


def _evaluate(
    path: Path, settings: Sequence[Layer], display: Display, ways: Callable[[Preprocess], list[Preprocess]]
) -> list[Evaluation]:
    opened = open_wanted(path, settings)
    tell(opened, display)
    require_rgb(opened)
    record = opened.record
    config = resolve(EvaluateConfig, [*inherited_data(record, settings), *settings]).config
    data = config.data
    with processes(config.evaluate.precision, config.evaluate.device) as accelerator:
        with accelerator.local_main_process_first():  # which downloads for all
            source, notes = open_split(
                data.name,
                data.root,
                config.evaluate.split,
                train_split=data.train_split,
                val_split=data.val_split,
                val_fraction=data.val_fraction,
                download=data.download,
            )
        if not record.classes and record.options["num_classes"] == len(source.classes):
            display.warn(f"{path}: names no classes; those of the data are taken, in their order")
        else:
            check_classes(record.classes, source.classes, path)
        tried = ways(override_preprocess(record.preprocess, config.preprocess, display))
        for note in notes:
            display.note(note)
        model = opened.build(accelerator.device)
        loaders = [
            build_eval_loader(
                source,
                preprocess,
                batch_size=config.evaluate.batch_size,
                rank=accelerator.process_index,
                world=accelerator.num_processes,
                workers=data.workers,
                bad_files=data.bad_files,
                pin_memory=accelerator.device.type == "cuda",
            )
            for preprocess in tried
        ]
        counts = np.array(record.provenance["training_counts"]) if "training_counts" in record.provenance else None
        display.begin("evaluate", sum(map(len, loaders)))
        results = []
        for preprocess, loader in zip(tried, loaders, strict=True):
            found, bad = count(
                model, loader, preprocess, accelerator, config.evaluate.precision, display.advance, counts
            )
            results.append(Evaluation(found, tuple(bad), source.description, preprocess))
        display.end()
        return results


def open_wanted(path: Path, settings: Sequence[Layer]) -> Opened:
    """Open a weight file as the settings of the section `weights` want it."""
    only = [
        Layer(layer.origin, {"weights": layer.values["weights"]}) for layer in settings if "weights" in layer.values
    ]
    return open_model(path, wanted(resolve(ConvertConfig, only).config.weights))


def count(
    model: VisionModel,
    loader: ImageLoader,
    preprocess: Preprocess,
    accelerator: Accelerator,
    precision: Precision,
    advance: Callable[[], None],
    training_counts: NDArray[np.int64] | None = None,
) -> tuple[Accuracy, list[tuple[str, str]]]:
    """Count the right answers of a model over all processes, and gather the images that could not be read.

    `advance` is called after each batch, equally often in all processes. `training_counts` has the training images of
    each class, where they are known.

    Raises:
        DataError: None could be read.
    """
    device = accelerator.device
    was_training = model.training
    model.eval()
    counter = Counter(model.config.num_classes, device)
    bad: list[tuple[str, str]] = []
    nothing = torch.zeros(1, 3, *preprocess.size, device=device)
    most = max(gather_texts(accelerator, [len(loader)]))
    with torch.no_grad(), autocast(device, precision):
        for batch in loader:
            bad += batch.bad
            images = normalise(batch.images.to(device, non_blocking=True), preprocess.mean, preprocess.std)
            # a model that is shared out needs all processes in each pass, also those without an image
            logits = model(images if len(batch.labels) else nothing)
            counter.add(logits[: len(batch.labels)], batch.labels.to(device, non_blocking=True))
            advance()
        for _ in range(most - len(loader)):
            model(nothing)
            advance()
    model.train(was_training)
    counter.totals, counter.loss, counter.confusion = sum_over_processes(
        accelerator, counter.totals, counter.loss, counter.confusion
    )
    bad = sorted(gather_texts(accelerator, bad))
    found = accuracy(counter, training_counts)
    if found.n == 0:
        raise DataError(f"none of the {len(bad)} images could be read; the first is {bad[0][0]} ({bad[0][1]})")
    return found, bad


def inherited_data(record: Record, settings: Sequence[Layer]) -> list[Layer]:
    """Return the data settings that a weight file was made with, less what a data set named anew replaces."""
    data = dict(record.recipe.get("data", {}))
    given = {key: value for layer in settings for key, value in layer.values.get("data", {}).items()}
    # another root of a named set holds the same set; another name, or another folder, is divided in its own way
    if "name" in given or ("root" in given and data.get("name") is None):
        same = "name" not in given and given["root"] == data.get("root")
        kept = ("train_split", "val_split", "val_fraction") if same else ("val_fraction",)
        data = {key: data[key] for key in ("download", "workers", "bad_files", *kept) if key in data}
    known = to_dict(DataSection())
    return [Layer("weight file", {"data": {key: value for key, value in data.items() if key in known}})] if data else []


def override_preprocess(stored: Preprocess, wanted: PreprocessSection, display: Display) -> Preprocess:
    """Return the preprocessing of a file with explicit settings put over it, saying what they change."""
    changes = {
        name: value for name, value in vars(wanted).items() if value is not None and value != getattr(stored, name)
    }
    for name, value in changes.items():
        display.warn(
            f"preprocess.{name} is {value} instead of {getattr(stored, name)}, which the weights were validated with"
        )
    return replace(stored, **changes)


def check_classes(model_classes: Sequence[str], data_classes: Sequence[str], path: Path | str) -> None:
    """Refuse data whose classes, or their order, are not the model's.

    Raises:
        DataError: With the first rows that differ.
    """
    if tuple(model_classes) == tuple(data_classes):
        return
    rows = [
        f"{index}: {ours} / {theirs}"
        for index, (ours, theirs) in enumerate(zip_longest(model_classes, data_classes, fillvalue="-"))
        if ours != theirs
    ]
    raise DataError(
        f"the classes of {path} ({len(model_classes)}) are not those of the data ({len(data_classes)}); differences, "
        f"as index: model / data = {'; '.join(rows[:3])}; rename the folders, or evaluate on the data it was trained on"
    )
