"""Run `vitrail` as a child that does not outlive its parent: `python -m vitrail.tuning.child PARENT train ...`."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PARENT_DEATH_SIGNAL = 1
"""Option PR_SET_PDEATHSIG of Linux's prctl."""


def end_with_parent(parent: int) -> None:
    """Let the system send SIGTERM to this process where its parent is killed, so that it saves and leaves.

    Args:
        parent: The process that started this one, which may have ended already.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, int(signal.SIGTERM))
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    del sys.argv[1]
    runpy.run_module("vitrail", run_name="__main__", alter_sys=True)
