"""What may end a run early: a signal, the hours it was given, or whoever asks for it."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

AGAIN_S = 1.0  # torchrun passes a Ctrl-C on to processes that the terminal has already sent it to


class Stop:
    """Remembers, between two updates, that the run is to be saved and left.

    SIGTERM and the first SIGINT only set `reason`; a second SIGINT raises KeyboardInterrupt at once. SIGHUP is
    ignored: what was begun in a terminal that is gone is ended without it.

    Args:
        max_hours: From now; None is no limit.
    """

    def __init__(self, max_hours: float | None = None) -> None:
        self._deadline = None if max_hours is None else time.monotonic() + 3600 * max_hours
        self._max_hours = max_hours
        self._told: str | None = None
        self._interrupted_at: float | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def reason(self) -> str | None:
        """What said so, or None to go on."""
        if self._told is None and self._deadline is not None and time.monotonic() >= self._deadline:
            return f"train.max_hours={self._max_hours:g}"
        return self._told

    def ask(self, reason: str) -> None:
        """Say that the run is to be saved and left."""
        self._told = self._told or reason

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python lets no other thread listen
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._hear)
            if hasattr(signal, "SIGHUP"):  # Windows has none
                self._previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted_at is not None and now - self._interrupted_at >= AGAIN_S:
                raise KeyboardInterrupt
            self._interrupted_at = self._interrupted_at or now
        self._told = self._told or signal.Signals(number).name
