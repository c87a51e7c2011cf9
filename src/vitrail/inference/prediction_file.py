"""The file of predictions: JSON, JSON Lines or CSV, whole or not there at all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from vitrail.cells import write_rows
from vitrail.classes.names import BETWEEN
from vitrail.data.lists import LABELS
from vitrail.errors import CheckpointError
from vitrail.files import remove_leftovers, staging
from vitrail.inference.predictor import Prediction

Format = Literal["json", "jsonl", "csv"]


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
