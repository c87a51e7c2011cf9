"""The winner beside the recipe as it is: both trained with the same new seeds, and the mean of their differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import t as students_t

from vitrail.config.commands import TrainConfig
from vitrail.tuning.repeats import train_with_seeds
from vitrail.tuning.search import Search

CONFIDENCE = 0.95
"""Share of the intervals that hold the true gain, where differences are normally distributed."""


@dataclass(frozen=True)
class Comparison:
    """Two recipes trained with the same seeds."""

    winner: str
    """Name of the trial that is compared."""
    seeds: tuple[int, ...]
    default: tuple[float, ...]
    """The metric of the recipe as it is, by seed."""
    best: tuple[float, ...]
    """The metric of the winner, by seed."""
    is_lower_better: bool

    @property
    def gains(self) -> tuple[float, ...]:
        """What the winner gains with each seed; above 0 is better."""
        sign = -1 if self.is_lower_better else 1
        pairs = zip(self.best, self.default, strict=True)
        return tuple(sign * (best - default) for best, default in pairs)

    @property
    def gain(self) -> float:
        """The mean gain."""
        return statistics.fmean(self.gains)

    @property
    def margin(self) -> float:
        """Half of the interval of the mean gain, by Student's t for paired differences."""
        n = len(self.seeds)
        quantile = float(students_t.ppf((1 + CONFIDENCE) / 2, n - 1))
        return quantile * statistics.stdev(self.gains) / math.sqrt(n)

    @property
    def is_better(self) -> bool:
        """Whether the whole interval of the gain is above 0."""
        return self.gain - self.margin > 0

    def verdict(self, metric: str) -> str:
        """Say whether the winner is better, and by how much."""
        low, high = self.gain - self.margin, self.gain + self.margin
        interval = (
            f"mean gain in {metric} {self.gain:+.3g} over {len(self.seeds)} seeds, 95 % interval "
            f"{low:+.3g} to {high:+.3g}"
        )
        if self.is_better:
            return f"trial {self.winner} is better than the recipe as it is: {interval}"
        return f"not shown to be better than the recipe as it is: {interval}"


def compare(
    job: Search, folder: Path, winner: str, configs: Mapping[str, TrainConfig], seeds: Sequence[int]
) -> Comparison:
    """Train the winner and the recipe as it is with each seed, unless that is done, and return their numbers.

    Several processes may share the work; each run is made once.

    Args:
        job: The study.
        folder: Folder of the runs.
        winner: Name of the winning trial.
        configs: Settings by the names `default` and that of the winner.
        seeds: Seeds to train both with.

    Raises:
        TrainingError: One of the runs failed.
        Stopped: This process was told to stop; the run is saved.
    """
    values = train_with_seeds(job, folder, configs, seeds)
    return Comparison(
        winner=winner,
        seeds=tuple(seeds),
        default=values["default"],
        best=values[winner],
        is_lower_better=job.measure.is_lower_better,
    )
