"""Images in, classes and probabilities out, one row an image and in the order given."""

from __future__ import annotations

import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vitrail.cells import write_rows
from vitrail.classes.names import BETWEEN
from vitrail.data.folders import IN_A_CIRCLE, Ignored, is_hidden, is_image, is_unread_image, lies_in_a_circle, walk
from vitrail.data.list_files import is_table, read_lines
from vitrail.data.list_paths import Spelling, read_paths
from vitrail.data.lists import LABELS
from vitrail.errors import CheckpointError, DataError, printable
from vitrail.files import no_file, remove_leftovers, staging
from vitrail.images.decoding import decode, read_image
from vitrail.images.pixels import UnreadableImage
from vitrail.images.preprocess import Preprocess, normalise
from vitrail.images.silence import nothing_printed

Format = Literal["json", "jsonl", "csv"]
LIST_SUFFIXES = (".txt", ".lst", ".list")
GIVE = "give an image, a folder, a quoted glob, a .txt list of paths, or a .csv, .tsv or .jsonl list with their column"
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


def find_images(
    inputs: Iterable[str], note: Callable[[str], None], *, root: str | None = None, path_column: str = "path"
) -> Iterator[str]:
    """Yield image paths from files, folders (searched deeply), globs, text files with one path a line, and lists.

    Memory does not grow with their number, but for the paths of lists with columns. A path in a text file is yielded as
    it stands, so a missing one becomes a row.

    Args:
        inputs: As they were given.
        note: Told of what is passed over, or read otherwise than it is written.
        root: Folder that the paths of lists with columns begin in, as `data.root`; None is each list's own.
        path_column: Of such lists, as `data.path_column`.

    Raises:
        DataError: An input that does not exist, or holds no image; a list that is wrong.
    """
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            found = _in_folder(path, note)
        elif path.is_file() and path.suffix.lower() in LIST_SUFFIXES:
            found = _in_text(path, note)
        elif path.is_file() and is_table(path):
            found = _in_table(path, root, path_column, note)
        elif path.is_file():
            found = iter((given,))
        elif glob.has_magic(given):
            found = _in_glob(given, note)
        else:
            what = f"is {no_file(path)}; " if os.path.lexists(given) else "no such file or folder; "
            raise DataError(f"{printable(given)}: {what}{GIVE}")
        first = next(found, None)
        if first is None:
            raise DataError(f"{printable(given)}: holds no image; {GIVE}")
        yield first
        yield from found


def _in_folder(folder: Path, note: Callable[[str], None]) -> Iterator[str]:
    ignored = Ignored()
    try:
        # an image of a format that is not read becomes a row with the reason
        for path in walk(folder, "", ignored, takes=lambda name: is_image(name) or is_unread_image(name)):
            yield os.path.join(folder, path)
    except OSError as error:
        raise DataError(f"{printable(error.filename or folder)}: cannot be read ({error.strerror})") from error
    for told in ignored.notes(folder):
        note(told)


def _in_glob(pattern: str, note: Callable[[str], None]) -> Iterator[str]:
    """Yield the files that match, but for the system's, unless the pattern names them."""
    ignored, named = Ignored(), Path(pattern).parts
    is_circle = cache(lies_in_a_circle)
    for match in glob.iglob(pattern, recursive=True):
        path = Path(match)
        if any(is_hidden(part) and part not in named for part in path.parts):
            ignored.hidden.append(match)
        elif not path.is_file():
            if odd := no_file(path):
                ignored.odd.append(f"{match} ({odd})")
        elif is_circle(path.parent):  # which a pattern with ** goes round until the system stops it
            ignored.odd.append(f"{match} (behind {IN_A_CIRCLE})")
        else:
            yield match
    for told in ignored.notes(Path(pattern)):
        note(told)


def _in_text(path: Path, note: Callable[[str], None]) -> Iterator[str]:
    notes: list[str] = []
    spelling = Spelling(path, "")
    for line in read_lines(path, printable(path), notes, any_bytes=True):
        if text := line.strip():
            yield spelling.correct(text)
    for told in (*notes, *spelling.notes()):
        note(told)


def _in_table(path: Path, root: str | None, column: str, note: Callable[[str], None]) -> Iterator[str]:
    before, paths, notes = read_paths(path, root, column)
    for told in notes:
        note(told)
    for index in range(len(paths)):
        yield before + paths.name(index)


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
    preprocess.check_batch(batch_size)
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


def format_of(path: Path | None) -> Format:
    """Return the format that the name of a file of predictions ends in, or json."""
    ending = path.suffix.lower().removeprefix(".") if path is not None else ""
    known: dict[str, Format] = {form: form for form in get_args(Format)}
    return known.get(ending, "json")


@contextmanager
def open_output(
    path: Path, form: Format, classes: Sequence[str], topk: int, *, several: bool = False, guard_csv: bool = True
) -> Iterator[PredictionFile]:
    """Open a file of predictions, written under a temporary name until it is whole.

    Raises:
        CheckpointError: The folder cannot be written, or the disk is full; an older file stays as it was.
    """
    target, temporary = staging(path)
    remove_leftovers(target)
    try:
        with _told(path):
            stream = temporary.open("w", encoding="utf-8", newline="")
        try:
            output = PredictionFile(stream, path, form, classes, topk, several=several, guard_csv=guard_csv)
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

    Where an image may have several classes, JSON has lists of them, and CSV their names in one cell. Texts that a
    spreadsheet would compute are guarded in CSV, unless that is not wanted.
    """

    def __init__(
        self,
        stream: TextIO,
        path: Path,
        form: Format,
        classes: Sequence[str],
        topk: int,
        *,
        several: bool = False,
        guard_csv: bool = True,
    ) -> None:
        self._stream, self._path, self._form, self._classes, self._topk = stream, path, form, classes, topk
        self._several, self._guard_csv = several, guard_csv
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
            write_rows(self._stream, [cells], guarded=self._guard_csv)

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
        if odd := no_file(path):  # which a text file may name, and which might block whoever opens it
            return f"is {odd}, no image"
        data = read_image(path)
        with nothing_printed():
            return read_view(data, preprocess)
    except UnreadableImage as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)


def probabilities(logits: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Return the probability of each class, in float64."""
    with np.errstate(invalid="ignore"):
        return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))
