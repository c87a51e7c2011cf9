"""The best weights of a run: the top-k files, which after a kill are brought back to those that its last save knows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitrail.files import refusal_told, temporary_name
from vitrail.weights.checkpoint import Record, read_metrics, save_model

Row = Mapping[str, Any]
"""Numbers of an epoch, which identify its weights: they stand in the file and in the save."""


class BestFiles:
    """best.safetensors, best-2.safetensors and so on, the best first.

    A save knows which they are. What falls out of them before the next save is kept aside, as a run
    that goes on from the save before needs it again. Every step leaves best.safetensors in place,
    and may be made twice.

    Args:
        folder: Folder of the run.
        keep: Number of files in all.
        saved: The rows that the last save knows.
    """

    def __init__(self, folder: Path, keep: int, saved: Sequence[Row] = ()) -> None:
        later = [folder / f"best-{number}.safetensors" for number in range(2, keep + 1)]
        self._names = [folder / "best.safetensors", *later]
        self._aside = folder / "last"
        self._saved = {_digest(row) for row in saved}

    def put(
        self, weights: Mapping[str, torch.Tensor], record: Record, before: Sequence[Row]
    ) -> None:
        """Write the best weights so far, and move on those before them.

        Args:
            weights: The weights, as in a state dict.
            record: The description that is stored with them, with the row of the epoch.
            before: The rows that were the best before, the best first.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written; best.safetensors
                stays as it was.
        """
        first = self._names[0]
        with refusal_told(first, None):
            still_there = [row for row in before if self._find(row)]
            rows = [record.metrics, *still_there][: len(self._names)]
            # from the last on, so that none is written over
            for number in reversed(range(1, len(rows))):
                self._move(rows[number], self._names[number])
            self._set_aside(first)
        save_model(first, weights, record)
        with refusal_told(first, None):
            # files from before the best epoch was looked for anew
            for leftover in self._names[len(rows) :]:
                self._set_aside(leftover)
                leftover.unlink(missing_ok=True)

    def settle(self, rows: Sequence[Row]) -> list[Row]:
        """Give the files of a resumed run the names by which its last save knows them.

        Where none of them is there, the files stay as they are, until there are better ones.

        Args:
            rows: The rows that the save knows, the best first.

        Returns:
            The rows whose weights are there.

        Raises:
            CheckpointError: The folder cannot be written.
        """
        with refusal_told(self._names[0], None):
            there = [row for row in rows if self._find(row)][: len(self._names)]
            named = list(zip(there, self._names, strict=False))
            misnamed = [row for row, name in named if not _holds(name, row)]
            # all are kept aside before any is renamed, so that none is written over
            for row in misnamed:
                self._move(row, self._aside_name(row))
            for row, name in named:
                self._move(row, name)
            if there:
                for leftover in self._names[len(there) :]:
                    leftover.unlink(missing_ok=True)
        self.saved(there)
        return there

    def saved(self, rows: Sequence[Row]) -> None:
        """Take note of the rows that a new save knows, and remove the files that only the save before needed."""
        self._saved = {_digest(row) for row in rows}
        for path in self._aside.glob("best-*.safetensors"):
            with contextlib.suppress(OSError):
                path.unlink()

    def _find(self, row: Row) -> Path | None:
        """Return a file that holds the weights of a row."""
        places = (*self._names, self._aside_name(row))
        return next((path for path in places if _holds(path, row)), None)

    def _aside_name(self, row: Row) -> Path:
        """Return where the weights of a row are kept aside."""
        return self._aside / f"best-{_digest(row)}.safetensors"

    def _move(self, row: Row, target: Path) -> None:
        """Bring the weights of a row to a name, where they are elsewhere."""
        source = self._find(row)
        if source is not None and not _holds(target, row):
            self._set_aside(target)
            _link(source, target)

    def _set_aside(self, path: Path) -> None:
        """Keep a file that is about to be replaced, where the last save needs it and there is no other copy of it."""
        row = read_metrics(path)
        if row is None or _digest(row) not in self._saved or path.parent == self._aside:
            return
        others = [name for name in self._names if name != path]
        if not any(_holds(other, row) for other in (*others, self._aside_name(row))):
            _link(path, self._aside_name(row))


def _link(source: Path, target: Path) -> None:
    """Give a file a further name, replacing what had it; where a file system has no links, copy it."""
    temporary = temporary_name(target)
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        shutil.copyfile(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    temporary.replace(target)
    temporary.unlink(missing_ok=True)  # which stays where both were one file already


def _holds(path: Path, row: Row) -> bool:
    """Say whether a file is there and holds the weights of a row."""
    own_row = read_metrics(path)
    return own_row is not None and _digest(own_row) == _digest(row)


def _digest(row: Row) -> str:
    return hashlib.sha256(json.dumps(row, sort_keys=True).encode()).hexdigest()[:16]
