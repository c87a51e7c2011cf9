"""A run folder that one process at a time works on."""

import os
import platform
import signal
import time
from pathlib import Path

import pytest

from support.forked import SERVER
from vitrail.errors import CheckpointError, TrainingError
from vitrail.training.run.lock import LOCK, held


def hold(folder: Path, child: bool) -> None:
    """Hold a folder until killed, with a child that lives on, as loader processes do for a while."""
    with held(folder, print):
        if child and os.fork() == 0:
            (folder / "child").write_text(str(os.getpid()))
        (folder / "held").touch()
        time.sleep(60)


def holder(folder: Path, *, child: bool = False) -> "SERVER.Process":  # pyright: ignore[reportInvalidTypeForm]
    process = SERVER.Process(target=hold, args=(folder, child), daemon=True)
    process.start()
    while not (folder / "held").exists() or (child and not (folder / "child").exists()):
        assert process.is_alive()
        time.sleep(0.01)
    return process


def test_a_second_process_is_told_who_works_on_it(tmp_path: Path) -> None:
    process = holder(tmp_path)
    what = (
        rf"^\S+: process {process.pid} on {platform.node()}, since 20\d\d-\S+ \S+, works on it; wait for its end or "
        rf"stop it, or begin another run with vitrail train --fork {tmp_path}$"
    )
    with pytest.raises(TrainingError, match=what), held(tmp_path, pytest.fail):
        pass
    process.kill()
    process.join()


def test_a_killed_process_holds_nothing_though_its_children_live(tmp_path: Path) -> None:
    process = holder(tmp_path, child=True)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    child = int((tmp_path / "child").read_text())
    try:
        os.kill(child, 0)
        with held(tmp_path, pytest.fail):
            assert (tmp_path / "last" / LOCK).read_text().splitlines()[1] == str(os.getpid())
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_process_of_another_machine_is_waited_for(tmp_path: Path) -> None:
    process = holder(tmp_path)
    (tmp_path / "last" / LOCK).write_text("node7\n12\n2026-11-27 09:00:00+00:00\n")
    notes: list[str] = []
    what = r"process 12 on node7, since 2026-11-27 09:00:00\+00:00, works on it; wait"
    with pytest.raises(TrainingError, match=what), held(tmp_path, notes.append, lease_s=0.1):
        pass
    assert notes == [
        f"{tmp_path}: process 12 on node7, since 2026-11-27 09:00:00+00:00, worked on it; waiting up to 0 s for its "
        "machine to let go"
    ]

    def end(note: str) -> None:
        process.kill()
        process.join()

    with held(tmp_path, end):
        pass


def test_a_folder_that_may_not_be_written_is_named(unprivileged: Path) -> None:
    what = r"\.lock: cannot be written \(Permission denied\)"
    with pytest.raises(CheckpointError, match=what), held(unprivileged, pytest.fail):
        pass


def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*rest: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.lockf", refuse)  # there is no such file system here
    notes: list[str] = []
    with held(tmp_path, notes.append):
        pass
    assert notes == [
        f"{tmp_path}: its file system has no locks (Operation not supported), so see that no other process works on it"
    ]
