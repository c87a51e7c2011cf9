"""Reports of evaluations, the parts of both kinds: subject, origin of the numbers, thumbnails, JSON and CSV."""

from __future__ import annotations

import io
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from vitrail.cells import write_rows
from vitrail.choices import ExplanationMethod
from vitrail.data.sources import Source
from vitrail.evaluation.answers import Gathered
from vitrail.images.pixels import Pixels, UnreadableImage
from vitrail.images.preprocess import Preprocess
from vitrail.pages.charts import Chart
from vitrail.pages.render import picture
from vitrail.weights.checkpoint import Record, hash_classes, hash_file, provenance

PAGE = "report.html"
NUMBERS = "report.json"
FILES = frozenset((NUMBERS, "per_class.csv", "confusion.csv", "confusion.png", PAGE))
MISTAKES = 24
"""The most confident mistakes that report.json and the page have."""


class Maps(Protocol):
    """Draws what answers rest on."""

    method: ExplanationMethod
    most: int
    """Mistakes that are explained at most."""

    def draw(self, view: Pixels, label: int) -> str | None:
        """Return a map of a class over an image, as a `data:` URI; None where there is nothing to explain."""
        ...


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model, the images that it was evaluated on, and the settings."""

    name: str
    """Title of the page."""
    path: Path
    """Path of the weight file."""
    record: Record
    """Description of the model; its classes are those of the logits."""
    source: Source
    """The images; their labels are the model's."""
    preprocess: Preprocess
    settings: Mapping[str, Any]
    device: torch.device
    engine: str = "torch"
    """Name of the engine that computed the answers."""
    guard_csv: bool = True
    """Whether names that a spreadsheet would compute have an apostrophe in front in CSV files."""
    maps: Maps | None = None
    """Draws what mistakes rest on; None where that is not asked for."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training run, whose page also shows the evaluation of its best weights."""

    rows: Sequence[Mapping[str, Any]]
    best: Mapping[str, Any]
    charts: Sequence[Chart]
    samples: Sequence[tuple[str, str]]
    """Picture and class of training images as the model saw them."""
    config: str
    seconds: float
    updates: int
    """Updates of the whole run, by which its report is told from that of a shorter one."""

    def numbers(self) -> dict[str, Any]:
        """Return the part of report.json on the run."""
        return {"training": {"updates": self.updates}}


def origin(subject: Subject, images: NDArray[np.int64]) -> dict[str, Any]:
    """Return where the numbers of a report come from.

    Args:
        subject: The evaluated model and images.
        images: Number of images of each class.
    """
    source, record = subject.source, subject.record
    return {
        "checkpoint": {
            "path": str(subject.path),
            "sha256": hash_file(subject.path),
            "model": record.model,
            "options": dict(record.options),
            "classes_hash": hash_classes(record.classes),
            "written_by": {
                key: value for key, value in record.provenance.items() if key != "sketch"
            },
        },
        "data": {
            "description": source.description,
            "notes": list(source.notes),
            "n_images": len(source),
            "n_classes": len(record.classes),
            "smallest_class": min(images[images > 0].tolist(), default=0),
            "largest_class": int(images.max()),
        },
        "preprocess": subject.preprocess.to_dict(),
        "settings": dict(subject.settings),
        "versions": {**versions(subject.device), "engine": subject.engine},
    }


def unreadable_images(bad_files: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    """Return the entries of report.json on images that could not be read."""
    return [{"path": name, "error": reason} for name, reason in bad_files]


def thumbnails(subject: Subject, answers: Gathered, images: Iterable[int]) -> dict[int, str | None]:
    """Return pictures of some of the answered images, each read once."""
    return {image: _thumbnail(subject, int(answers.indices[image])) for image in images}


def about_maps(subject: Subject) -> dict[str, Any]:
    """Return what the page says of the maps: their method, and how many mistakes have them where not all do."""
    if subject.maps is None:
        return {"method": None, "few": None}
    few = subject.maps.most if subject.maps.most < MISTAKES else None
    return {"method": subject.maps.method, "few": few}


def explain_mistakes(
    subject: Subject, answers: Gathered, mistakes: Sequence[tuple[int, Sequence[int]]]
) -> list[list[tuple[str, str]]]:
    """Return maps of the first mistakes, each with the name of its class; none where they are not asked for.

    Args:
        subject: The evaluated model and images.
        answers: Answers to the readable images.
        mistakes: Of each, the answered image, and the classes that are explained.
    """
    if subject.maps is None:
        return []
    drawn = []
    for image, labels in mistakes[: subject.maps.most]:
        view = _view(subject, int(answers.indices[image]))
        maps = []
        for label in labels:
            address = None if view is None else subject.maps.draw(view, label)
            if address is not None:
                maps.append((subject.record.classes[label], address))
        drawn.append(maps)
    return drawn


def _thumbnail(subject: Subject, index: int) -> str | None:
    view = _view(subject, index)
    return None if view is None else picture(view)


def _view(subject: Subject, index: int) -> Pixels | None:
    """Return an image as the model saw it, read once more; None where that is no longer possible."""
    try:
        return subject.preprocess.view(subject.source.image(index, subject.preprocess.pixels))
    except (OSError, UnreadableImage):
        return None


def versions(device: torch.device) -> dict[str, str]:
    """Return the versions of the software, and the device, that computed the numbers."""
    programs = {name: value for name, value in provenance().items() if name != "written"}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        **programs,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "device": name,
    }


def plain(value: Any) -> Any:
    """Return values with None for NaN and infinity, which JSON has no words for."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return list(map(plain, value))
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(numbers: Mapping[str, Any], training: Training | None) -> bytes:
    """Return the numbers of a report as a file, with the training that ended with it."""
    about = training.numbers() if training else {}
    return (json.dumps({**numbers, **about}, indent=1) + "\n").encode()


def to_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]], subject: Subject) -> bytes:
    """Return a table as a file, its texts guarded where the subject says so."""
    text = io.StringIO()
    write_rows(text, [columns, *rows], guarded=subject.guard_csv)
    return text.getvalue().encode()
