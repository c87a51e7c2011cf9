"""Kill a run again and again, go on each time, and compare what comes out with the run that was left alone.

uv run python benchmarks/survive.py [--kills 10] [--processes 2]
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import cyclopts
import psutil
import torch
from side_by_side import publish, train_command

from vitrail.training.state import list_states, load_last_state

SETTINGS = ["digits", "train.epochs=6", "output.save_every_updates=3", "augment.mixup=0.8", "ema.decay=0.99"]


def start(processes: int, folder: Path) -> subprocess.Popen[bytes]:
    """Begin a training run, or go on with it."""
    command = train_command(processes, *SETTINGS, "--resume", str(folder))
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def updates_saved(folder: Path) -> int:
    """Return the updates in the newest save."""
    return int(list_states(folder / "last")[0].name[7:15]) if list_states(folder / "last") else -1


def rows(folder: Path) -> list[dict]:
    """Return the rows of a run without its times."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


def main(kills: int = 10, processes: int = 1, seed: int = 0) -> None:
    """Write a page beside this file."""
    draw, begun = random.Random(seed), []
    with tempfile.TemporaryDirectory() as place:
        whole, killed = Path(place) / "whole", Path(place) / "killed"
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
            for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                one.kill()
            process.wait()
            survived += 1
        assert process.returncode == 0
        first, second = (load_last_state(folder / "last", print) for folder in (whole, killed))
        same = rows(whole) == rows(killed) and all(
            torch.equal(tensor, second[part][name]) for part in ("model", "ema") for name, tensor in first[part].items()
        )
        total = updates_saved(whole)
    table = [
        "| processes | kills | updates of the run | equal to the last bit | restart to the first new save, s |",
        "|-:|-:|-:|-|-:|",
        f"| {processes} | {survived} | {total} | {'yes' if same else 'NO'} | {statistics.median(begun):.1f} |",
    ]
    notes = [
        f"`vitrail train {' '.join(SETTINGS)}`, SIGKILL to all its processes, up to 2 s after a new save",
        "compared: weights, their average and the rows of metrics.jsonl but for times",
        "the restart includes starting Python and importing torch",
    ]
    publish(f"survive_{processes}", "Kills survived", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
