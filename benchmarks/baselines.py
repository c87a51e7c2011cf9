"""A small DeiT of timm beside a small TNT and Twins on CIFAR-10, all trained by one recipe but for the model.

uv run python benchmarks/baselines.py ../shared/data/cifar10.tar.xz --work /tmp/baselines             # hours
uv run python benchmarks/baselines.py ../shared/data/cifar10.tar.xz --work /tmp/baselines --epochs 1 --seeds 1

The settings are those of cifar10_deit, which are cifar10_tnt's; what is reported is top-1 on the 10,000 test images
after the last epoch, so that nothing is chosen by them. The seconds of an epoch are timed first, which needs a quiet
machine; the rest gives the same numbers on a busy one. What was done is kept in the work folder, so that the command
goes on where it was stopped, and two processes can share the folder where each has models of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cyclopts
import yaml
from cifar10_runs import place, time_epoch, unpack
from side_by_side import publish, spread

import vitrail
from vitrail.api.training import TrainResult
from vitrail.config.recipes import find_recipe
from vitrail.models.catalogue import measure_costs
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.loading import open_model

RECIPE = "cifar10_deit"
MODELS = {"DeiT of timm": "cifar10_deit", "TNT": "cifar10_tnt", "Twins-SVT": "cifar10_twins"}
"""Recipe that each model is taken from."""
TIMED_EPOCHS = 2
"""Epochs of the runs that are timed, of which the last, with the evaluation, is left out."""


def main(
    archive: Path, *, work: Path, epochs: int = 8, seeds: int = 3, models: tuple[str, ...] = tuple(MODELS)
) -> None:
    """Train every model with every seed, and publish a table."""
    work.mkdir(parents=True, exist_ok=True)
    images = unpack(archive, work)
    seconds = time_epochs(work, images, models)
    rows = []
    for seed in range(seeds):
        for model in models:
            note = work / f"{MODELS[model]}-{seed}.json"
            if not note.exists():
                note.write_text(json.dumps({"model": model, **measure(work, images, model, epochs, seed)}))
            rows.append(json.loads(note.read_text()))
    report(rows, epochs, seconds)


def time_epochs(work: Path, images: Path, models: tuple[str, ...]) -> dict[str, float]:
    """Return the seconds of an epoch of each model."""
    note = work / "seconds.json"
    seconds = json.loads(note.read_text()) if note.exists() else {}
    for model in models:
        if model not in seconds:
            seconds[model] = time_epoch(train(work, images, model, TIMED_EPOCHS, seed=99).rows)
            note.write_text(json.dumps(seconds))
    return {model: seconds[model] for model in models}


def train(work: Path, images: Path, model: str, epochs: int, seed: int) -> TrainResult:
    """Train a model by the recipe."""
    whole = yaml.safe_load(find_recipe(RECIPE)[1].read_text())
    whole["model"] = yaml.safe_load(find_recipe(MODELS[model])[1].read_text())["model"]
    recipe = work / f"{MODELS[model]}.yaml"
    recipe.write_text(yaml.safe_dump(whole))
    settings = {"train.seed": seed, "train.epochs": epochs, "train.eval_every": epochs}
    return vitrail.train(recipe, {**place(work, images), **settings})


def measure(work: Path, images: Path, model: str, epochs: int, seed: int) -> dict[str, Any]:
    """Train a model by the recipe, and return what came of it."""
    run = train(work, images, model, epochs, seed)
    record = open_model(run.weights).record
    built = create_model(record.model, **record.options)
    costs = measure_costs(find_variant(record.model)[0], built.config)
    return {"top1": run.rows[-1]["val_top1"], "params": costs.params, "macs": costs.macs}


def report(rows: list[dict[str, Any]], epochs: int, seconds: Mapping[str, float]) -> None:
    """Publish mean and spread of each model."""
    table = ["| model | parameters, M | multiply-adds, M | seconds an epoch | top-1, % |", "|-|-:|-:|-:|-:|"]
    seeds = 0
    for model, of_epoch in seconds.items():
        found = [row for row in rows if row["model"] == model]
        seeds = len(found)
        values = [row["top1"] for row in found]
        params, macs = found[0]["params"] / 1e6, found[0]["macs"] / 1e6
        table.append(f"| {model} | {params:.2f} | {macs:.1f} | {of_epoch:.0f} | {spread(values)} |")
    notes = [
        f"recipe {RECIPE} with the models of {', '.join(MODELS[model] for model in seconds)}; {epochs} epochs each",
        f"top-1 of 10,000 test images after the last epoch; mean and standard deviation over {seeds} seeds",
        "the recipe's learning rate, 1e-3, suits no model in particular; that of cifar10_twins itself is 2e-3",
    ]
    publish("baselines", "A DeiT beside TNT and Twins", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
