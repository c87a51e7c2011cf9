"""Signals in the first seconds of a command, which are sent to real processes while they import torch."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def signalled(folder: Path, number: int, *words: str, before: str = "") -> tuple[int, str]:
    """Start a command, send it a signal twice as it imports torch, and return its status and what it said."""
    line = f'{before}exec "$0" -m vitrail "$@"'
    program = ["bash", "-c", line, sys.executable, *words]
    with subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while "libtorch_cpu" not in Path(f"/proc/{process.pid}/maps").read_text():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.002)
        for _ in range(2):  # as `timeout` does
            os.kill(process.pid, number)
        out, err = process.communicate(timeout=240)
    assert out == ""
    return process.returncode, err


@pytest.mark.parametrize(
    ("words", "number", "status", "said"),
    [
        (["train"], signal.SIGTERM, 75, "stopped by SIGTERM before the first update; start the same command again\n"),
        (["evaluate", "none.pth"], signal.SIGTERM, 143, "stopped by SIGTERM\n"),
        (["predict", "none.pth", "a.png"], signal.SIGHUP, 129, "stopped by SIGHUP\n"),
        (["predict", "none.pth", "a.png"], signal.SIGINT, 130, "stopped\n"),
    ],
)
def test_a_signal_in_the_first_seconds_is_told_in_one_line(
    tmp_path: Path, words: list[str], number: signal.Signals, status: int, said: str
) -> None:
    assert signalled(tmp_path, number, *words) == (status, said)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_a_terminal_that_goes_away_ends_neither_a_training_nor_what_nohup_started(tmp_path: Path) -> None:
    for words, before in ((["train", "model.weights=none.pth"], ""), (["evaluate", "none.pth"], "trap '' HUP; ")):
        status, said = signalled(tmp_path, signal.SIGHUP, *words, before=before)
        assert (status, "error: none.pth: is missing" in said) == (2, True), said
