"""The curves that `vitrail reproduce --proxy` compares with: small recipes on CIFAR-10, 5 epochs, three seeds each.

uv run python benchmarks/proxies.py ../shared/data/cifar10.tar.xz --work /tmp/proxies   # an hour or two on two cores
uv run python benchmarks/proxies.py ../shared/data/cifar10.tar.xz --work /tmp/proxies --only cifar10_tnt --seeds 1

The archive has CIFAR-10 as images in train/<class>/ and test/<class>/. Every epoch is evaluated on the 10,000 test
images, and nothing is chosen by them. What was done is kept in the work folder, one note a run, so that the command
goes on where it was stopped, in the middle of a run too; two processes can share the folder where each has recipes of
its own, and on two cores OMP_NUM_THREADS=1. The seeds are 1, 2, 3: a run of the command has the recipes' own, 0, and
so is a new draw on any machine.

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
from side_by_side import processor, publish

import vitrail
from vitrail.files import write_whole
from vitrail.reproduction.curves import RULE, Curves, compute_band
from vitrail.reproduction.proxies import OF_FAMILIES, SHIPPED

IMAGES = {"train": 50_000, "val": 10_000}
EPOCHS, SEEDS = 5, 3
KEPT = ("epoch", "val_top1", "val_loss", "train_loss", "elapsed_s")
"""Numbers of an epoch that a note has."""


def main(
    archive: Path, *, work: Path, only: tuple[str, ...] = OF_FAMILIES, seeds: int = SEEDS, epochs: int = EPOCHS
) -> None:
    """Train every recipe with every seed, and publish those that are complete."""
    work.mkdir(parents=True, exist_ok=True)
    images = unpack(archive, work)
    for seed in range(1, seeds + 1):
        for recipe in only:
            note = work / f"{recipe}-{seed}.json"
            if not note.exists():
                done = train(work, images, recipe, seed, epochs)
                write_whole(note, json.dumps(done, indent=1).encode())
    notes = read_notes(work, seeds, epochs)
    if not notes:
        print("no recipe has all its seeds yet; nothing is published")
        return
    content = to_curves(notes, epochs)
    if (epochs, seeds) == (EPOCHS, SEEDS):
        SHIPPED.write_text(json.dumps(content, indent=1) + "\n")
    report(notes, content)


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


def read_notes(work: Path, seeds: int, epochs: int) -> dict[str, list[dict[str, Any]]]:
    """Return the notes of each recipe that has all its seeds."""
    found = {}
    for recipe in OF_FAMILIES:
        files = [work / f"{recipe}-{seed}.json" for seed in range(1, seeds + 1)]
        if not all(file.exists() for file in files):
            continue
        notes = [json.loads(file.read_text()) for file in files]
        if any(note["epochs"] != epochs for note in notes):
            raise SystemExit(f"{work} has notes of {recipe} of another number of epochs; choose another folder")
        found[recipe] = notes
    return found


def to_curves(notes: dict[str, list[dict[str, Any]]], epochs: int) -> dict[str, Any]:
    """Return what is shipped: the curves as they are, and where they came from."""
    made = {}
    every = [note for of_recipe in notes.values() for note in of_recipe]
    for name in ("command", "commit", "processor", "date"):
        made[name] = "; ".join(sorted({note[name] for note in every}))
    curves = {}
    for recipe, of_recipe in notes.items():
        runs = {}
        for note in of_recipe:
            runs[str(note["seed"])] = [round(row["val_top1"], 2) for row in note["rows"]]
        curves[recipe] = runs
    return {"settings": {"train.epochs": epochs}, "images": IMAGES, "made": made, "curves": curves}


def report(notes: dict[str, list[dict[str, Any]]], content: dict[str, Any]) -> None:
    """Publish the band of each recipe, and what its seeds reached."""
    runs = {}
    for recipe, by_seed in content["curves"].items():
        runs[recipe] = tuple(tuple(run) for run in by_seed.values())
    curves = Curves(content["settings"], content["images"], content["made"], runs)
    epochs = content["settings"]["train.epochs"]
    titles = [f"epoch {epoch}" for epoch in range(1, epochs + 1)]
    table = [f"| recipe | | {' | '.join(titles)} | minutes |", "|-|-|" + "-:|" * (epochs + 1)]
    for recipe, of_recipe in notes.items():
        band = compute_band(curves, recipe)
        for note, run in zip(of_recipe, runs[recipe], strict=True):
            minutes = note["rows"][-1]["elapsed_s"] / 60
            values = " | ".join(f"{value:.2f}" for value in run)
            table.append(f"| {recipe} | seed {note['seed']} | {values} | {minutes:.0f} |")
        ends = [f"{mean:.2f} ± {margin:.2f}" for mean, margin in zip(band.mean, band.margin, strict=True)]
        table.append(f"| {recipe} | band | {' | '.join(ends)} | |")
    publish(
        "proxies",
        "The curves of the proxies, and the bands of new runs",
        [
            "top-1 of 10,000 test images after each epoch, %; nothing is chosen by them",
            f"band: {RULE}",
            f"runs at commit {content['made']['commit']}",
            "minutes are those of a machine that was busy with other runs",
        ],
        table,
    )


if __name__ == "__main__":
    cyclopts.run(main)
