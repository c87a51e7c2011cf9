"""What a person sees: a live line on a terminal, plain lines in a file."""

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from vitrail.display import Terminal

LargestFile = Callable[[int], AbstractContextManager[None]]
PROGRAM = """
from vitrail.display import Terminal
display = Terminal()
display.note("a [note] of 3")
display.begin("train", 8)
for step in range(8):
    display.advance(0, epoch="1/1", loss="0.5", top_1="50.0 %", speed="1,234 images/s")
    display.advance()
display.row({"epoch": 1, "train_loss": 0.5, "val_loss": 0.25, "val_top1": 75.0, "images_per_s": 1234.0,
             "data_s": 0.25, "forward_backward_s": 9.0, "optimizer_s": 1.0, "eval_s": 2.0, "save_s": 0.0})
display.row({"epoch": 2, "train_loss": 0.5, "images_per_s": 1234.0})
display.end()
display.warn("look [here]")
"""


def test_a_file_gets_plain_lines_and_standard_output_stays_clean() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "a [note] of 3",
        "epoch   1  loss 0.5000  val loss 0.2500  top-1  75.00 %  1,234 images/s  seconds: waiting for images 0.2, "
        "forward and backward 9.0, optimizer 1.0, evaluation 2.0",
        "epoch   2  loss 0.5000  1,234 images/s",
        "warning: look [here]",
    ]


def test_a_long_epoch_shows_a_line_a_minute_in_a_file() -> None:
    program = PROGRAM.replace("display = Terminal()", "display = Terminal(line_every_s=0)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "train 1/8  epoch 1/1  loss 0.5  top 1 50.0 %  speed 1,234 images/s" in done.stderr.splitlines()


def test_a_file_keeps_what_was_shown_before_and_after_as_plain_text(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    log.write_text("of the run before\n")
    display = Terminal(silent=True, line_every_s=0)
    display.note("a [note] of 3")
    display.keep(log)
    display.warn("a\x1b[31mname\udcff\nand its reason")
    display.begin("train", 8)
    display.advance(1, loss="0.5")
    display.end()
    display.record("a table\n")
    assert log.read_text().splitlines() == [
        "of the run before",
        "a [note] of 3",
        r"warning: a\x1b[31mname\udcff",
        "and its reason",
        "train 0/8  loss 0.5",
        "a table",
    ]


def test_a_file_that_cannot_be_written_is_told_once_and_made_up_for(
    tmp_path: Path, largest_file: LargestFile, capsys: pytest.CaptureFixture[str]
) -> None:
    display = Terminal()
    display.keep(tmp_path / "log.txt")
    with largest_file(10):
        for text in ("the first of them", "the second"):
            display.note(text)
    display.note("the third")
    assert (tmp_path / "log.txt").read_text().splitlines() == ["the first of them", "the second", "the third"]
    assert capsys.readouterr().err.count("log.txt: cannot be written (File too large); free space") == 1


def test_a_terminal_gets_a_bar_with_the_numbers_and_the_time_left() -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "160"}
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        try:
            while block := os.read(ours, 4096):
                seen += block
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.wait() == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    assert "train" in text
    assert "8/8" in text
    assert "epoch 1/1  loss 0.5  top 1 50.0 %  speed 1,234 images/s" in text
    assert "left" in text
