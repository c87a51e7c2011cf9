"""Files that appear whole, and what is removed of those that never did."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from support.forked import SERVER
from vitrail.deploy.export import staged_files
from vitrail.files import is_abandoned, is_temporary, leftovers, remove, staging, temporary_name, write_whole
from vitrail.inference.prediction_file import open_output


def die_in_write_whole(path: Path) -> None:
    def parts():
        yield b"half"
        os.kill(os.getpid(), signal.SIGKILL)

    write_whole(path, parts())


def die_in_export(path: Path) -> None:
    with staged_files(path, {".onnx": [b"all"]}):
        os.kill(os.getpid(), signal.SIGKILL)


def die_in_predict(path: Path) -> None:
    with open_output(path, "csv", ["a"], 1):
        os.kill(os.getpid(), signal.SIGKILL)


def write_again(path: Path) -> None:
    write_whole(path, b"whole")


def export_again(path: Path) -> None:
    with staged_files(path, {".onnx": [b"all"]}) as staged:
        assert staged.read_bytes() == b"all"
        staged.replace(path)


def predict_again(path: Path) -> None:
    with open_output(path, "csv", ["a"], 1):
        pass


WAYS = [(die_in_write_whole, write_again), (die_in_export, export_again), (die_in_predict, predict_again)]


@pytest.mark.parametrize(("die", "again"), WAYS)
def test_what_a_killed_process_left_is_removed_when_the_file_is_written_again(
    tmp_path: Path, die: Callable[[Path], None], again: Callable[[Path], None]
) -> None:
    path = tmp_path / "a[b].onnx"
    for _ in range(2):
        process = SERVER.Process(target=die, args=(path,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert [left.name for left in tmp_path.iterdir()] == [left.name for left in leftovers(path)] != []
    again(path)
    assert list(tmp_path.iterdir()) == [path]


def test_names_say_where_and_by_whom_a_file_was_begun(tmp_path: Path) -> None:
    mine = temporary_name(tmp_path / "x.csv")
    assert staging(tmp_path / "x.csv") == (tmp_path / "x.csv", mine)
    assert is_temporary(mine)
    assert not is_abandoned(mine)  # this process lives
    no_process = mine.with_name(mine.name.replace(str(os.getpid()), "9" * 30))
    elsewhere = mine.with_name(f".x.csv.{'0' * 8}-4194303.tmp")
    for path in (no_process, elsewhere):
        assert is_temporary(path)
        assert not is_abandoned(path)
    for name in (".x.csv.tmp", "x.csv.0123abcd-7.tmp", ".0123abcd-7.tmp", ".x.csv.0123abcd-7.tmpx"):
        assert not is_temporary(tmp_path / name), name


def test_a_link_is_removed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "link")
    remove(tmp_path / "gone")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "a"]
