"""Stop early and save: on SIGTERM or Ctrl-C, after train.max_hours, or when a part of the run asks for it."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from vitrail.errors import Interrupted, command

AGAIN_S = 1.0
"""A second Ctrl-C counts after so long, as torchrun passes the first on to processes that had it
from the terminal."""


class Stop:
    """Remembers, between two updates, that the run is to be saved and left.

    SIGTERM and the first SIGINT only set `reason`; a second SIGINT raises KeyboardInterrupt at
    once. SIGHUP is ignored: what was begun in a terminal that is gone is ended without it.

    Args:
        max_hours: Hours from now after which the run is to stop; None is no limit.
    """

    def __init__(self, max_hours: float | None = None) -> None:
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._max_hours = max_hours
        self._told: str | None = None
        self._interrupted_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def reason(self) -> str | None:
        """What asked the run to stop, or None to go on."""
        if self._told is None and self._deadline is not None and time.monotonic() >= self._deadline:
            return f"train.max_hours={self._max_hours:g}"
        return self._told

    def ask(self, reason: str) -> None:
        """Say that the run is to be saved and left."""
        self._told = self._told or reason

    def __enter__(self) -> Self:
        # Python lets no other thread listen
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._remember)
            if hasattr(signal, "SIGHUP"):  # Windows has none
                self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted_at is not None and now - self._interrupted_at >= AGAIN_S:
                raise KeyboardInterrupt
            self._interrupted_at = self._interrupted_at or now
        self._told = self._told or signal.Signals(number).name


@contextmanager
def interruptible(folder: Path) -> Iterator[None]:
    """Turn a second Ctrl-C into what to type next to go on with the run in a folder."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            "stopped at once; go on from the last save with: "
            f"{command('train', '--resume', folder)}"
        ) from None
