"""The winner of a search: the best few trials are trained with more seeds, since the best may be the luckiest."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vitrail.tuning.process import Measure
from vitrail.tuning.repeats import train_with_seeds
from vitrail.tuning.search import Search
from vitrail.tuning.study import Run

MORE_SEEDS = 2
"""Number of seeds that each of the best trials is trained with beside its own."""


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, with its number for each seed."""

    run: Run
    values: tuple[float, ...]
    """The metric with the seed of the search, and with each further one; the first alone where a
    further run failed."""
    failure: str
    """Why a further run failed; empty where none did."""

    @property
    def mean(self) -> float | None:
        """The mean over the seeds; None where a run failed."""
        return None if self.failure else statistics.fmean(self.values)


def rank_trials(runs: Sequence[Run], measure: Measure) -> list[Run]:
    """Return the trials that came to their end, the best first, and of equal ones the earliest."""
    whole = []
    for run in runs:
        value = measure.best(run.by_epoch)
        if run.state == "complete" and value is not None:
            whole.append((measure.rank(value), run.name, run))
    return [run for *_, run in sorted(whole, key=lambda one: one[:2])]


def repeat_finalists(job: Search, count: int) -> tuple[Finalist, ...]:
    """Train the best trials with more seeds, unless that is done, and return them, the best mean first.

    Args:
        job: The study.
        count: Number of trials that are looked at again; with 1 there is nothing to choose from,
            and none is.

    Raises:
        Stopped: This process was told to stop; the run is saved.
    """
    best = rank_trials(job.study.runs(), job.measure)[:count]
    if len(best) < 2:
        return ()
    first = job.subject.configure({}).train.seed + 1
    configs = {run.name: job.subject.configure(run.values) for run in best}
    failures: dict[str, str] = {}
    folder = job.study.folder / "finalists"
    seeds = range(first, first + MORE_SEEDS)
    more = train_with_seeds(job, folder, configs, seeds, failures)
    finalists = []
    for run in best:
        value = job.measure.best(run.by_epoch)
        assert value is not None
        values = (value, *more.get(run.name, ()))
        finalists.append(Finalist(run, values, failures.get(run.name, "")))
    finalists.sort(key=lambda one: _rank(one, job.measure))  # of equal ones the better trial
    return tuple(finalists)


def _rank(finalist: Finalist, measure: Measure) -> tuple[bool, float]:
    """Return what is lower for a better one; those of which a run failed come last."""
    if finalist.mean is None:
        return True, 0.0
    return False, measure.rank(finalist.mean)


def find_winner(
    runs: Sequence[Run], measure: Measure, finalists: Sequence[Finalist] = ()
) -> Run | None:
    """Return the best trial, by its mean over seeds where that is known; None where none ended."""
    if finalists:
        return finalists[0].run
    return next(iter(rank_trials(runs, measure)), None)


def describe_number(
    winner: Run, measure: Measure, finalists: Sequence[Finalist]
) -> tuple[float | None, str]:
    """Return the number of the winner, and of how many seeds it is."""
    if finalists and finalists[0].mean is not None:
        return finalists[0].mean, f"{len(finalists[0].values)} seeds"
    return measure.best(winner.by_epoch), "one seed"
