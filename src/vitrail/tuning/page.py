"""The page of a study: its verdict, the course of the search, importances, parallel coordinates and every trial."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitrail.config.values import to_plain
from vitrail.migrate.rules import format_value
from vitrail.pages.render import render
from vitrail.pages.study_charts import Axis, Trial, draw_history, draw_parallel
from vitrail.tuning.compare import Comparison
from vitrail.tuning.finalists import describe_number
from vitrail.tuning.outcome import Tuned
from vitrail.tuning.space import Dimension
from vitrail.tuning.study import Run

PAGE = "study.html"
"""Name of the page in the study's folder."""


@dataclass(frozen=True)
class Row:
    """A trial in the table."""

    name: str
    state: str
    value: str
    epochs: str
    seconds: str
    cells: Sequence[str]
    """The settings, in the order of the space."""
    remark: str
    is_best: bool


def render_study(tuned: Tuned) -> bytes:
    """Return the page of a study, which needs no network."""
    trials = [_to_trial(tuned, run) for run in tuned.runs]
    is_lower_better = tuned.measure.is_lower_better
    metric = tuned.measure.metric
    axes = [_to_axis(dimension) for dimension in tuned.space]
    return render(
        "study.html",
        name=tuned.folder.name,
        recipe=tuned.name,
        metric=metric,
        split=tuned.ground.split,
        verdict=tell_verdict(tuned),
        tiles=_tiles(tuned),
        finalist_columns=finalist_columns(tuned),
        finalists=finalist_rows(tuned),
        comparisons=_comparisons(tuned),
        history=draw_history(trials, is_lower_better=is_lower_better),
        importances=tuned.importances,
        whole=sum(trial.is_whole for trial in trials),
        parallel=draw_parallel(trials, axes, metric, is_lower_better=is_lower_better),
        keys=[dimension.key for dimension in tuned.space],
        rows=trial_rows(tuned),
        space={dimension.key: str(dimension) for dimension in tuned.space},
    )


def tell_verdict(tuned: Tuned) -> str:
    """Say in a sentence what came of the search."""
    best = tuned.best
    if best is None:
        failed = [
            f"; the latest that failed, {run.name}: {run.reason}"
            for run in tuned.runs
            if run.reason
        ]
        return f"No trial has been trained to its end yet{failed[-1] if failed else ''}."
    if best.is_default:
        return (
            "No trial was better than the recipe as it is, so there was nothing to compare with "
            "more seeds."
        )
    if tuned.comparison is not None:
        verdict = tuned.comparison.verdict(tuned.measure.metric)
        return f"{verdict[0].upper()}{verdict[1:]}."
    _, seeds = describe_number(best, tuned.measure, tuned.finalists)
    return (
        f"Trial {best.name} is the best with {seeds}, which does not show yet that it is better "
        "than the recipe as it is."
    )


def _tiles(tuned: Tuned) -> list[tuple[str, str, str]]:
    """Return the numbers at the top."""
    states = [run.state for run in tuned.runs]
    hours = sum(run.seconds for run in tuned.runs) / 3600
    lost = states.count("lost")
    note = f"{lost:,} of them lost with the process" if lost else ""
    early = len([state for state in states if state in ("pruned", "paused", "out of time")])
    tiles = [
        ("Trials", f"{len(states):,}", f"{hours:.2f} hours of training"),
        ("Whole", f"{states.count('complete'):,}", "trained to their end"),
        ("Ended early", f"{early:,}", "for being worse than others, or for time"),
        ("Failed", f"{states.count('failed') + lost:,}", note),
    ]
    if tuned.best is not None:
        value, seeds = describe_number(tuned.best, tuned.measure, tuned.finalists)
        tiles.append((tuned.measure.metric, f"{value:.4g}", f"trial {tuned.best.name}, {seeds}"))
    return tiles


def finalist_columns(tuned: Tuned) -> tuple[str, ...]:
    """Return the titles of the table of the best trials with more seeds."""
    count = max((len(one.values) for one in tuned.finalists), default=1)
    more = [f"seed {number} more" for number in range(1, count)]
    return ("trial", "seed of the search", *more, "mean")


def finalist_rows(tuned: Tuned) -> list[tuple[str, ...]]:
    """Return the best trials with more seeds as texts, the winner first."""
    width = len(finalist_columns(tuned)) - 2
    rows = []
    for one in tuned.finalists:
        cells = [f"{value:.4g}" for value in one.values]
        cells += ["-"] * (width - len(cells))
        name = f"{one.run.name}, the recipe as it is" if one.run.is_default else one.run.name
        mean = "failed" if one.mean is None else f"{one.mean:.4g}"
        rows.append((name, *cells, mean))
    return rows


def _comparisons(tuned: Tuned) -> list[tuple[str, list[tuple[str, ...]]]]:
    """Return the numbers by seed of what was compared."""
    metric = tuned.measure.metric
    tables = []
    titles = {
        "Both with new seeds, as trials are trained": tuned.comparison,
        "Both with new seeds, trained as the whole recipe says": tuned.final,
    }
    for title, comparison in titles.items():
        if comparison is not None:
            tables.append((f"{title}: {metric}", compared_rows(comparison)))
    return tables


def compared_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """Return a row a seed, and the means with their spread."""
    rows = []
    numbers = zip(
        comparison.seeds, comparison.default, comparison.best, comparison.gains, strict=True
    )
    for seed, default, best, gain in numbers:
        rows.append((str(seed), f"{default:.4g}", f"{best:.4g}", f"{gain:+.3g}"))
    spreads = [
        f"{statistics.fmean(values):.4g} (standard deviation {statistics.stdev(values):.2g})"
        for values in (comparison.default, comparison.best)
    ]
    gain = f"{comparison.gain:+.3g}, {comparison.gain - comparison.margin:+.3g} to "
    rows.append(("mean", *spreads, f"{gain}{comparison.gain + comparison.margin:+.3g}"))
    return rows


def trial_rows(tuned: Tuned) -> list[Row]:
    """Return the trials as texts."""
    rows = []
    for run in tuned.runs:
        value = tuned.measure.best(run.by_epoch)
        cells = []
        for dimension in tuned.space:
            has_value = dimension.key in run.values
            cells.append(_show(run.values[dimension.key]) if has_value else "")
        remark = "the recipe as it is" if run.is_default else ""
        if run.reason:
            remark = f"{remark}; {run.reason}" if remark else run.reason
        rows.append(
            Row(
                name=run.name,
                state=run.state,
                value="-" if value is None else f"{value:.4g}",
                epochs=str(max(run.by_epoch, default=0)),
                seconds=f"{run.seconds:.0f}",
                cells=cells,
                remark=remark,
                is_best=tuned.best is not None and run.name == tuned.best.name,
            )
        )
    return rows


def _show(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else format_value(to_plain(value))


def _to_trial(tuned: Tuned, run: Run) -> Trial:
    return Trial(
        name=run.name,
        value=tuned.measure.best(run.by_epoch),
        is_whole=run.state == "complete",
        is_best=tuned.best is not None and run.name == tuned.best.name,
        values=run.values,
    )


def _to_axis(dimension: Dimension) -> Axis:
    return Axis(
        dimension.key,
        choices=dimension.choices,
        low=dimension.low,
        high=dimension.high,
        log=dimension.log,
    )
