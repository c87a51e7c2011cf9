"""What came of a search: its trials, the winner among them, and how that compares with the recipe as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vitrail.tuning.compare import Comparison
from vitrail.tuning.finalists import Finalist
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
    finalists: tuple[Finalist, ...]
    """The best trials with more seeds, the winner first; none where they were not looked at again."""
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
