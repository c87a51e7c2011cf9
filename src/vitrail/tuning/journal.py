"""Optuna's journal of a study, a file that processes share: half a line, of a full disk, spoils none after it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from vitrail.files import GrowingFile, refusal_told

ADVICE = "free space, and begin the same again, which goes on with the study"
"""What to do where the journal cannot be written."""


class Journal:
    """A journal that any number of processes read and append to, as a backend of Optuna's storage.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        from optuna.storages.journal import JournalFileBackend

        self._path = path
        # the system lets go of this lock where a process is killed
        self._lock: Any = FileLock(f"{path}.lock")
        self._file = JournalFileBackend(str(path), self._lock)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Return the entries from a number on."""
        return self._file.read_logs(log_number_from)

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append entries, each a line.

        Raises:
            CheckpointError: The disk is full or the folder cannot be written.
        """
        with self._lock, refusal_told(self._path, None, ADVICE):
            if ends_within_a_line(self._path):
                GrowingFile(self._path, ADVICE).cut(lambda line: True)
            self._file.append_logs(logs)


def ends_within_a_line(path: Path) -> bool:
    """Say whether the last line of a file is not whole."""
    with path.open("rb") as file:
        if not file.seek(0, os.SEEK_END):
            return False
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"
