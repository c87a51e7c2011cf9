"""The curves that `vitrail reproduce --proxy` compares with: small recipes on CIFAR-10, 5 epochs, three seeds each.

uv run python benchmarks/proxies.py ../shared/data/cifar10.tar.xz --work /tmp/proxies   # an hour or two on two cores
uv run python benchmarks/proxies.py ../shared/data/cifar10.tar.xz --work /tmp/proxies --only cifar10_tnt --seeds 1

The archive has CIFAR-10 as images in train/<class>/ and test/<class>/. Every epoch is evaluated on the 10,000 test
images, and nothing is chosen by them. What was done is kept in the work folder, one note a run, so that the command
goes on where it was stopped, in the middle of a run too; two processes can share the folder where each has recipes of
its own. The seeds are 1, 2, 3: a run of the command has the recipes' own, 0, and so is a new draw on any machine.

Recipes that have all their seeds are published: a page beside this file, and the curves where the command reads them.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cyclopts
import torch
from cifar10_runs import place, unpack
from side_by_side import processor

import vitrail

RECIPES = ("cifar10_tnt", "cifar10_t2t", "cifar10_twins", "cifar10_ptnt")
"""Recipe of each family's proxy."""
EPOCHS = 5
KEPT = ("epoch", "val_top1", "val_loss", "train_loss", "elapsed_s")
"""Numbers of an epoch that a note has."""


def main(archive: Path, *, work: Path, only: tuple[str, ...] = RECIPES, seeds: int = 3, epochs: int = EPOCHS) -> None:
    """Train every recipe with every seed, and publish those that are complete."""
    work.mkdir(parents=True, exist_ok=True)
    images = unpack(archive, work)
    for seed in range(1, seeds + 1):
        for recipe in only:
            note = work / f"{recipe}-{seed}.json"
            if not note.exists():
                write_note(note, train(work, images, recipe, seed, epochs))


def train(work: Path, images: Path, recipe: str, seed: int, epochs: int) -> dict[str, Any]:
    """Train a recipe with a seed, or go on with that run, and return its curve and where it came from."""
    folder = work / "runs" / f"{recipe}-{seed}"
    settings = {**place(work, images), "train.epochs": epochs, "train.seed": seed}
    del settings["output.root"]  # the folder of the run is named whole
    rows = vitrail.train(recipe, settings, resume=folder).rows
    commit = subprocess.check_output(["git", "describe", "--always", "--dirty"], text=True).strip()
    return {
        "recipe": recipe,
        "seed": seed,
        "epochs": epochs,
        "rows": [{key: row[key] for key in KEPT} for row in rows],
        "command": f"uv run python {shlex.join(sys.argv)}",
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "processor": f"{processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
    }


def write_note(note: Path, values: dict[str, Any]) -> None:
    """Write a note at once, so that a process that is killed leaves none that is cut."""
    part = note.with_suffix(".part")
    part.write_text(json.dumps(values, indent=1))
    part.replace(note)


if __name__ == "__main__":
    cyclopts.run(main)
