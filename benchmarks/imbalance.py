"""Measure what each way of making up for rare classes brings on a long-tailed set of digits.

    uv run python benchmarks/imbalance.py [--seeds 3]

Fifty images of each of scikit-learn's digits are for validation. Of the others, as many of digit 0 as each digit has
are to train on, and of each next digit fewer, down to one in `factor`, as in the long-tailed CIFAR of Cui et al. 2019.
They are written as a folder, on which the recipe `digits` is trained.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

import cyclopts
import numpy as np
import torch
from PIL import Image
from side_by_side import publish
from sklearn.datasets import load_digits

from vitrail.config.commands import TrainConfig
from vitrail.config.recipes import find_recipe
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.training.train import train

VALIDATED = 50
WAYS = (
    "",
    "balance.class_weights=sqrt",
    "balance.class_weights=effective",
    "balance.class_weights=inverse",
    "balance.sampler=sqrt",
    "balance.sampler=balanced",
    "balance.logit_adjust=1",
    "balance.sampler=sqrt balance.logit_adjust=1",
    "balance.sampler=balanced balance.class_weights=inverse",
)
FOUND = {
    "val_top1": "top-1 = balanced, %", "val_macro_f1": "macro F1, %", "val_head_top1": "head, %",
    "val_medium_top1": "medium, %", "val_tail_top1": "tail, %",
}  # fmt: skip


def write_long_tailed(root: Path, factor: float) -> list[int]:
    """Write the images below train/ and val/, and return how many of each digit are to train on."""
    digits: Any = load_digits()
    pixels, labels = np.rint(digits.images * (255 / 16)).astype(np.uint8), digits.target
    most = np.bincount(labels).min() - VALIDATED
    counts = [round(most * factor ** (-digit / 9)) for digit in range(10)]
    for digit, count in enumerate(counts):
        chosen = np.flatnonzero(labels == digit)
        for split, indices in (("val", chosen[:VALIDATED]), ("train", chosen[VALIDATED : VALIDATED + count])):
            folder = root / split / str(digit)
            folder.mkdir(parents=True)
            for index in indices:
                Image.fromarray(pixels[index]).save(folder / f"{index:04d}.png")
    return counts


def main(seeds: int = 3, epochs: int = 60, factor: float = 50) -> None:
    """Train with each way and publish a page beside this file."""
    torch.set_num_threads(1)
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as place:
        counts = write_long_tailed(Path(place, "images"), factor)
        common = [
            "data.name=null", f"data.root={place}/images", f"output.root={place}/runs", f"train.epochs={epochs}",
            f"train.eval_every={epochs}", "train.device=cpu", "data.workers=0", "output.trackers=[]",
        ]  # fmt: skip
        for seed in range(seeds):
            for way in WAYS:
                settings = parse_command_line([*common, *way.split(), f"train.seed={seed}"])
                config = resolve(TrainConfig, [read_yaml(find_recipe("digits")[1]), settings]).config
                rows[way].append(dict(train(config).rows[-1]))
                print(seed, way, {key: round(rows[way][-1][key], 2) for key in FOUND}, flush=True)
    table = [f"| | {' | '.join(FOUND.values())} |", f"|-|{'-:|' * len(FOUND)}"]
    for way, found in rows.items():
        cells = [
            f"{statistics.mean(values):.1f}" + (f" +- {statistics.stdev(values):.1f}" if seeds > 1 else "")
            for values in ([row[key] for row in found] for key in FOUND)
        ]
        table.append(f"| {f'`{way}`' if way else 'plain'} | {' | '.join(cells)} |")
    notes = [
        f"training images of the digits 0 to 9: {', '.join(map(str, counts))}; {VALIDATED} validation images of each",
        f"recipe digits with train.epochs={epochs}; figures of the last epoch"
        + (f", mean and standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"),
        f"with 10 x {VALIDATED} validation images, a top-1 of 50 % has a standard error of "
        f"{50 / (10 * VALIDATED) ** 0.5:.1f} points by their number alone",
    ]
    publish("imbalance", "What makes up for rare classes", notes, table)


if __name__ == "__main__":
    cyclopts.run(main)
