"""A folder that is there whole or not at all."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import vitrail.whole_folder
from support.forked import SERVER
from vitrail.errors import CheckpointError
from vitrail.whole_folder import WholeFolder, numbered

OWN = ("a", "b")


def make(folder: Path, content: bytes = b"1", *, never_replace: bool = False) -> tuple[Path, bool]:
    whole = WholeFolder(folder, OWN, "choose another", never_replace=never_replace)
    with whole.staged():
        return whole.publish({name: content for name in OWN})


def test_names_are_numbered_from_two() -> None:
    assert [path.name for path in islice(numbered(Path("x")), 3)] == ["x", "x-2", "x-3"]


def test_an_earlier_one_is_replaced_and_that_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "x"
    assert make(folder) == (folder, False)
    assert make(folder, b"2") == (folder, True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"a": b"2", "b": b"2"}
    assert list(folder.parent.iterdir()) == [folder]


def test_a_free_number_is_taken_where_none_may_be_replaced(tmp_path: Path) -> None:
    (tmp_path / "x-2").write_text("a file")
    made = [make(tmp_path / "x", never_replace=True)[0].name for _ in range(3)]
    assert made == ["x", "x-3", "x-4"]


def test_other_peoples_files_are_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("")
    with pytest.raises(CheckpointError, match=r"x: holds other files, such as thesis.tex, and is not replaced; choose"):
        make(tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["thesis.tex"]


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    assert make(tmp_path / "x") == (tmp_path / "x", False)
    (tmp_path / "y").write_text("")
    with pytest.raises(CheckpointError, match=r"y: is a file, no folder; choose another"):
        make(tmp_path / "y")


def test_what_is_no_folder_is_called_by_its_kind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("nowhere")
    for name, kind in (("pipe", "a pipe"), ("link", "a broken link")):
        folder = WholeFolder(tmp_path / name, ["a"], "free space or choose another")
        refused = pytest.raises(CheckpointError, match=rf"{name}: is {kind}, no folder; choose another$")
        with refused, folder.staged():
            pass


def test_a_place_that_cannot_be_written_is_refused_before_the_work(unprivileged: Path) -> None:
    worked = False
    whole = WholeFolder(unprivileged / "x", OWN, "choose another", never_replace=True)
    with (
        pytest.raises(CheckpointError, match=r"x: cannot be written \(Permission denied\); choose another"),
        whole.staged(),
    ):
        worked = True
    assert not worked


def test_a_full_disk_leaves_the_earlier_one_and_nothing_else(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    make(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"x: cannot be written \(File too large\); choose"), largest_file(1000):
        make(tmp_path / "x", bytes(5000))
    assert (tmp_path / "x" / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_work_that_fails_leaves_nothing(tmp_path: Path) -> None:
    whole = WholeFolder(tmp_path / "x", OWN, "choose another")
    with pytest.raises(ZeroDivisionError), whole.staged():
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_one_is_there_at_every_moment(tmp_path: Path) -> None:
    make(tmp_path / "x")
    missed, over = [], threading.Event()

    def look() -> None:
        while not over.is_set():
            if not (tmp_path / "x").exists():
                missed.append(1)

    watcher = threading.Thread(target=look)
    watcher.start()
    for number in range(200):
        make(tmp_path / "x", str(number).encode())
    over.set()
    watcher.join()
    assert not missed


@pytest.mark.parametrize("swaps", [True, pytest.param(False, marks=pytest.mark.thorough)])
def test_a_kill_at_any_file_operation_leaves_the_earlier_or_the_new_one(tmp_path: Path, swaps: bool) -> None:
    operation = 0
    while True:
        folder = tmp_path / str(operation) / "x"
        make(folder)
        writer = SERVER.Process(target=_make_until, args=(folder, operation, swaps))
        writer.start()
        writer.join()
        if swaps:  # elsewhere the next start puts it back
            assert {path.read_bytes() for path in folder.iterdir()} in ({b"1"}, {b"2"})
        vitrail.whole_folder.recover(folder)
        assert {path.read_bytes() for path in folder.iterdir()} in ({b"1"}, {b"2"})
        assert list(folder.parent.iterdir()) == [folder]
        assert make(folder, b"3") == (folder, True)
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL
        operation += 1
    assert operation > 5


def _make_until(folder: Path, operation: int, swaps: bool) -> None:
    """Replace a folder, and be killed before a file operation."""
    left = operation

    def count(event: str, rest: tuple[Any, ...]) -> None:
        nonlocal left
        names = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "ctypes.dlopen")
        if event in names or (event == "open" and "w" in str(rest[1])):
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

    if not swaps:  # as on NFS
        vitrail.whole_folder.swap = lambda *rest: False
    sys.addaudithook(count)
    make(folder, b"2")


def test_what_another_process_is_writing_stays(tmp_path: Path) -> None:
    make(tmp_path / "x")
    here = vitrail.whole_folder.temporary_name(tmp_path / "x").name
    strange = [".x.01234567-1.tmp", here.replace(str(os.getpid()), "1"), ".x.tmp"]
    for name in strange:
        (tmp_path / name).mkdir()
    make(tmp_path / "x")
    assert {path.name for path in tmp_path.iterdir()} == {"x", *strange}


def test_a_rename_that_fails_puts_the_earlier_one_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "x")
    monkeypatch.setattr("vitrail.whole_folder.swap", lambda *rest: False)
    whole = WholeFolder(tmp_path / "x", OWN, "choose another")
    with whole.staged() as staging:
        staging.rmdir()
        with pytest.raises(CheckpointError, match="No such file"):
            whole.publish({})
    assert (tmp_path / "x" / "a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
