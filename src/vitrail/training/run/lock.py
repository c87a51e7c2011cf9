"""Lock a run folder: one process at a time works on it, and others are told which one, on whatever machine."""

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
"""Name of the lock file in last/; it is never removed, or two processes could hold two files of one
name."""
LEASE_S = 120.0
"""Seconds that a file server may take to notice that a machine is gone."""
LOOK_S = 1.0
"""Seconds between two tries to take the lock."""
BUSY = (BlockingIOError, PermissionError)
"""Errors by which file systems say that another process holds a lock."""


@contextmanager
def held(folder: Path, note: Callable[[str], None], lease_s: float = LEASE_S) -> Iterator[None]:
    """Lock a run folder; the system unlocks it when this process ends, however it ends.

    The lock is of the kind that network file systems pass on to other machines, and that loader
    processes, which may outlive this one for some seconds, do not inherit.

    Args:
        folder: Folder of the run.
        note: Told where this process has to wait, or where the file system has no locks.
        lease_s: Seconds to wait for a process of another machine, which may be gone.

    Raises:
        TrainingError: Another process works on it.
        CheckpointError: The folder cannot be written.
    """
    path = folder / "last" / LOCK
    deadline = time.monotonic() + lease_s
    is_waiting = False
    with refusal_told(path, None):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    with file:
        while not _take(file, folder, note):
            host, holder = _read_holder(file)
            if host == platform.node() or time.monotonic() > deadline:
                raise TrainingError(
                    f"{folder}: {holder} works on it; wait for its end or stop it, or begin "
                    f"another run with {command('train', '--fork', folder)}"
                )
            if not is_waiting:
                is_waiting = True
                note(
                    f"{folder}: {holder} worked on it; waiting up to {lease_s:.0f} s for its "
                    "machine to let go"
                )
            time.sleep(LOOK_S)
        yield


def _take(file: IO[str], folder: Path, note: Callable[[str], None]) -> bool:
    """Take a lock and write who has it, unless another process does; where there are no locks, go on without."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BUSY:
        return False
    except OSError as error:
        note(
            f"{folder}: its file system has no locks ({error.strerror}), so see that no other "
            "process works on it"
        )
        return True
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    with refusal_told(Path(file.name), None):
        file.seek(0)
        file.truncate()
        file.write(f"{platform.node()}\n{os.getpid()}\n{since}\n")
        file.flush()
    return True


def _read_holder(file: IO[str]) -> tuple[str, str]:
    """Return the machine of the process that holds a lock, and the process in words."""
    file.seek(0)
    lines = file.read().splitlines()
    host = lines[0] if lines else ""
    if len(lines) < 3:  # it has the lock, and has not written who it is yet
        return host, "another process"
    _, pid, since = lines[:3]
    return host, f"process {pid} on {host}, since {since},"
