"""Curves of runs with several seeds, the band that a new run is expected in, and where a run lies."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scipy.stats import t as students_t

from vitrail.errors import ConfigError, shorten, tell_syntax, write_option
from vitrail.files import read_regular

SHARE = 0.99
"""Share of right runs whose accuracy after an epoch lies within the band."""
MOST_BYTES = 2**20
"""Largest size of a file of curves."""
RULE = (
    "mean of the seeds +- t(0.995) * s * sqrt(1 + 1/n) for one new run, with s the largest of three "
    "pooled deviations: of all proxies after the epoch, of the proxy over its epochs, and of all "
    "together; t has the degrees of freedom of all proxies after one epoch"
)
"""How a band follows from curves, in a line."""

Place = Literal["below", "inside", "above"]


@dataclass(frozen=True)
class Curves:
    """Top-1 of validation by epoch of several runs of some recipes, all by the same settings."""

    settings: Mapping[str, Any]
    """Settings over the recipe's, by their dotted keys."""
    images: Mapping[str, int]
    """Training and validation images, as "train" and "val"."""
    made: Mapping[str, str]
    """Command, commit, processor and date that they were measured with."""
    by_recipe: Mapping[str, tuple[tuple[float, ...], ...]]
    """The curve of each seed, by the recipe."""


@dataclass(frozen=True)
class Band:
    """What a new run of a recipe is expected to reach after each epoch, in percent."""

    recipe: str
    seeds: int
    mean: tuple[float, ...]
    margin: tuple[float, ...]
    """Half of the width of the band."""

    def ends(self, epoch: int) -> tuple[float, float]:
        """Return the lower and the upper end after an epoch, counted from 1."""
        mean, margin = self.mean[epoch - 1], self.margin[epoch - 1]
        return max(mean - margin, 0.0), min(mean + margin, 100.0)

    def place(self, epoch: int, top1: float) -> Place:
        """Say where the accuracy of a run lies after an epoch."""
        low, high = self.ends(epoch)
        if top1 < low:
            return "below"
        return "above" if top1 > high else "inside"

    def describe(self, epoch: int) -> str:
        """Return the band after an epoch in words."""
        low, high = self.ends(epoch)
        return f"{low:.2f} to {high:.2f} %"


def compute_band(curves: Curves, recipe: str) -> Band:
    """Return the band of a recipe that has curves, by the rule that `RULE` has in words.

    Three runs of one recipe say little of how far runs differ, so that all recipes are asked; and
    the deviation is never smaller than what this recipe, or all together, show over the epochs.
    """
    own = curves.by_recipe[recipe]
    epochs, n = len(own[0]), len(own)
    all_runs = list(curves.by_recipe.values())
    together = _pool([_column(runs, epoch) for runs in all_runs for epoch in range(epochs)])
    over_epochs = _pool([_column(own, epoch) for epoch in range(epochs)])
    freedom = sum(len(runs) - 1 for runs in all_runs)
    quantile = float(students_t.ppf((1 + SHARE) / 2, freedom))
    means, margins = [], []
    for epoch in range(epochs):
        means.append(math.fsum(_column(own, epoch)) / n)
        of_epoch = _pool([_column(runs, epoch) for runs in all_runs])
        deviation = max(of_epoch, over_epochs, together)
        margins.append(quantile * deviation * math.sqrt(1 + 1 / n))
    return Band(recipe, n, tuple(means), tuple(margins))


def _column(runs: Sequence[Sequence[float]], epoch: int) -> list[float]:
    return [run[epoch] for run in runs]


def _pool(groups: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation within groups, over all of them."""
    squares, freedom = 0.0, 0
    for group in groups:
        mean = math.fsum(group) / len(group)
        squares += math.fsum((value - mean) ** 2 for value in group)
        freedom += len(group) - 1
    return math.sqrt(squares / freedom)


def read_curves(path: Path) -> Curves:
    """Read a file of curves, as `vitrail reproduce --expected` takes it.

    Raises:
        ConfigError: There is no such file, or it has no curves; the message names the option.
    """
    where = write_option("expected", path)
    try:
        content = json.loads(read_regular(path, MOST_BYTES))
    except OSError as error:
        raise ConfigError(f"{where}: {error.strerror}; give a file of curves") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{where}: no file of curves ({shorten(tell_syntax(error))}); docs/reproduce.md shows one"
        ) from error
    if problem := _find_problem(content):
        raise ConfigError(f"{where}: {problem}; docs/reproduce.md shows what belongs there")
    by_recipe = {}
    for recipe, runs in content["curves"].items():
        by_recipe[recipe] = tuple(tuple(map(float, run)) for run in runs.values())
    return Curves(content["settings"], content["images"], content["made"], by_recipe)


def _find_problem(content: Any) -> str:
    """Say as a clause what a file of curves lacks; empty where it is whole."""
    if not isinstance(content, dict):
        return "it holds no mapping"
    for name in ("settings", "images", "made", "curves"):
        if not isinstance(content.get(name), dict):
            return f"{name} is {shorten(content.get(name))}, no mapping"
    images = content["images"]
    for name in ("train", "val"):
        if not isinstance(images.get(name), int):
            return f"images.{name} is {shorten(images.get(name))}, no number of images"
    epochs = content["settings"].get("train.epochs")
    if not isinstance(epochs, int) or isinstance(epochs, bool) or epochs < 1:
        return f"settings has train.epochs {shorten(epochs)}, no number of epochs"
    for recipe, runs in content["curves"].items():
        if not isinstance(runs, dict) or len(runs) < 2:
            return (
                f"curves of {shorten(recipe)} are {shorten(runs)}, not those of two seeds or more"
            )
        for seed, run in runs.items():
            if not _is_curve(run, epochs):
                return (
                    f"the curve of {shorten(recipe)} with seed {shorten(seed)} is {shorten(run)}, "
                    f"not {epochs} accuracies from 0 to 100"
                )
    return ""


def _is_curve(run: Any, epochs: int) -> bool:
    if not isinstance(run, list) or len(run) != epochs:
        return False
    for value in run:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= 100:
            return False
    return True
