"""The file of predictions: JSON, JSON Lines or CSV, whole or not there at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO, get_args

from vitrail.cells import write_rows
from vitrail.classes.names import BETWEEN
from vitrail.data.lists import LABELS
from vitrail.errors import CheckpointError, ConfigError, write_option
from vitrail.files import opener, remove_leftovers, staging
from vitrail.inference.predictor import Prediction

Format = Literal["json", "jsonl", "csv"]


def format_of(path: Path) -> Format:
    """Return the format that the name of a file of predictions ends in; json where it has no ending.

    Raises:
        ConfigError: It ends otherwise.
    """
    formats: tuple[Format, ...] = get_args(Format)
    for name in formats:
        if path.suffix.lower() == f".{name}":
            return name
    if path.suffix:
        endings = ", ".join(f".{name}" for name in formats)
        raise ConfigError(
            f"{write_option('output', path)}: must end in {endings}, or in nothing for json; or "
            f"choose its format with {write_option('format')}"
        )
    return "json"


def find_free_name(path: Path) -> Path:
    """Return a name for a file of predictions under which nothing is there: name.json, name-2.json, name-3.json."""
    free, number = path, 1
    while os.path.lexists(free):
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


@contextmanager
def open_output(
    path: Path,
    form: Format,
    classes: Sequence[str],
    topk: int,
    *,
    is_multi_label: bool = False,
    guard_csv: bool = True,
) -> Iterator[PredictionFile]:
    """Open a file of predictions, written under a temporary name until it is whole.

    Args:
        path: The file.
        form: Format of its content.
        classes: Class names in the order of the logits.
        topk: The most classes that an image is given; in CSV of a single-label model, the number of
            their columns.
        is_multi_label: Write the classes of an image as a list of any length.
        guard_csv: Put an apostrophe before texts in CSV that a spreadsheet would compute.

    Raises:
        CheckpointError: The folder cannot be written, or the disk is full; an older file stays as
            it was.
    """
    target, temporary = staging(path)
    remove_leftovers(target)
    try:
        with _refusal_told(path):
            stream = open(temporary, "w", encoding="utf-8", newline="", opener=opener)  # noqa: SIM115
        try:
            output = FILES[form](stream, path, tuple(classes), topk, is_multi_label, guard_csv)
            output.begin()
            yield output
            output.finish()
        finally:
            with _refusal_told(path):
                stream.close()
        if temporary != target:
            with _refusal_told(path):
                temporary.replace(target)
    finally:
        # whatever was written in vain goes; after a replacement there is nothing left
        if temporary != target:
            with suppress(OSError):
                temporary.unlink()


@contextmanager
def _refusal_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = f"{path}: cannot be written ({error.strerror}); choose another file with {write_option('output')}"
        raise CheckpointError(reason) from error


@dataclass
class PredictionFile:
    """A file of predictions that is being written, one row an image."""

    stream: TextIO
    path: Path
    """The name that errors have, and the file will have."""
    classes: tuple[str, ...]
    topk: int
    is_multi_label: bool
    guard_csv: bool

    def begin(self) -> None:
        """Write what stands before the first row."""

    def write(self, prediction: Prediction) -> None:
        """Write one row."""
        raise NotImplementedError

    def finish(self) -> None:
        """Write what stands behind the last row."""

    def put(self, text: str) -> None:
        """Write a text as it is."""
        with _refusal_told(self.path):
            self.stream.write(text)


class JsonFile(PredictionFile):
    """One JSON object that maps each path to its class, to several classes, or to an error."""

    separator = "{\n"
    """What stands before the next row."""

    def write(self, prediction: Prediction) -> None:
        """Add a path and its classes."""
        value: Any = prediction.choices
        if prediction.error:
            value = {"error": prediction.error}
        elif self.topk == 1 and not self.is_multi_label:
            value = prediction.choices[0]
        self.put(f"{self.separator} {json.dumps(prediction.path)}: {json.dumps(value)}")
        self.separator = ",\n"

    def finish(self) -> None:
        """Close the object, which may be empty."""
        is_empty = self.separator == "{\n"
        end = "{}\n" if is_empty else "\n}\n"
        self.put(end)


class JsonLinesFile(PredictionFile):
    """One JSON object an image, with names and probabilities."""

    def write(self, prediction: Prediction) -> None:
        """Add a line."""
        self.put(json.dumps(self._row(prediction)) + "\n")

    def _row(self, prediction: Prediction) -> dict[str, Any]:
        if prediction.error:
            return {"path": prediction.path, "error": prediction.error}
        choices = [
            {"class": choice, "name": self.classes[choice], "probability": probability}
            for choice, probability in zip(
                prediction.choices, prediction.probabilities, strict=True
            )
        ]
        if self.is_multi_label:
            return {"path": prediction.path, LABELS: choices}
        row = {"path": prediction.path, **choices[0]}
        if self.topk > 1:
            row["topk"] = choices
        return row


class CsvFile(PredictionFile):
    """A table: three columns for each of the first classes, or all names and probabilities in one cell each."""

    OF_A_CHOICE: ClassVar = ("class", "name", "probability")
    """Columns of each class that a single-label model gives."""

    def begin(self) -> None:
        """Write the header."""
        if self.is_multi_label:
            self._put_cells(["path", LABELS, "probabilities", "error"])
            return
        columns = list(self.OF_A_CHOICE)
        for number in range(2, self.topk + 1):
            columns += [f"{name}_{number}" for name in self.OF_A_CHOICE]
        self._put_cells(["path", *columns, "error"])

    def write(self, prediction: Prediction) -> None:
        """Add a row."""
        names = [self.classes[choice] for choice in prediction.choices]
        shares = [f"{probability:.6f}" for probability in prediction.probabilities]
        error = prediction.error or ""
        if self.is_multi_label:
            self._put_cells([prediction.path, BETWEEN.join(names), BETWEEN.join(shares), error])
            return
        cells: list[object] = []
        for cells_of_choice in zip(prediction.choices, names, shares, strict=True):
            cells += cells_of_choice
        # an unreadable image has no classes
        cells += [""] * (len(self.OF_A_CHOICE) * self.topk - len(cells))
        self._put_cells([prediction.path, *cells, error])

    def _put_cells(self, cells: Sequence[object]) -> None:
        with _refusal_told(self.path):
            write_rows(self.stream, [cells], guarded=self.guard_csv)


FILES: Mapping[Format, type[PredictionFile]] = {
    "json": JsonFile,
    "jsonl": JsonLinesFile,
    "csv": CsvFile,
}
"""The kind of file for each format."""
