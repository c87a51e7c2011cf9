"""A folder that is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path

import pytest

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
    with pytest.raises(CheckpointError, match=r"y: cannot be written \(Not a directory\); choose another"):
        make(tmp_path / "y")


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
