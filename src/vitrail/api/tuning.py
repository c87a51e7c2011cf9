"""Tuning from Python: search the settings of a recipe, and compare the winner with the recipe over several seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vitrail.api.arguments import checked, read_argument
from vitrail.api.options import path_or_none, read_settings, shown, tell_remarks
from vitrail.api.results import Result, Table, first_rows, rows_left_out
from vitrail.config.resolve import find_excess
from vitrail.display import Display
from vitrail.distributed.launch import count_processes
from vitrail.errors import ConfigError, command, name_option, shorten
from vitrail.migrate.given import Settings
from vitrail.migrate.recipes import open_recipe

if TYPE_CHECKING:
    from vitrail.tuning.compare import Comparison
    from vitrail.tuning.outcome import Tuned


@dataclass(frozen=True)
class TrialResult:
    """A trial of a search, which is a run of its own."""

    name: str
    folder: Path
    """Folder of the run, which can be resumed and opened; its best weights are best.safetensors."""
    state: str
    """How it ended: complete, pruned, paused, out of time, failed, lost, interrupted; or running."""
    value: float | None
    """The metric of its best epoch; None where none was evaluated."""
    epochs: int
    """Epochs that were evaluated."""
    seconds: float
    settings: dict[str, Any]
    """Settings that were tried, by their keys."""
    is_default: bool
    """Whether it is the recipe as it is."""
    reason: str
    """Why it failed; empty where it did not."""


@dataclass(frozen=True)
class FinalistResult:
    """One of the best trials, trained with more seeds."""

    name: str
    """Name of the trial."""
    values: tuple[float, ...]
    """The metric with the seed of the search, and with each further one."""
    mean: float | None
    """The mean over the seeds; None where a run failed."""
    failure: str
    """Why a further run failed; empty where none did."""


@dataclass(frozen=True)
class Gain(Result):
    """The winner beside the recipe as it is, both trained with the same new seeds."""

    metric: str
    seeds: tuple[int, ...]
    default: tuple[float, ...]
    """The metric of the recipe as it is, by seed."""
    best: tuple[float, ...]
    """The metric of the winner, by seed."""
    gain: float
    """The mean of the winner's gains; above 0 is better."""
    margin: float
    """Half of the gain's interval of 95 %, by Student's t for paired differences."""
    is_better: bool
    """Whether the whole interval is above 0."""
    rows: tuple[tuple[str, ...], ...]
    """The numbers as texts, a row a seed, and the means."""

    def tables(self) -> Sequence[Table]:
        """Return a row a seed, and the means."""
        columns = ("seed", "the recipe as it is", "the winner", "gain")
        return [Table(self.metric, columns, self.rows)]

    def records(self) -> Sequence[dict[str, Any]]:
        """Return a row a seed."""
        names = ("seed", "default", "best")
        numbers = zip(self.seeds, self.default, self.best, strict=True)
        return [dict(zip(names, row, strict=True)) for row in numbers]


@dataclass(frozen=True)
class TuneResult(Result):
    """What came of a search: its trials, the winner, and how that compares with the recipe as it is."""

    folder: Path
    """Folder of the study, which the same command goes on with."""
    metric: str
    """Number by which trials are compared."""
    split: str
    """Images that were selected on."""
    trials: tuple[TrialResult, ...]
    best: TrialResult | None
    """The winner; None where no trial came to its end."""
    finalists: tuple[FinalistResult, ...]
    """The best trials with more seeds, the winner first; none where there was nothing to choose."""
    comparison: Gain | None
    """The winner with several seeds; None where the recipe as it is won, or that was left out."""
    final: Gain | None
    """Both trained as the whole recipe says; None where that was not asked for."""
    verdict: str
    """What came of the search, in a sentence."""
    recipe: Path | None
    """The winner's recipe, best.yaml; None where there is no winner."""
    page: Path
    """Page of the study."""
    shown: Table
    """The trials as texts, the best first."""
    repeated: Table | None
    """The best trials with more seeds as texts."""

    def tables(self) -> Sequence[Table]:
        """Return the trials, the best first, and what was compared."""
        rows = tuple(first_rows(self.shown.rows))
        tables = [Table(self.shown.title, self.shown.columns, rows)]
        if self.repeated is not None:
            tables.append(self.repeated)
        for gain in (self.comparison, self.final):
            if gain is not None:
                tables += gain.tables()
        return tables

    def lines(self) -> Sequence[str]:
        """Say what came of it, and what to type next."""
        lines = [*rows_left_out(len(self.trials)), self.verdict, f"page: {self.page}"]
        if self.recipe is not None:
            lines.append(f"next: {command('train', self.recipe)}")
        if self.best is not None:
            weights = self.best.folder / "best.safetensors"
            lines.append(f"      {command('evaluate', weights)}")
        return lines

    def records(self) -> Sequence[dict[str, Any]]:
        """Return a row a trial."""
        return [
            {
                "trial": trial.name,
                "state": trial.state,
                self.metric: trial.value,
                "epochs": trial.epochs,
                "seconds": trial.seconds,
                **trial.settings,
            }
            for trial in self.trials
        ]


@checked
def tune(
    recipe: str | Path | None = None,
    settings: Settings | None = None,
    *,
    space: str | Path | Mapping[str, Any] | None = None,
    study: str | Path | None = None,
    trials: int | None = None,
    hours: float | None = None,
    sampler: Literal["tpe", "random", "grid"] = "tpe",
    prune: Literal["median", "none"] | None = None,
    finalists: int = 3,
    seeds: int = 3,
    extend: bool = False,
    metric: str | None = None,
    final: int = 0,
    display: Display | None = None,
    progress: bool = True,
    **sections: Any,
) -> TuneResult:
    """Search the settings of a recipe; each trial is a run, and the winner is tried with several seeds.

    `vitrail.tune("digits", space={"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}}, trials=20)`
    does what `vitrail tune digits space.yaml --trials 20` does.

    Args:
        recipe: Name or file of a recipe, of MindSpore's optimize.yaml too; None is digits.
        settings: Settings that go before the recipe's, and are not searched.
        space: File of the space, or a mapping of keys to lists of values or ranges; None takes that
            of the recipe's file, or chooses one.
        study: Folder of the study, begun or gone on with; None is tune-RECIPE in output.root.
        trials: Number of trials; None is 30, or no limit where hours are given.
        hours: Hours of training of all trials together; None is no limit.
        sampler: How values are drawn: tpe learns from the trials before, random does not, grid
            takes every combination.
        prune: Whether trials that are worse than the median of those before are ended early; None
            is median, and none with extend.
        finalists: Number of the best trials that are trained with two more seeds each; the best
            mean wins. 1 takes the best trial by its one seed.
        seeds: Number of new seeds that the winner and the recipe as it is are compared with; 0
            leaves that out.
        extend: Begin trials with a ninth of the epochs, and let the best third go on, by exact
            resume.
        metric: Number of an epoch to select by, such as val_loss; None is the recipe's
            train.monitor.
        final: Number of seeds to train the winner and the recipe with at the end, as the whole
            recipe says; 0 leaves that out.
        display: Where progress is shown; None is the terminal or notebook.
        progress: Whether progress is shown in a terminal or notebook.
        sections: Settings by section, such as optim={"lr": 1e-3}.

    Raises:
        ConfigError: A space, settings or a study that are not as they should be.
        DataError: The images are not there, or not as they should be.
        MissingExtra: Optuna is not installed.
        TrainingError: All trials failed, or the winner did with another seed.
        Stopped: A signal said so; the trial is saved, and the same call goes on.
    """
    given = read_settings(tune, settings, sections)
    name = None if recipe is None else str(recipe)
    _refuse_processes()

    from vitrail.tuning.subject import refuse_space
    from vitrail.tuning.tune import Options, check_options
    from vitrail.tuning.tune import tune as run

    options = Options(
        space=_read_space(space),
        study=path_or_none(study),
        trials=trials,
        hours=hours,
        sampler=sampler,
        prune=prune,
        finalists=finalists,
        seeds=seeds,
        extend=extend,
        metric=metric,
        final=final,
    )
    check_options(options)
    refuse_space(name)
    with shown(display, progress) as display:
        translation = open_recipe(name, given.keys, {}).translation
        if translation is not None:
            tell_remarks(display, translation.remarks())
        return _to_result(run(name, given, options, display))


def _read_space(space: Any) -> Path | Mapping[str, Any] | None:
    """Return the file of a space, or the space itself.

    Raises:
        ConfigError: It is neither.
    """
    if isinstance(space, Mapping):
        if excess := find_excess(space):
            raise ConfigError(f"{name_option('space')}: {excess}, which no space is")
        return space
    try:
        return path_or_none(read_argument(space, str | Path | None))
    except ValueError:
        raise ConfigError(
            f"{name_option('space')} is {shorten(space)}; it must be a file, or a mapping of settings "
            "to lists of values or ranges"
        ) from None


def _refuse_processes() -> None:
    """Refuse to search in several processes that torchrun started, where each would make the same trials.

    Raises:
        ConfigError: torchrun has started several.
    """
    if count_processes() > 1:
        raise ConfigError(
            "tune starts its trials itself, one at a time; instead of torchrun, start "
            f"`{command('tune')}` once for each GPU, with CUDA_VISIBLE_DEVICES and the same study"
        )


def _to_result(tuned: Tuned) -> TuneResult:
    """Return what came of a search as plain values."""
    from vitrail.tuning.page import tell_verdict

    trials = []
    for run in tuned.runs:
        trials.append(
            TrialResult(
                name=run.name,
                folder=tuned.folder / "trials" / run.name,
                state=run.state,
                value=tuned.measure.best(run.by_epoch),
                epochs=max(run.by_epoch, default=0),
                seconds=run.seconds,
                settings=dict(run.values),
                is_default=run.is_default,
                reason=run.reason,
            )
        )
    best = None
    if tuned.best is not None:
        best = next(trial for trial in trials if trial.name == tuned.best.name)
    return TuneResult(
        folder=tuned.folder,
        metric=tuned.measure.metric,
        split=tuned.ground.split,
        trials=tuple(trials),
        best=best,
        finalists=tuple(
            FinalistResult(one.run.name, one.values, one.mean, one.failure)
            for one in tuned.finalists
        ),
        comparison=_to_gain(tuned.comparison, f"{tuned.measure.metric} with new seeds"),
        final=_to_gain(tuned.final, f"{tuned.measure.metric} of the whole recipe"),
        verdict=tell_verdict(tuned),
        recipe=tuned.recipe,
        page=tuned.page,
        shown=_table(tuned),
        repeated=_repeated_table(tuned),
    )


def _to_gain(comparison: Comparison | None, metric: str) -> Gain | None:
    from vitrail.tuning.page import compared_rows

    if comparison is None:
        return None
    return Gain(
        metric=metric,
        seeds=comparison.seeds,
        default=comparison.default,
        best=comparison.best,
        gain=comparison.gain,
        margin=comparison.margin,
        is_better=comparison.is_better,
        rows=tuple(compared_rows(comparison)),
    )


def _table(tuned: Tuned) -> Table:
    """Return the trials as a table, the best first, and those without a number last."""
    from vitrail.tuning.page import trial_rows

    keys = [dimension.key for dimension in tuned.space]
    columns = ("trial", "state", tuned.measure.metric, "epochs", "seconds", *keys, "remark")
    ranked = []
    for run, row in zip(tuned.runs, trial_rows(tuned), strict=True):
        value = tuned.measure.best(run.by_epoch)
        rank = (value is None, run.state != "complete", tuned.measure.rank(value or 0.0))
        cells = (row.name, row.state, row.value, row.epochs, row.seconds, *row.cells, row.remark)
        ranked.append((rank, cells))
    ranked.sort(key=lambda one: one[0])
    return Table(str(tuned.folder), columns, tuple(cells for _, cells in ranked))


def _repeated_table(tuned: Tuned) -> Table | None:
    """Return the best trials with more seeds as a table; None where there are none."""
    from vitrail.tuning.page import finalist_columns, finalist_rows

    if not tuned.finalists:
        return None
    columns = finalist_columns(tuned)
    return Table(f"{tuned.measure.metric} of the best", columns, tuple(finalist_rows(tuned)))
