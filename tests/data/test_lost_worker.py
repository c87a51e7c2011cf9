"""Loader workers that the system kills: said in one line, saved, and a status that a scheduler starts again on."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from support.forked import python
from support.runs import EVERYTHING, Notebook, assert_same_run, command, run, torchrun
from vitrail.data import lost_workers
from vitrail.data.loader import begin_worker
from vitrail.data.lost_workers import until_lost
from vitrail.errors import DataError, LostWorker, Stopped

CAUSE = "SIGKILL of a loader worker, most often because memory ran out (fewer data.workers than 2 take less)"


class Killer(Notebook):
    """A display that kills a loader worker of this process when some updates are made."""

    def __init__(self, update: int) -> None:
        super().__init__()
        self.update, self.made = update, 0

    def advance(self, steps: int = 1, **values: str) -> None:
        self.made += steps
        if steps and self.made == self.update:
            kill_one(os.getpid())


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """Return the processes that a process has forked and that are still alive."""
    workers = []
    with suppress(psutil.NoSuchProcess, ProcessLookupError):
        for child in process.children():
            with suppress(psutil.NoSuchProcess, ProcessLookupError):  # one of an earlier epoch, which has just ended
                if child.cmdline() == process.cmdline():
                    workers.append(child)
    return workers


def kill_one(process: int) -> None:
    """Kill the last worker of a process, and wait until it is dead."""
    worker = workers_of(psutil.Process(process))[-1]
    worker.kill()
    while worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)


@pytest.mark.thorough
@pytest.mark.parametrize("update", [1, 3, 7])
def test_a_run_that_loses_a_worker_is_saved_and_goes_on_to_the_last_bit(image_folder: Path, update: int) -> None:
    settings = (*EVERYTHING, "train.epochs=3", "data.workers=2")
    whole = run(image_folder, *settings, "output.name=whole").folder
    with pytest.raises(Stopped) as told:
        run(image_folder, *settings, "output.name=lost", display=Killer(update))
    found = str(told.value)
    assert found.startswith(f"stopped by {CAUSE} after update ")
    assert " of 9, and saved; go on with: vitrail train --resume " in found
    lost = whole.with_name("lost")
    run(image_folder, *settings, "output.name=lost", "data.workers=1", resume=lost)
    assert_same_run(lost, whole)


@pytest.mark.thorough
def test_a_run_that_loses_a_worker_in_an_evaluation_is_saved_and_goes_on(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.epochs=2", "data.workers=2", "train.batch_size=4")
    whole = run(image_folder, *settings, "output.name=whole").folder
    with monkeypatch.context() as patch:
        patch.setattr("vitrail.distributed.watchdog.Watchdog.stir", lambda self: kill_one(os.getpid()))
        with pytest.raises(
            Stopped, match=r"^stopped by SIGKILL of a loader worker, .* after update 6 of 12, and saved"
        ):
            run(image_folder, *settings, "output.name=lost")
    lost = whole.with_name("lost")
    run(image_folder, *settings, "output.name=lost", resume=lost)
    assert_same_run(lost, whole)


def lose_a_worker(words: Sequence[object], folder: Path, rank: int | None = None) -> tuple[int, str]:
    """Start a program, kill a worker of it as soon as there are two, and return its status and what it said."""
    with subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        program = psutil.Process(process.pid)
        while process.poll() is None:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                started = program.children() if rank is not None else [program]
                masters = [one for one in started if rank is None or one.environ().get("RANK") == str(rank)]
                if len(found := [worker for master in masters for worker in workers_of(master)]) > 1:
                    found[0].kill()
                    break
            time.sleep(0.01)
        said = process.communicate(timeout=100)[1]
        return process.returncode, said


def write_images(root: Path, count: int) -> Path:
    """Write images that take a while."""
    generator = np.random.default_rng(0)
    for name in ("blue", "green", "red"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 256, (300, 400, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{name}_{number}.png", compress_level=0)
    return root


@pytest.mark.thorough
def test_the_command_says_in_one_line_what_a_killed_worker_means(image_folder: Path) -> None:
    words = command(image_folder, "data.workers=2", "train.epochs=500", "output.name=lost")
    status, said = lose_a_worker(words, image_folder)
    assert status == os.EX_TEMPFAIL
    assert said.splitlines()[-1].startswith(f"stopped by {CAUSE} after update ")
    assert "Traceback" not in said
    assert list((image_folder.parent / "runs" / "lost" / "last").glob("update-*.pt"))


@pytest.mark.thorough
def test_of_several_processes_all_save_where_one_loses_a_worker(image_folder: Path) -> None:
    words = command(image_folder, "data.workers=2", "train.epochs=500", "output.name=lost")
    _, said = lose_a_worker(torchrun(2, *words), image_folder, rank=1)
    assert f"stopped by {CAUSE} in process 1 after update " in said, said
    assert 'vitrail/training/train.py", line' not in said  # torchrun adds a traceback of its own
    assert list((image_folder.parent / "runs" / "lost" / "last").glob("update-*.pt"))


@pytest.mark.thorough
@pytest.mark.parametrize("command", ["evaluate", "check-data"])
def test_what_a_killed_worker_means_is_said_by(command: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    words = ["-m", "vitrail", command, f"data.root={write_images(tmp_path / 'images', 400)}", "data.workers=2"]
    if command == "evaluate":
        words[3:3] = [str(tiny_checkpoint), "evaluate.split=all", "evaluate.batch_size=2", "data.check=false"]
    status, said = lose_a_worker(words, tmp_path)
    assert said.splitlines()[-1] == f"error: ended by {CAUSE}; start it again"
    assert status == os.EX_TEMPFAIL
    assert "Traceback" not in said


def die(number: signal.Signals) -> Iterator[Any]:
    """Yield a batch, then what comes when a worker has ended by a signal."""

    class Numbers(torch.utils.data.Dataset[int]):
        def __getitem__(self, index: int) -> int:
            if index == 4:
                os.kill(os.getpid(), number)
            return index

        def __len__(self) -> int:
            return 8

    loader = DataLoader(Numbers(), num_workers=2, worker_init_fn=begin_worker, generator=torch.Generator())
    return until_lost(loader.__iter__, loader.num_workers)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (signal.SIGKILL, LostWorker, f"ended by {CAUSE}; start it again"),
        (signal.SIGSEGV, DataError, "a loader worker ended with SIGSEGV, as by an image that its decoder falls over"),
    ],
)
def test_a_worker_that_ends_while_others_are_started_is_told_of_too(
    number: signal.Signals, kind: type[Exception], said: str
) -> None:
    loader = DataLoader(range(8), num_workers=2, worker_init_fn=begin_worker, generator=torch.Generator())

    def start() -> Iterator[Any]:
        batches = iter(loader)
        os.kill(batches._workers[0].pid, number)
        time.sleep(20)  # where torch's error comes
        return batches

    with pytest.raises(kind, match=f"^{re.escape(said)}"):
        list(until_lost(start, loader.num_workers))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (signal.SIGKILL, LostWorker, f"^ended by {CAUSE}; start it again$".replace("(", r"\(").replace(")", r"\)")),
        (
            signal.SIGSEGV,
            DataError,
            "^a loader worker ended with SIGSEGV, as by an image that its decoder",
        ),
        (signal.SIGBUS, DataError, "^a loader worker ended with SIGBUS, as /dev/shm is full; make it larger"),
    ],
)
def test_each_end_of_a_worker_is_told_apart(number: signal.Signals, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        for _ in die(number):
            pass
    assert not [one for one in multiprocessing.active_children() if one.exitcode is None and one.name == "worker"]


@pytest.mark.thorough
def test_a_worker_outlives_the_terminal_and_is_ended_by_its_process() -> None:
    assert [int(batch) for batch in die(signal.SIGHUP)] == list(range(8))


@pytest.mark.parametrize(
    ("error", "is_shown"), [(EOFError(), False), (ConnectionResetError(), False), (KeyError("x"), True)]
)
def test_a_worker_says_nothing_of_a_process_that_is_gone(error: Exception, is_shown: bool, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import threading\n"
        "from vitrail.data.loader import begin_worker\n"
        "begin_worker(0)\n"
        "import sys\n"
        "def hand_over():\n"
        "    try:\n"
        f"        raise {error!r}\n"
        "    except Exception:\n"
        "        sys.excepthook(*sys.exc_info())\n"  # as multiprocessing's thread does
        "threading.Thread(target=hand_over).start()\n"
    )
    done = python(program)
    assert done.returncode == 0
    assert ("Traceback" in done.stderr) == is_shown


@pytest.mark.parametrize(
    ("said", "is_shown"), [("DataLoader worker (pid 5) is killed by signal: Killed. ", False), ("x", True)]
)
def test_a_death_that_python_drops_in_a_callback_is_not_printed(
    said: str, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)
    lost_workers._tell_of_deaths_while_waiting()
    dropped = SimpleNamespace(exc_value=RuntimeError(said))
    sys.unraisablehook(dropped)  # pyright: ignore[reportArgumentType]
    assert shown == ([dropped] if is_shown else [])
