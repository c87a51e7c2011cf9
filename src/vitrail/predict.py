"""Images in, classes and probabilities out, one row an image and in the order given."""

from __future__ import annotations

import csv
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np
import torch
from torch import Tensor

from vitrail.data.folders import is_hidden, is_image, is_unread_image
from vitrail.data.lists import BETWEEN, LABELS
from vitrail.data.sources import printable
from vitrail.decoding import decode
from vitrail.errors import CheckpointError, DataError
from vitrail.files import staging
from vitrail.label_metrics import probabilities
from vitrail.pixels import UnreadableImage
from vitrail.transforms import Preprocess, normalise

Format = Literal["json", "jsonl", "csv"]
LIST_SUFFIXES = (".txt", ".lst", ".list")
Choices = tuple[list[int], list[float]]
"""Class indices and their probabilities."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one image, or why it could not be read."""

    path: str
    choices: tuple[int, ...] = ()
    """Class indices, the most probable first; any number of them where the model gives any number of classes."""
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def find_images(inputs: Iterable[str]) -> Iterator[str]:
    """Yield image paths from files, folders (searched deeply), globs and text files with one path a line.

    Memory does not grow with their number. A path in a list is yielded as it stands, so a missing one becomes a row.

    Raises:
        DataError: An input that does not exist, or holds no image.
    """
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = _walk(path, ())
        elif path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
            found = _lines(path)
        elif path.is_file():
            found = iter((given,))
        elif glob.has_magic(given):
            found = (match for match in glob.iglob(given, recursive=True) if os.path.isfile(match))
        else:
            raise DataError(
                f"{given}: no such file or folder; give an image, a folder, a quoted glob, or a .txt list of paths"
            )
        first = next(found, None)
        if first is None:
            raise DataError(f"{given}: holds no image; give an image, a folder, a quoted glob, or a .txt list of paths")
        yield first
        yield from found


def predict(
    model: Callable[[Tensor], Tensor],
    preprocess: Preprocess,
    paths: Iterable[str],
    *,
    topk: int = 1,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    thresholds: Sequence[float] | None = None,
) -> Iterator[Prediction]:
    """Yield one prediction for each path, in order; an unreadable image gives its error.

    Images are decoded by threads while the model computes the batch before; memory does not grow with their number.

    Args:
        model: From `open_artifact`, or whatever else turns normalised images into logits.
        preprocess: Of the model.
        paths: Of images.
        topk: Classes to give for each, or the most of those that reach their thresholds.
        batch_size: Images that are computed together.
        device: Of the model.
        thresholds: Of a model that gives any number of classes: the probability from which each is given.
    """
    source = iter(paths)
    with ThreadPoolExecutor(
        max_workers=min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    ) as pool:

        def submit() -> list[tuple[str, Any]]:
            return [(path, pool.submit(_read, path, preprocess)) for path in islice(source, batch_size)]

        coming = submit()
        while coming:
            current, coming = coming, submit()
            views = [(path, future.result()) for path, future in current]
            images = [view for _, view in views if not isinstance(view, str)]
            rows: Iterator[Choices] = iter(())
            if images:
                rows = iter(classify(model, preprocess, images, topk=topk, device=device, thresholds=thresholds))
            for path, view in views:
                name = printable(path)
                if isinstance(view, str):
                    yield Prediction(name, error=view)
                else:
                    choices, probabilities = next(rows)
                    yield Prediction(name, tuple(choices), tuple(probabilities))


def classify(
    model: Callable[[Tensor], Tensor],
    preprocess: Preprocess,
    views: list[Tensor],
    *,
    topk: int,
    device: torch.device | str,
    thresholds: Sequence[float] | None = None,
) -> list[Choices]:
    """Return the classes and probabilities of each view, the most probable first."""
    with torch.inference_mode():
        batch = normalise(torch.stack(views).to(device), preprocess.mean, preprocess.std)
        logits = model(batch).float()
        if thresholds is not None:
            return _reached(logits, topk, thresholds)
        best = logits.softmax(dim=1).topk(min(topk, logits.shape[1]))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def _reached(logits: Tensor, most: int, thresholds: Sequence[float]) -> list[Choices]:
    found: list[Choices] = []
    for row in probabilities(logits.cpu().numpy()):
        order = np.argsort(-row, kind="stable")
        choices = [int(choice) for choice in order if row[choice] >= thresholds[choice]][:most]
        found.append((choices, [float(row[choice]) for choice in choices]))
    return found


@contextmanager
def open_output(
    path: Path, form: Format, classes: Sequence[str], topk: int, *, several: bool = False
) -> Iterator[PredictionFile]:
    """Open a file of predictions, written under a temporary name until it is whole.

    Raises:
        CheckpointError: The folder cannot be written, or the disk is full; an older file stays as it was.
    """
    target, temporary = staging(path)
    try:
        with _told(path):
            stream = temporary.open("w", encoding="utf-8", newline="")
        try:
            output = PredictionFile(stream, path, form, classes, topk, several=several)
            yield output
            output.finish()
        finally:
            with _told(path):
                stream.close()
        if temporary != target:
            with _told(path):
                temporary.replace(target)
    finally:
        if temporary != target:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{path}: cannot be written ({error.strerror}); choose another file with --output"
        raise CheckpointError(reason) from error


class PredictionFile:
    """Predictions as JSON ({path: class}), one JSON object a line, or CSV.

    Where an image may have several classes, JSON has lists of them, and CSV their names in one cell.
    """

    def __init__(
        self, stream: TextIO, path: Path, form: Format, classes: Sequence[str], topk: int, *, several: bool = False
    ) -> None:
        self._stream, self._path, self._form, self._classes, self._topk = stream, path, form, classes, topk
        self._several = several
        self._separator = "{\n"
        if form == "csv" and several:
            self._put_cells(["path", LABELS, "probabilities", "error"])
        elif form == "csv":
            columns = [
                f"{name}{'' if k == 0 else f'_{k + 1}'}"
                for k in range(topk)
                for name in ("class", "name", "probability")
            ]
            self._put_cells(["path", *columns, "error"])

    def write(self, found: Prediction) -> None:
        """Add one row."""
        if self._form == "json":
            one = self._topk == 1 and not self._several
            value: Any = {"error": found.error} if found.error else found.choices[0] if one else found.choices
            self._put(f"{self._separator} {json.dumps(found.path)}: {json.dumps(value)}")
            self._separator = ",\n"
        elif self._form == "jsonl":
            self._put(json.dumps(self._row(found)) + "\n")
        elif self._several:
            names = BETWEEN.join(self._classes[choice] for choice in found.choices)
            shares = BETWEEN.join(f"{probability:.6f}" for probability in found.probabilities)
            self._put_cells([found.path, names, shares, found.error or ""])
        else:
            cells = [
                cell
                for choice, probability in zip(found.choices, found.probabilities, strict=True)
                for cell in (choice, self._classes[choice], f"{probability:.6f}")
            ]
            self._put_cells([found.path, *cells, *[""] * (3 * self._topk - len(cells)), found.error or ""])

    def _put(self, text: str) -> None:
        with _told(self._path):
            self._stream.write(text)

    def _put_cells(self, cells: Sequence[object]) -> None:
        with _told(self._path):
            csv.writer(self._stream, lineterminator="\n").writerow(cells)

    def finish(self) -> None:
        """End the file."""
        if self._form == "json":
            self._put("\n}\n" if self._separator == ",\n" else "{}\n")

    def _row(self, found: Prediction) -> dict[str, Any]:
        if found.error:
            return {"path": found.path, "error": found.error}
        named = [
            {"class": choice, "name": self._classes[choice], "probability": probability}
            for choice, probability in zip(found.choices, found.probabilities, strict=True)
        ]
        if self._several:
            return {"path": found.path, LABELS: named}
        return {"path": found.path, **named[0], **({"topk": named} if self._topk > 1 else {})}


def read_view(data: bytes, preprocess: Preprocess) -> Tensor:
    """Return what the model is to see of an image file.

    Raises:
        UnreadableImage: It cannot be decoded.
    """
    return preprocess.view(decode(data, preprocess.pixels))


def _read(path: str, preprocess: Preprocess) -> torch.Tensor | str:
    """Return what the model is to see of an image, or why it cannot be read."""
    try:
        return read_view(Path(path).read_bytes(), preprocess)
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def _walk(folder: Path, inside: tuple[Path, ...]) -> Iterator[str]:
    here = folder.resolve()
    if here in inside:
        raise DataError(f"{printable(folder)}: is a link to a folder that contains it; remove the link")
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{printable(folder)}: cannot be read ({error.strerror})") from error
    for entry in entries:
        if is_hidden(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(Path(entry.path), (*inside, here))
        elif is_image(entry.name) or is_unread_image(entry.name):  # which becomes a row with the reason
            yield entry.path


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
            for line in lines:
                if text := line.strip():
                    yield text
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be read ({error.strerror})") from error
