"""Train with one process and with two on as many cores, and compare images a second.

uv run python benchmarks/scaling.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

import cyclopts
from side_by_side import publish, train_command

SETTINGS = ["digits", "train.epochs=4", "train.eval_every=99"]


def images_per_s(processes: int, threads: int) -> float:
    """Run and return the median speed over the epochs after the first."""
    with tempfile.TemporaryDirectory() as place:
        subprocess.run(
            train_command(processes, *SETTINGS, f"output.root={place}", "output.name=run"),
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        rows = [json.loads(line) for line in (Path(place) / "run" / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(row["images_per_s"] for row in rows[1:])


def main(rounds: int = 3) -> None:
    """Print a table of medians and ratios, and write it beside this file."""
    ways = {"1 process of 1 thread": (1, 1), "1 process of 2 threads": (1, 2), "2 processes of 1 thread": (2, 1)}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, (processes, threads) in ways.items():
            speeds[way].append(images_per_s(processes, threads))
    medians = {way: statistics.median(found) for way, found in speeds.items()}
    first = next(iter(medians.values()))
    table = ["| | images/s | to the first |", "|-|-:|-:|"]
    table += [f"| {way} | {speed:,.0f} | {speed / first:.2f} |" for way, speed in medians.items()]
    notes = [
        f"`vitrail train {' '.join(SETTINGS)}`: the same updates each time; median of {rounds} alternating runs of the "
        "median epoch after the first"
    ]
    publish("scaling", "Two processes on two cores", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
