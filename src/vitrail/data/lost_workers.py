"""Loader workers that are killed: notice it without corrupting an update, and say what ended them and what to do."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from weakref import WeakSet

from vitrail.errors import DataError, LostWorker

DEATH = "DataLoader worker (pid"
"""How torch's error of a dead worker begins."""
TOLD = re.compile(
    re.escape(DEATH) + r" \d+\) "
    r"(?:is killed by signal: (?P<signal>[^.]+)|exited unexpectedly with exit code (?P<code>\d+))"
)
"""How it says which worker ended, and by what."""
ENDING_S = 1.0
"""Seconds that a worker is given to end, where its connections are closed already."""
_iterators: WeakSet[Any] = WeakSet()
"""Iterators of the loaders that have workers."""
_waiting = False
"""Whether this process is in a loader."""


def until_lost(start: Callable[[], Iterator[Any]], workers: int) -> Iterator[Any]:
    """Yield the batches of a DataLoader, until one of its workers, or of another loader's, is lost.

    Args:
        start: The loader's `__iter__`, which waits for its workers where they are there already.
        workers: Number of its workers.

    Raises:
        LostWorker: A worker was killed by the system, or ran out of memory.
        DataError: A worker ended in another way, in which the next one will end too.
    """
    batches = None
    while True:
        try:
            with _wait():
                if batches is None:
                    batches = start()
                    if workers:
                        _iterators.add(batches)
                        _tell_of_deaths_while_waiting()
                batch = next(batches)
        except StopIteration:
            return
        # torch's own, with the traceback of whatever it interrupted, and those of a connection
        # whose other end died
        except (RuntimeError, MemoryError, OSError, EOFError) as error:
            patience_s = ENDING_S if isinstance(error, OSError | EOFError) else 0.0
            status = _first_status(patience_s) or _status_told_by(error)
            ran_out_of_memory = workers > 0 and isinstance(error, MemoryError)
            if not status and not ran_out_of_memory:
                raise
            lost = _explain(status or -signal.SIGKILL, workers)
            _iterators.clear()  # a traceback may hold them yet
        else:
            yield batch
            continue
        raise lost


def _first_status(patience_s: float) -> int:
    """Return the exit status of a worker that did not end well, after so many seconds at most; 0 for none."""
    until = time.monotonic() + patience_s
    while True:
        for iterator in _iterators:
            for worker in iterator._workers:
                if worker.exitcode:
                    return worker.exitcode
        if time.monotonic() >= until:
            return 0
        time.sleep(0.01)


def _status_told_by(error: BaseException) -> int:
    """Return the exit status of a worker that torch's error says; 0 where it says none.

    It is all that is known of one that was lost while others were still being started.
    """
    told = TOLD.match(str(error))
    if told is None:
        return 0
    if told["code"]:
        return int(told["code"])
    for number in signal.valid_signals():
        if signal.strsignal(number) == told["signal"]:
            return -number
    return 0


def _explain(status: int, workers: int) -> LostWorker | DataError:
    """Return an error that says what the exit status of a worker means, and what to do."""
    end = signal.Signals(-status).name if status < 0 else f"status {status}"
    if status in (-signal.SIGKILL, -signal.SIGTERM):
        return LostWorker(
            f"{end} of a loader worker, most often because memory ran out (fewer data.workers than "
            f"{workers} take less)"
        )
    if status == -signal.SIGBUS:
        return DataError(
            f"a loader worker ended with {end}, as /dev/shm is full; make it larger (docker run "
            f"--shm-size), or set fewer than {workers} data.workers"
        )
    return DataError(
        f"a loader worker ended with {end}, as by an image that its decoder falls over; "
        "data.workers=0 reads in the process itself, and `vitrail check-data` looks at every image"
    )


@contextmanager
def _wait() -> Iterator[None]:
    """Mark the time in which this process waits for a loader."""
    global _waiting
    _waiting = True
    try:
        yield
    finally:
        _waiting = False


def _tell_of_deaths_while_waiting() -> None:
    """Let torch raise for a dead worker only where a loader is waited for, not in the midst of an update or a save.

    Elsewhere nothing is lost by not raising: who waits for a worker that is dead looks for it.
    """
    theirs = signal.getsignal(signal.SIGCHLD)
    # another thread than the first has none
    if not callable(theirs) or getattr(theirs, "waits", False):
        return

    def hear(number: int, frame: FrameType | None) -> None:
        if _waiting:
            theirs(number, frame)

    hear.waits = True  # pyright: ignore[reportFunctionMemberAccess]
    signal.signal(signal.SIGCHLD, hear)

    # where the signal comes in a callback of a weak reference, Python prints the error and drops it
    show = sys.unraisablehook

    def show_others(dropped: sys.UnraisableHookArgs) -> None:
        if not str(dropped.exc_value).startswith(DEATH):
            show(dropped)

    sys.unraisablehook = show_others
