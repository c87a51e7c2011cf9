"""A run folder that one process at a time works on: the next one is told who does, wherever that is."""

from __future__ import annotations

import fcntl
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO

from vitrail.errors import TrainingError, command
from vitrail.files import refusal_told

LOCK = ".lock"
"""Stays in last/, as two processes could hold two files of one name."""
LEASE_S = 120.0
"""What a file server may take to notice that a machine is gone."""
LOOK_S = 1.0
BUSY = (BlockingIOError, PermissionError)
"""How the system says that another process holds a lock, on one file system or another."""


@contextmanager
def held(folder: Path, note: Callable[[str], None], lease_s: float = LEASE_S) -> Iterator[None]:
    """Hold a run folder; the system lets go of it when this process ends, however it ends.

    The lock is of the kind that network file systems pass on to other machines, and that loader processes, which may
    outlive this one for some seconds, do not inherit.

    Args:
        folder: Of the run.
        note: Told where one has to wait, or where the file system knows no locks.
        lease_s: How long to wait for a process of another machine, which may be gone.

    Raises:
        TrainingError: Another process works on it.
        CheckpointError: The folder cannot be written.
    """
    path, waited, deadline = folder / "last" / LOCK, False, time.monotonic() + lease_s
    with refusal_told(path, None):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        while not _take(file, folder, note):
            host, told = _holder(file)
            if host == platform.node() or time.monotonic() > deadline:
                raise TrainingError(
                    f"{folder}: {told} works on it; wait for its end or stop it, or begin another run with "
                    f"{command('train', '--fork', folder)}"
                )
            if not waited:
                waited = True
                note(f"{folder}: {told} worked on it; waiting up to {lease_s:.0f} s for its machine to let go")
            time.sleep(LOOK_S)
        yield


def _take(file: IO[str], folder: Path, note: Callable[[str], None]) -> bool:
    """Take a lock and write who has it, unless another process does; without locks there is nothing to take."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BUSY:
        return False
    except OSError as error:
        note(f"{folder}: its file system has no locks ({error.strerror}), so see that no other process works on it")
        return True
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with refusal_told(Path(file.name), None):
        file.seek(0)
        file.truncate()
        file.write(f"{platform.node()}\n{os.getpid()}\n{since}\n")
        file.flush()
    return True


def _holder(file: IO[str]) -> tuple[str, str]:
    """Return the machine of the process that holds a lock, and the process in words."""
    file.seek(0)
    host, pid, since = (*file.read().splitlines(), "", "", "")[:3]
    return host, f"process {pid} on {host}, since {since}," if since else "another process"
