"""What came of a search: its trials, the winner among them, and how that compares with the recipe as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitrail.tuning.compare import Comparison
from vitrail.tuning.process import Measure
from vitrail.tuning.space import Space
from vitrail.tuning.study import Run
from vitrail.tuning.subject import Ground


@dataclass(frozen=True)
class Tuned:
    """What came of a search."""

    name: str
    """Name of the recipe."""
    folder: Path
    space: Space
    ground: Ground
    runs: tuple[Run, ...]
    measure: Measure
    best: Run | None
    """The winner; None where no trial came to its end."""
    comparison: Comparison | None
    """The winner beside the recipe as it is; None where that is the winner itself, or none is."""
    final: Comparison | None
    """Both trained whole; None where that was not asked for."""
    importances: Mapping[str, float]
    """Share of each setting in the differences between whole trials; empty where there are too
    few."""
    recipe: Path | None
    """The winner's recipe."""
    page: Path


def find_winner(runs: Sequence[Run], measure: Measure) -> Run | None:
    """Return the trial with the best number among those that came to their end; of equal ones the earliest."""
    whole = []
    for run in runs:
        value = measure.best(run.by_epoch)
        if run.state == "complete" and value is not None:
            whole.append((measure.rank(value), run.name, run))
    return min(whole, key=lambda one: one[:2])[2] if whole else None
