"""What a search of settings brings and costs: vitrail tune on digits, and the time of one process beside two.

uv run python benchmarks/tune.py --work /tmp/tune                       # about three hours on two cores
uv run python benchmarks/tune.py --work /tmp/tune --trials 4 --epochs 2 # a look at whether it works

1. 30 trials with median pruning around the recipe of digits, the best five with two more seeds each, then the winner
   and the recipe as it is with three new seeds each: accuracy on the 359 images that are held out, the gain with its
   interval, and what pruning spared.
2. The same search of 12 short trials by one process, and by two that share a study, each with one thread: seconds from
   the start to the end of the search, without the comparison. It needs two quiet cores.

What was done is kept in the work folder, so that the command goes on where it was stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cyclopts
from side_by_side import publish

import vitrail

SPACE = {
    "optim.name": ["adamw", "muon"],
    "optim.lr": {"low": 5e-4, "high": 8e-3, "log": True},
    "schedule.warmup_epochs": {"low": 2, "high": 8},
    "augment.mixup": [0.0, 0.1, 0.2],
    "augment.label_smoothing": {"low": 0.0, "high": 0.2},
}
SHARED_TRIALS = 12
SHARED_EPOCHS = 4


def search(work: Path, trials: int, epochs: int) -> dict[str, Any]:
    """Search around the recipe of digits, and return what came of it."""
    settings: dict[str, Any] = {"train.epochs": epochs, "train.device": "cpu"}
    space = dict(SPACE)
    if epochs < 10:  # a look, too short for the warm-up that is searched
        settings["schedule.warmup_epochs"] = 1
        del space["schedule.warmup_epochs"]
    result = vitrail.tune(
        "digits",
        settings,
        space=space,
        study=work / "digits",
        trials=trials,
        finalists=5,
        seeds=3,
        metric="val_top1",
    )
    print(result)
    trained = sum(trial.epochs for trial in result.trials)
    numbers: dict[str, Any] = {
        "trials": len(result.trials),
        "whole": sum(trial.state == "complete" for trial in result.trials),
        "pruned": sum(trial.state == "pruned" for trial in result.trials),
        "failed": sum(trial.state == "failed" for trial in result.trials),
        "share of the epochs": round(trained / (epochs * len(result.trials)), 2),
        "hours": round(sum(trial.seconds for trial in result.trials) / 3600, 2),
        "verdict": result.verdict,
    }
    for one in result.finalists:
        mean = "failed" if one.mean is None else f"{one.mean:.2f}"
        numbers[f"trial {one.name} with 3 seeds"] = mean
    if result.comparison is not None:
        for whose, values in (("recipe", result.comparison.default), ("winner", result.comparison.best)):
            numbers[whose] = ", ".join(f"{value:.2f}" for value in values)
    if result.best is not None:
        numbers["settings"] = result.best.settings
    return numbers


def share(work: Path, processes: int, trials: int) -> float:
    """Return the seconds of a search by some processes that share a study, each with one thread."""
    kept = work / f"seconds-{processes}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    words = [sys.executable, "-m", "vitrail", "tune", "digits", "--study", str(work / f"shared-{processes}")]
    words += ["--trials", str(trials), "--seeds", "0", "--prune", "none", "--sampler", "random"]
    words += [f"train.epochs={SHARED_EPOCHS}", "schedule.warmup_epochs=1", "train.device=cpu", "data.workers=0"]
    # the number of epochs is one for all, so that no trial is longer than another
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = time.perf_counter()
    started = [subprocess.Popen(words, env=environment) for _ in range(processes)]
    for process in started:
        if process.wait() != 0:
            raise SystemExit(f"{' '.join(words)}: ended with status {process.returncode}")
    seconds = round(time.perf_counter() - begun, 1)
    kept.write_text(json.dumps(seconds))
    return seconds


def main(*, work: Path, trials: int = 30, epochs: int = 40, shared_trials: int = SHARED_TRIALS) -> None:
    """Measure, and write a page beside this file."""
    work.mkdir(parents=True, exist_ok=True)
    times = {count: share(work, count, shared_trials) for count in (1, 2)}
    found = search(work, trials, epochs)
    table = ["| | |", "|-|-|", *(f"| {name} | {value} |" for name, value in found.items())]
    for count, seconds in times.items():
        table.append(f"| {shared_trials} short trials, processes: {count} | {seconds:,.0f} s |")
    table.append(f"| time of two, of that of one | {times[2] / times[1]:.2f} |")
    notes = [
        f"{trials} trials of {epochs} epochs around the recipe of digits, median pruning, the best 5 with 2 more seeds",
        "winner and recipe with 3 new seeds each; top-1 on the 359 images that are held out, %",
        f"processes that share a study: {SHARED_EPOCHS} epochs a trial, one thread each, a quiet machine",
    ]
    publish("tune", "What a search of settings brings and costs", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
