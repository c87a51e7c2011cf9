"""SIGTERM and SIGHUP from the first moment on: the program tidies up, says so in one line and ends."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

from vitrail.distributed.launch import is_main_process
from vitrail.errors import Ended, escape_text

GRACE_S = 10
"""Until the program ends without having tidied up, as Python drops what a signal raises within a
destructor."""


def listen(command: str) -> None:
    """Raise Ended in the first thread where the system tells this program to end, unless its parent has that ignored.

    A training ignores SIGHUP, as it does once it has begun: the terminal that is gone is not
    needed.

    Args:
        command: The command of this process.
    """
    process = os.getpid()

    def hear(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:  # one that was forked, which has nothing to tidy up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        for name in ("SIGTERM", "SIGHUP"):  # `timeout` and others send it twice
            signal.signal(getattr(signal, name), signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
        signal.alarm(GRACE_S)
        raise Ended(number)

    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:
            is_ignored = command == "train" and name == "SIGHUP"
            signal.signal(number, signal.SIG_IGN if is_ignored else hear)


def tell_interrupted(error: BaseException, command: str) -> tuple[int, str]:
    """Say in one line what stopped a command at once, and return the exit status for it and the line.

    Args:
        error: What was raised by Ctrl-C or by a signal.
        command: The command that was stopped.
    """
    status, line = 130, escape_text(error) or "stopped"
    ended = next((one for one in (error, error.__cause__) if isinstance(one, Ended)), None)
    if ended is not None:
        status = ended.status
        if command == "train":  # it hears signals itself as long as there is something to save
            status, line = (
                os.EX_TEMPFAIL,
                f"{line} before the first update; start the same command again",
            )
    if is_main_process():
        sys.stderr.write(f"{line}\n")
    return status, line
