"""The winner beside the recipe as it is: both trained with the same new seeds, and the mean of their differences."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from scipy.stats import t as students_t

from vitrail.config.commands import TrainConfig
from vitrail.errors import TrainingError
from vitrail.files import refusal_told, write_whole
from vitrail.tuning.process import Training
from vitrail.tuning.search import Search, stop_if_told, watch
from vitrail.tuning.subject import place

CONFIDENCE = 0.95
"""Share of the intervals that hold the true gain, where differences are normally distributed."""
WAIT_S = 1.0
"""Seconds between two looks at what other processes work on."""


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


@dataclass(frozen=True)
class Entry:
    """One training of a comparison."""

    folder: Path
    config: TrainConfig
    header: str


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
    entries = {}
    for seed in seeds:
        for name, config in configs.items():
            target = folder / f"{name}-seed{seed}"
            placed = place(config, target, job.measure.metric, seed)
            header = f"{name} with seed {seed}, to be compared with others of this seed"
            entries[name, seed] = Entry(target, placed, header)
    with refusal_told(folder, None):
        folder.mkdir(parents=True, exist_ok=True)
    values: dict[tuple[str, int], float] = {}
    job.display.begin(f"train with {len(seeds)} seeds", len(entries))
    while len(values) < len(entries):
        before = len(values)
        for key, entry in entries.items():
            stop_if_told(job)
            if key not in values and (value := _train_once(job, entry)) is not None:
                values[key] = value
                job.display.note(f"{entry.folder.name}: {job.measure.metric} {value:.4g}")
                job.display.advance()
        if len(values) == before:  # others work on all that is left
            time.sleep(WAIT_S)
    job.display.end()
    return Comparison(
        winner=winner,
        seeds=tuple(seeds),
        default=tuple(values["default", seed] for seed in seeds),
        best=tuple(values[winner, seed] for seed in seeds),
        is_lower_better=job.measure.is_lower_better,
    )


def _train_once(job: Search, entry: Entry) -> float | None:
    """Return the number of a run, made where it is not there; None where another process works on it.

    Raises:
        TrainingError: The run failed.
        Stopped: This process was told to stop; the run is saved.
    """
    result = entry.folder.with_name(f"{entry.folder.name}.json")
    try:
        held = FileLock(entry.folder.with_name(f".{entry.folder.name}.lock")).acquire(timeout=0)
    except Timeout:
        return None
    with held:
        if result.is_file():
            return float(json.loads(result.read_text())["value"])
        training = Training(entry.config, entry.folder, entry.header)
        watch(job, training)
        value = job.measure.best(job.measure.read(entry.folder))
        if not training.is_finished or value is None:
            reason = training.failure() or "no epoch was evaluated"
            raise TrainingError(
                f"{entry.folder}: {reason}; mend that, and type the same again, which goes on with "
                "the study"
            )
        numbers = {"metric": job.measure.metric, "value": value}
        write_whole(result, json.dumps(numbers).encode())
        return value
