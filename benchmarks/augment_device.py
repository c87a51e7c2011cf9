"""RandAugment by the loader's processes and by the device that trains, beside none: accuracy on CIFAR-10.

uv run python benchmarks/augment_device.py ../shared/data/cifar10.tar.xz --work /tmp/augment             # hours
uv run python benchmarks/augment_device.py ../shared/data/cifar10.tar.xz --work /tmp/augment --epochs 1 --seeds 1

The settings are those of cifar10_tnt but for the policy; what is reported is top-1 on the 10,000 test images after the
last epoch, so that nothing is chosen by them. What was done is kept in the work folder, so that the command goes on
where it was stopped; seconds an epoch are only worth something on a quiet machine.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import cyclopts
from cifar10_runs import place, time_epoch, unpack
from side_by_side import publish, spread

import vitrail

RECIPE, POLICY = "cifar10_tnt", "rand-m9-mstd0.5-inc1"
FORMS: dict[str, dict[str, Any]] = {
    "none": {},
    "by the loader": {"augment.auto_augment": POLICY},
    "by the device": {"augment.auto_augment": POLICY, "augment.device": True},
}
"""Settings of each form of augmentation."""


def main(archive: Path, *, work: Path, epochs: int = 12, seeds: int = 3, forms: tuple[str, ...] = tuple(FORMS)) -> None:
    """Train with every form and every seed, and publish a table."""
    images = unpack(archive, work)
    found: dict[str, list[dict[str, float]]] = {form: [] for form in forms}
    for seed in range(seeds):
        for form in forms:
            note = work / f"{form.replace(' ', '-')}-{epochs}-{seed}.json"
            if not note.exists():
                note.write_text(json.dumps(train(work, images, form, epochs, seed)))
            found[form].append(json.loads(note.read_text()))
    report(found, epochs, seeds)


def train(work: Path, images: Path, form: str, epochs: int, seed: int) -> dict[str, float]:
    """Train with a form of augmentation, and return what came of it."""
    settings = {"train.seed": seed, "train.epochs": epochs, "train.eval_every": epochs}
    run = vitrail.train(RECIPE, {**place(work, images), **settings, **FORMS[form]})
    return {
        "top1": run.rows[-1]["val_top1"],
        "train_loss": run.rows[-1]["train_loss"],
        "seconds": time_epoch(run.rows),
    }


def report(found: dict[str, list[dict[str, float]]], epochs: int, seeds: int) -> None:
    """Publish mean and spread of each form, and of the difference between the last two within a seed."""
    table = ["| RandAugment | seconds an epoch | last training loss | top-1, % |", "|-|-:|-:|-:|"]
    for form, rows in found.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        losses = statistics.mean(row["train_loss"] for row in rows)
        table.append(f"| {form} | {seconds:.0f} | {losses:.3f} | {spread([row['top1'] for row in rows])} |")
    notes = [
        f"recipe {RECIPE} with {POLICY}, {epochs} epochs each",
        f"top-1 of 10,000 test images after the last epoch; mean and standard deviation over {seeds} seeds",
    ]
    if {"by the loader", "by the device"} <= found.keys():
        pairs = zip(found["by the loader"], found["by the device"], strict=True)
        differences = [device["top1"] - loader["top1"] for loader, device in pairs]
        notes.append(f"device less loader, within a seed: {spread(differences)} points")
    publish("augment_device", "RandAugment by the loader and by the device", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
