"""Files that appear whole, and what is removed of those that never did."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from support.forked import SERVER
from vitrail.deploy.export import staged_files
from vitrail.errors import CheckpointError, ConfigError
from vitrail.files import (
    GrowingFile,
    describe_absent,
    is_abandoned,
    is_temporary,
    leftovers,
    refuse_within,
    remove,
    staging,
    temporary_name,
    write_whole,
)
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


@pytest.mark.thorough
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


def test_a_pipe_that_no_process_reads_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.json")
    line = r"pipe\.json: cannot be written \(a pipe that no process reads\).*; choose another$"
    with pytest.raises(CheckpointError, match=line):
        write_whole(pipe, b"1", "choose another")
    line_of_predict = line.replace("choose another", "choose another file with output=")
    with pytest.raises(CheckpointError, match=line_of_predict), open_output(pipe, "json", ["a"], 1):
        pass
    log = GrowingFile(pipe, "choose another")
    log.add("1")
    with pytest.raises(CheckpointError, match=line):
        log.write()
    assert pipe.is_fifo()


def test_a_pipe_gets_all_where_a_process_reads_it(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe.json")
    data, deadline = b"x" * 300_000, time.monotonic() + 30
    with (tmp_path / "got").open("wb") as got:
        reader = subprocess.Popen(["cat", pipe], stdout=got)
    while True:
        try:
            write_whole(pipe, data)
            break
        except CheckpointError:  # cat has not opened it yet
            assert time.monotonic() < deadline
    assert reader.wait(30) == 0
    assert (tmp_path / "got").read_bytes() == data


def test_what_is_no_file_is_said_in_a_clause(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    said = {name: describe_absent(tmp_path / name) for name in ("pipe", "loop", "gone", "file", "file/x", "a\0b", ".")}
    assert said == {
        "pipe": "is a pipe, no regular file",
        "loop": "is a broken link, no regular file",
        "gone": "is missing",
        "file": "",
        "file/x": "is missing",
        "a\0b": "is no path, as it holds a zero byte",
        ".": "",
    }
    assert describe_absent("/dev/null") == "is a device, no regular file"


def test_a_folder_is_compared_by_where_it_leads_even_if_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refuse_within("report", tmp_path / "loop", "answers", tmp_path / "answers")
    with pytest.raises(ConfigError, match=r"^report=\S+loop: lies in answers="):
        refuse_within("report", tmp_path / "loop", "answers", tmp_path)


def test_a_link_is_removed_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "link")
    remove(tmp_path / "gone")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept", "a"]
