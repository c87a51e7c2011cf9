"""Silence what libjpeg and libpng print to standard error of damaged images."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STDERR = 2


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Drop what libjpeg and libpng print of damaged images meanwhile: it names no file, and tears a live line.

    Whatever else is printed to the process's standard error is dropped too, so it is for as long as
    one image takes. Any number of threads may do so at once.
    """
    if not _PRINTING.enter():
        yield
        return
    try:
        yield
    finally:
        _PRINTING.leave()


class _Printing:
    """The standard error of this process, which leads nowhere while some of its threads want nothing printed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._kept = -1

    def enter(self) -> bool:
        """Lead standard error nowhere, and say whether that was possible."""
        with self._lock:
            if not self._inside and not self._lead_away():
                return False
            self._inside += 1
            return True

    def _lead_away(self) -> bool:
        try:
            nowhere = os.open(os.devnull, os.O_WRONLY)
        except OSError:  # no more files may be open
            return False
        try:
            self._kept = os.dup(STDERR)
            os.dup2(nowhere, STDERR)
        except OSError:  # it is closed
            return False
        finally:
            os.close(nowhere)
        return True

    def leave(self) -> None:
        """Lead standard error back, with the last thread."""
        with self._lock:
            self._inside -= 1
            if not self._inside:
                os.dup2(self._kept, STDERR)
                os.close(self._kept)


_PRINTING = _Printing()
