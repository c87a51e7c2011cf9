"""What a person sees: a live line on a terminal, plain lines in a file."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from rich.cells import cell_len

from vitrail.display import Terminal, fit_live_line

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
        r"warning: a\x1b[31mname\udcff\nand its reason",
        "train 0/8  loss 0.5",
        "a table",
    ]


def test_work_without_an_end_counts_in_a_file(tmp_path: Path) -> None:
    display = Terminal(silent=True, line_every_s=0)
    display.keep(tmp_path / "log.txt")
    display.begin("search", None, 3)
    display.advance(1, latest="0.5")
    display.end()
    assert (tmp_path / "log.txt").read_text() == "search 3  latest 0.5\n"


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


LONG = """
from vitrail.display import Terminal
display = Terminal()
display.begin("train", 375_000, 1_234)
for step in range(8):
    display.advance(0, epoch="12/300", loss="6.9123", top_1="45.2 %", speed="2,381 images/s", waiting_for_images="12%")
    display.advance()
    if step == 3:
        display._progress.refresh()
        display.row({"epoch": 12, "train_loss": 0.5, "images_per_s": 1234.0})
display._progress.refresh()
display.end()
"""


def in_terminal(program: str, columns: int) -> list[str]:
    """Return each thing that a program draws on a terminal of so many columns, without what moves the cursor."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    environment["TERM"] = "xterm-256color"
    with subprocess.Popen([sys.executable, "-c", program], stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = b""
        try:
            while block := os.read(ours, 4096):
                seen += block
        except OSError:  # how Linux says that the other end is closed
            pass
        assert process.wait() == 0
    os.close(ours)
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", seen.decode())
    return [drawn for drawn in re.split(r"[\r\n]+", plain) if drawn.strip()]


def test_a_terminal_gets_a_bar_with_the_numbers_and_the_time_left() -> None:
    text = "".join(in_terminal(PROGRAM, 160))
    assert re.search(
        r"train 8/8 \u2501+ epoch 1/1  loss 0.5  top 1 50.0 %  speed 1,234 images/s  .* elapsed, .* left", text
    )


@pytest.mark.parametrize(
    ("columns", "beside"),
    [
        (40, []),
        (80, ["epoch 12/300", "loss 6.9123"]),
        (120, ["epoch 12/300", "loss 6.9123", "top 1 45.2 %", "speed 2,381 images/s"]),
        (200, ["epoch 12/300", "loss 6.9123", "top 1 45.2 %", "speed 2,381 images/s", "waiting for images 12%"]),
    ],
)
def test_the_live_line_is_one_row_with_what_matters_first_before_and_after_a_row(
    columns: int, beside: list[str]
) -> None:
    drawn = in_terminal(LONG, columns)
    row = next(number for number, text in enumerate(drawn) if text.startswith("epoch  12"))
    for lines in (drawn[:row], drawn[row + 1 :]):
        assert all(cell_len(line) < columns for line in lines), lines
        line = lines[-1]
        assert all(text in line for text in beside)
        assert not beside or ("\u2501" * 10 in line and line.rstrip().endswith(" left"))


def test_a_live_line_without_an_end_counts_and_one_in_a_slit_says_what_it_can() -> None:
    program = LONG.replace("375_000", "None")
    assert any("train 1,242  epoch 12/300  loss 6.9123" in line for line in in_terminal(program, 160))
    assert fit_live_line(["train 1/2", "50%"], ["epoch 1/2", "loss 0.5", "more"], "0:00:01", "0:00:02", 30) == (
        "50%", "epoch 1/2  loss 0.5  0:00:", 0
    )  # fmt: skip


HOSTILE = "a\x1b[31m [bold]b[/bold] [/] :dog: \u202egpj.exe\n\u200bx\u3000\xe9"
SHOWN = r"a\x1b[31m [bold]b[/bold] [/] :dog: \u202egpj.exe\n\u200bx" + "\u3000\xe9"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_a_terminal_would_obey_in_a_name_is_shown(terminal: bool) -> None:
    program = f"""
from vitrail.display import Terminal
from vitrail.cli.tables import show_line, show_table
name = {HOSTILE!r}
display = Terminal()
display.note(name)
display.warn(name)
display.begin(name, 2)
display.advance(1, **{{name: name}})
display._progress.refresh()
display.end()
import sys
sys.stdout = sys.stderr
show_line(name)
show_table(name, ("", name), [(name, "")])
"""
    if terminal:
        text = "\n".join(in_terminal(program, 300))
    else:
        text = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    assert text.count(SHOWN) >= 6 + 2 * terminal
    assert not set(HOSTILE) & set("\x1b\u202e\u200b") & set(text)
