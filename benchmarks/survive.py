"""Kill a run at random and at every file operation, go on, and compare what comes out with the run that was left alone.

uv run python benchmarks/survive.py [--kills 10] [--processes 2]
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import cyclopts
import psutil
import torch
from safetensors.torch import load_file
from side_by_side import publish, train_command

from vitrail.training.run.state import list_states, load_last_state
from vitrail.weights.checkpoint import read_metrics

SETTINGS = [
    "digits", "train.epochs=6", "output.save_every_updates=5", "augment.mixup=0.8", "ema.decay=0.99",
    "output.keep_best=3",
]  # fmt: skip
SMALL = [
    "digits", "train.epochs=4", "train.batch_size=256", "train.log_every=3", "data.workers=0",
    "train.monitor=train_loss", "model.options.depth=1", "model.options.embed_dim=24",
    "model.options.inner_dim=8", "ema.decay=0.9", "output.keep_best=3", "output.save_every_updates=8",
]  # fmt: skip
"""A run of a second, whose epochs each are better than those before, and whose saves come between."""
BEST = ("best.safetensors", "best-2.safetensors", "best-3.safetensors")
OPERATIONS = ("os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate")
ONE_AT_A_TIME = threading.Lock()
"""Held by the thread that starts a process or takes its status."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "vitrail.cli.app", "vitrail.training.train", "matplotlib.figure", "tensorboard.summary.writer.record_writer",
        "torch._dynamo", "sklearn.datasets",
    ]
)  # fmt: skip


@dataclass
class Tally:
    """What came of some killed runs."""

    runs: int = 0
    kills: int = 0
    differ: tuple[str, ...] = ()
    """What each run that does not equal the undisturbed one differs in."""

    def add(self, kills: int, differences: Sequence[str]) -> None:
        """Take in one run."""
        self.runs, self.kills = self.runs + 1, self.kills + kills
        self.differ += (", ".join(differences),) if differences else ()

    def row(self, how: str, operations: str = "") -> str:
        """Return its line of the table."""
        equal = "yes" if not self.differ else f"NO: {len(self.differ)} differ ({self.differ[0]})"
        return f"| {how} | {operations} | {self.runs} | {self.kills} | {equal} |"


def start(processes: int, folder: Path) -> subprocess.Popen[bytes]:
    """Begin a training run, or go on with it."""
    command = train_command(processes, *SETTINGS, "--resume", str(folder))
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def updates_saved(folder: Path) -> int:
    """Return the updates in the newest save."""
    return int(list_states(folder / "last")[0].name[7:15]) if list_states(folder / "last") else -1


def rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a file without its times."""
    return [without_times(json.loads(line)) for line in path.read_text().splitlines()]


def without_times(row: Any) -> dict[str, Any]:
    """Leave out what depends on the clock."""
    return {name: value for name, value in row.items() if not name.endswith("_s")}


def differences(whole: Path, killed: Path) -> Iterator[str]:
    """Name what two runs differ in, but for times and the machine's own."""
    for name in ("metrics.jsonl", "steps.jsonl"):
        if rows(whole / name) != rows(killed / name):
            yield name
    for name in BEST:
        first, second = load_file(whole / name), load_file(killed / name)
        said = [without_times(read_metrics(folder / name)) for folder in (whole, killed)]
        if said[0] != said[1] or any(not torch.equal(tensor, second[key]) for key, tensor in first.items()):
            yield name
    first, second = (load_last_state(folder / "last", print) for folder in (whole, killed))
    for part in ("model", "ema"):
        if any(not torch.equal(tensor, second[part][name]) for name, tensor in first[part].items()):
            yield part
    if [without_times(row) for row in first["bests"]] != [without_times(row) for row in second["bests"]]:
        yield "bests"
    for name in ("curves.png", "report/per_class.csv", "report/confusion.csv", "report/confusion.png"):
        if (whole / name).read_bytes() != (killed / name).read_bytes():
            yield name
    numbers = [json.loads((folder / "report" / "report.json").read_text()) for folder in (whole, killed)]
    for report in numbers:
        del report["checkpoint"]["path"], report["checkpoint"]["sha256"], report["checkpoint"]["written_by"]
        del report["settings"]["output"]
    if numbers[0] != numbers[1]:
        yield "report.json"
    if names(whole) != names(killed):
        yield f"the files {' '.join(sorted(names(whole) ^ names(killed)))}"


def names(folder: Path) -> set[str]:
    """Return the files of a run, but for those whose names hold a checksum or a time."""
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(("last/update-", "tensorboard/")) and name != "log.txt"}


def train_here(folder: str, operation: int) -> None:
    """Train in this process, and be killed before a file operation below a folder; note how many there were."""
    done, count = 0, os.open(Path(folder).with_name("count"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def before() -> None:
        nonlocal done
        if done == operation:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1
        os.pwrite(count, str(done).encode(), 0)

    def audit(event: str, rest: tuple[Any, ...]) -> None:
        is_writing = event == "open" and isinstance(rest[2], int) and rest[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if (event in OPERATIONS or is_writing) and str(rest[0]).startswith(folder):
            before()

    sync = os.fsync

    def fsync(file: int) -> None:
        before()
        sync(file)

    os.getloadavg = lambda: (0.0, 0.0, 0.0)
    os.fsync = fsync
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(null, stream)
    sys.addaudithook(audit)
    sys.argv = ["vitrail", "train", *SMALL, "--resume", folder]
    runpy.run_module("vitrail", run_name="__main__", alter_sys=True)


def train(folder: Path, operation: int = -1) -> int:
    """Train until it ends or is killed, and return its status."""
    process = SERVER.Process(target=train_here, args=(str(folder), operation))
    # a start looks after all other processes too: what reads a status second finds none there, and takes it for 255
    with ONE_AT_A_TIME:
        process.start()
    wait([process.sentinel])
    with ONE_AT_A_TIME:
        process.join()
    assert process.exitcode is not None
    return process.exitcode


def kill_at(operation: int, again: int, place: Path, whole: Path) -> tuple[int, list[str]]:
    """Kill a run at a file operation, and at another as it goes on; return the kills and what differs at the end."""
    folder, kills = place / str(operation) / "run", 0
    folder.parent.mkdir()
    for number in (operation, again):
        status = train(folder, number)
        if status not in (0, -signal.SIGKILL):
            return kills, [f"status {status}"]
        kills += status != 0
    if status := train(folder):
        return kills, [f"status {status} at the end"]
    return kills, list(differences(whole, folder))


def kill_everywhere(place: Path, seed: int) -> tuple[Tally, int]:
    """Kill runs at every file operation, and each once more at random; return what came of it, and the operations."""
    whole, draw, tally = place / "whole" / "run", random.Random(seed), Tally()
    whole.parent.mkdir()
    assert train(whole) == 0
    operations = int(whole.with_name("count").read_text())
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        jobs = [
            threads.submit(kill_at, operation, draw.randrange(operations), place, whole)
            for operation in range(operations)
        ]
        for job in jobs:
            tally.add(*job.result())
    return tally, operations


def kill_at_random(place: Path, kills: int, processes: int, seed: int) -> tuple[Tally, list[float]]:
    """Kill one run again and again; return what came of it, and the seconds from each restart to a new save."""
    draw, begun, tally = random.Random(seed), [], Tally()
    whole, killed = place / "whole" / "run", place / "killed" / "run"
    assert start(processes, whole).wait() == 0
    survived = 0
    while True:
        before, started = updates_saved(killed) if killed.exists() else -1, time.perf_counter()
        process = start(processes, killed)
        while process.poll() is None and (not killed.exists() or updates_saved(killed) <= max(before, 0)):
            time.sleep(0.01)
        if before >= 0:
            begun.append(time.perf_counter() - started)
        if survived == kills:
            process.wait()
            break
        time.sleep(draw.uniform(0, 2))
        if process.poll() is not None:
            break
        # torchrun gives each worker a session of its own
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            one.kill()
        process.wait()
        survived += 1
    tally.add(survived, [f"status {process.returncode}"] if process.returncode else list(differences(whole, killed)))
    return tally, begun


def main(kills: int = 10, processes: int = 1, seed: int = 0) -> None:
    """Write a page beside this file."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # runs beside each other
    table = ["| killed | file operations | runs | kills | equal to the last bit |", "|-|-:|-:|-:|-|"]
    with tempfile.TemporaryDirectory() as place:
        tally, begun = kill_at_random(Path(place), kills, processes, seed)
    table.append(tally.row(f"at random, {processes} process{'es' * (processes > 1)}"))
    if processes == 1:
        with tempfile.TemporaryDirectory() as place:
            tally, operations = kill_everywhere(Path(place), seed)
        table.append(tally.row("at every file operation, and once more at random", str(operations)))
    notes = [
        f"at random: `vitrail train {' '.join(SETTINGS)}`, SIGKILL to all its processes, up to 2 s after a new save; "
        f"from the restart to the first new save {statistics.median(begun):.1f} s, with the start of Python and torch",
        *([f"at file operations: `vitrail train {' '.join(SMALL)}`"] if processes == 1 else []),
        "an operation is a file opened to be written, a rename, link, removal or new folder in the run's folder, or a "
        "sync",
        "compared: the last save's weights and their average, best, best-2 and best-3, rows of epochs and updates, "
        "curves, report and the names of all files, but for times",
    ]
    publish("survive" if processes == 1 else f"survive_{processes}", "Kills survived", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
