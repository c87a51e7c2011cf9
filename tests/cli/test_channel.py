"""Full disks, readers that went away, terminals that hung up: training goes on, other commands say so in one line."""

import fcntl
import os
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from support.forked import python
from support.runs import assert_same_run, command, rows, run

FULL = "error: standard output: cannot be written (No space left on device), so not all results were shown; files were "


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a command of vitrail by a shell, which has to be right."""
    line = f"{sys.executable} -m vitrail {line}"
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False, timeout=60)


def test_results_that_a_full_disk_does_not_take_are_an_error_in_one_line() -> None:
    for words in ("config digits", "config --markdown", "--help"):
        done = shell(f"{words} > /dev/full")
        assert (done.returncode, done.stderr) == (2, f"{FULL}written whole or not at all\n"), words


def test_results_whose_reader_is_gone_are_an_error_in_one_line() -> None:
    done = shell("config --markdown | true; echo ${PIPESTATUS[0]}")
    assert done.stdout == "2\n"
    assert done.stderr == f"{FULL.replace('No space left on device', 'Broken pipe')}written whole or not at all\n"


def test_messages_that_nobody_can_read_change_nothing() -> None:
    wrong, right = "config digitz", "config digits"
    assert shell(f"{wrong} 2>/dev/full").returncode == 2
    assert shell(f"{wrong} 2> >(true)").returncode == 2
    whole = shell(right).stdout
    for closed in ("2>&-", "<&- 2>&-"):
        done = shell(f"{right} {closed}")
        assert (done.returncode, done.stdout) == (0, whole)
    assert shell(f"{right} >&- 2>&-").returncode == 0


def test_what_a_terminal_has_no_letters_for_is_shown_by_its_number() -> None:
    done = shell("config /nowhere/\N{GREEK SMALL LETTER ALPHA}.yaml")
    assert "/nowhere/\N{GREEK SMALL LETTER ALPHA}.yaml" in done.stderr
    program = (
        "from vitrail.cli.channel import open_channels; open_channels(); import sys; print('\\u03b1 \\udcff');"
        "print(sys.stdout.encoding, file=sys.stderr)"
    )
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, env=ascii_only)
    assert (done.stdout, done.stderr) == (b"\\u03b1 \\udcff\n", b"ascii\n")


def test_a_reader_that_takes_its_time_gets_all() -> None:
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    with subprocess.Popen([sys.executable, "-m", "vitrail", "config", "--markdown"], stdout=theirs) as process:
        os.close(theirs)
        time.sleep(1)
        seen = b""
        while block := os.read(ours, 100):
            seen += block
        assert process.wait() == 0
    os.close(ours)
    assert seen.decode() == shell("config --markdown").stdout


@pytest.mark.thorough
def test_an_answer_that_cannot_be_shown_leaves_no_half_written_file(image_folder: Path, tiny_checkpoint: Path) -> None:
    output = tiny_checkpoint.with_name("answers.csv")
    output.write_text("of before\n")
    words = ("-m", "vitrail", "predict", tiny_checkpoint, image_folder, "--output", output)
    done = python(*words, stdout="/dev/full", cwd=image_folder)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"{FULL}written whole or not at all")
    assert len(output.read_text().splitlines()) in (1, 37)  # all of it, where only the end was not shown
    assert sorted(path.name for path in output.parent.iterdir()) == ["answers.csv", "images", "tiny.safetensors"]
    assert python(*words, stderr="/dev/full", cwd=image_folder).returncode == 0
    assert len(output.read_text().splitlines()) == 37


@pytest.mark.thorough
def test_an_evaluation_that_cannot_be_shown_has_written_its_files(image_folder: Path, tiny_checkpoint: Path) -> None:
    numbers, log = tiny_checkpoint.with_name("numbers.json"), tiny_checkpoint.with_name("acc.log")
    words = ("evaluate", tiny_checkpoint, f"data.root={image_folder}", "--json", numbers, "--acc-log", log)
    done = python("-m", "vitrail", *words, stdout="/dev/full", cwd=image_folder)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, f"{FULL}written whole or not at all")
    assert numbers.exists()
    assert log.exists()
    assert (image_folder / "evaluations" / "tiny" / "report.html").exists()


@pytest.mark.thorough
def test_a_training_whose_log_is_on_a_full_disk_goes_on_to_its_end(image_folder: Path) -> None:
    whole = run(image_folder, "output.name=whole").folder
    done = python(*command(image_folder, "output.name=unseen"), stdout="/dev/full", stderr="/dev/full")
    assert done.returncode == 0
    unseen = whole.with_name("unseen")
    assert_same_run(whole, unseen)
    log = (unseen / "log.txt").read_text()
    assert "epoch   4  loss " in log
    assert "next: vitrail evaluate" in log


@pytest.mark.thorough
def test_a_training_goes_on_where_its_reader_is_gone(image_folder: Path) -> None:
    whole = run(image_folder, "train.epochs=2", "output.name=whole").folder
    words = command(image_folder, "train.epochs=2", "data.workers=2", "output.name=unseen")
    with subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        assert process.stdout is not None
        process.stdout.close()  # as `| head` and a killed `tee` do
        assert process.wait(100) == 0
    assert_same_run(whole, whole.with_name("unseen"))


@pytest.mark.thorough
def test_a_training_goes_on_where_its_terminal_is_gone(image_folder: Path) -> None:
    whole = run(image_folder, "train.epochs=9", "output.name=whole").folder
    words = command(image_folder, "train.epochs=9", "data.workers=2", "output.name=unseen")
    ours, theirs = os.openpty()

    def take_terminal() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with subprocess.Popen(
        [sys.executable, *map(str, words)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=take_terminal,
    ) as process:
        os.close(theirs)
        unseen = whole.with_name("unseen")
        while not (unseen / "metrics.jsonl").exists() or not rows(unseen):
            assert process.poll() is None
            os.read(ours, 4096)
        os.close(ours)  # which sends SIGHUP to the processes of the session, and lets nothing be written
        assert process.wait(100) == 0
    assert_same_run(whole, unseen)
