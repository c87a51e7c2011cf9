"""Tune a recipe: read the space, search it, repeat the winner over seeds, and write best.yaml and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import to_yaml
from vitrail.config.values import to_plain
from vitrail.display import Display
from vitrail.errors import ConfigError, Stopped, TrainingError, name_option, write_option
from vitrail.files import refusal_told, write_whole
from vitrail.migrate.given import Given
from vitrail.migrate.rules import format_value
from vitrail.migrate.search import TRIALS as THEIR_TRIALS
from vitrail.training.run.stop import Stop
from vitrail.tuning.compare import Comparison, compare
from vitrail.tuning.default_space import suggest_space
from vitrail.tuning.finalists import (
    MORE_SEEDS,
    Finalist,
    describe_number,
    find_winner,
    repeat_finalists,
)
from vitrail.tuning.outcome import Tuned
from vitrail.tuning.page import PAGE, render_study
from vitrail.tuning.process import Measure
from vitrail.tuning.record import describe_study, keep_study, read_study
from vitrail.tuning.search import Search, search
from vitrail.tuning.space import Space, list_grid, read_space
from vitrail.tuning.study import (
    Plan,
    Prune,
    Run,
    Sampler,
    Study,
    choose_rungs,
    require_optuna,
    study_lock,
)
from vitrail.tuning.subject import (
    Ground,
    Subject,
    check_space,
    find_ground,
    foreign_keys,
    has_drop_path,
    open_subject,
    read_own_space,
    read_space_file,
    refuse_model,
    show_start,
)

TRIALS = 30
"""Trials of a search where neither their number nor a time is given."""
BEST = "best.yaml"
"""Name of the winner's recipe in the study's folder."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a recipe is tuned."""

    space: Path | Mapping[str, Any] | None
    """File of the space, or the space itself; None takes that of the recipe's file, or chooses
    one."""
    study: Path | None
    """Folder of the study; None is tune-RECIPE in the folder of runs."""
    trials: int | None
    hours: float | None
    sampler: Sampler
    prune: Prune | None
    """None is median, and none where trials are lengthened."""
    finalists: int
    """Number of the best trials that are trained with more seeds before one is the winner."""
    seeds: int
    """Number of seeds that the winner and the recipe as it is are compared with."""
    extend: bool
    metric: str | None
    final: int
    """Number of seeds that both are trained whole with at the end."""


def tune(recipe: str | None, given: Given, options: Options, display: Display) -> Tuned:
    """Search the settings of a recipe, and compare the winner with the recipe as it is.

    Args:
        recipe: Name or file of a recipe; None is digits.
        given: Settings that are put over it.
        options: How it is tuned.
        display: Where progress is shown.

    Raises:
        ConfigError: A space, settings or a study that are not as they should be.
        DataError: The images are not there, or not as they should be.
        TrainingError: All trials failed, or the winner did with another seed.
        Stopped: A signal said so; the trial is saved, and the same command goes on.
    """
    require_optuna()

    # What is searched, and what is selected on
    subject = open_subject(recipe, given)
    refuse_model(subject)
    config = subject.configure({})
    name = subject.opened.name
    folder = options.study or Path(config.output.root) / f"tune-{name}"
    read_study(folder)
    subject, ground = find_ground(subject, options.metric)
    space, origin = choose_space(subject, options.space, ground.is_multi_label)
    check_space(subject, space, origin, extend=options.extend)
    plan = make_plan(subject, options)
    measure = Measure(ground.metric, ground.is_lower_better)

    if plan.sampler == "grid":
        list_grid(space)  # refused before there is a study of this space

    # The study
    with refusal_told(folder, None, f"choose another with {write_option('study')}"):
        folder.mkdir(parents=True, exist_ok=True)
    with study_lock(folder):
        keep_study(folder, describe_study(subject, space, ground, extend=options.extend))
    study = Study(folder, plan, space, subject.defaults(space), measure)
    show_start(display, ground)
    show_space(display, space, origin, subject)
    finish = partial(finish_study, subject, study, space, ground, measure)
    with Stop() as stop:
        job = Search(subject, study, measure, plan.trials, stop, display)
        finalists: tuple[Finalist, ...] = ()
        comparison = final = None
        try:
            search(job)
            finalists = repeat_finalists(job, options.finalists)
            winner = find_winner(study.runs(), measure, finalists)
            comparison = compare_winner(job, options, winner, whole=False)
            final = compare_winner(job, options, winner, whole=True)
        except (Stopped, TrainingError):  # what there is so far is not lost
            finish(finalists, comparison, final)
            raise
    return finish(finalists, comparison, final)


def choose_space(
    subject: Subject, given: Path | Mapping[str, Any] | None, is_multi_label: bool
) -> tuple[Space, str]:
    """Return the space, and where it comes from.

    Raises:
        ConfigError: It cannot be read, or is wrong.
    """
    if isinstance(given, Mapping):
        return read_space(given, "space", foreign_keys(subject)), "space"
    if given is not None:
        return read_space_file(given, foreign_keys(subject)), str(given)
    if (own := read_own_space(subject)) is not None:
        return own, subject.opened.name
    chosen = suggest_space(subject.configure({}), is_multi_label, has_drop_path(subject))
    given_keys = set()
    for section, content in subject.given.layer.values.items():
        given_keys |= {f"{section}.{key}" for key in content}
    # what was given is meant to stay
    left = {key: entry for key, entry in chosen.items() if key not in given_keys}
    origin = f"chosen for {subject.opened.name}"
    return read_space(left, origin), origin


def make_plan(subject: Subject, options: Options) -> Plan:
    """Return how the study searches.

    Raises:
        ConfigError: Options that do not go together.
    """
    config = subject.configure({})
    epochs = config.train.epochs + config.schedule.cooldown_epochs
    trials = options.trials
    if trials is None and options.hours is None and options.sampler != "grid":
        trials = THEIR_TRIALS if subject.shortened is not None else TRIALS
    prune: Prune = options.prune or ("none" if options.extend else "median")
    if options.extend and prune == "median":
        raise ConfigError(
            f"{write_option('extend', True)} and {write_option('prune', 'median')}: both end "
            "trials early, each by a rule of its own; drop one"
        )
    warmup = max(1, round(config.schedule.warmup_epochs), round(epochs / 10))
    return Plan(
        trials=trials,
        hours=options.hours,
        sampler=options.sampler,
        prune=prune,
        seed=config.train.seed,
        epochs=epochs,
        rungs=choose_rungs(epochs) if options.extend else (),
        warmup=warmup,
    )


def show_space(display: Display, space: Space, origin: str, subject: Subject) -> None:
    """Say what is searched."""
    defaults = subject.defaults(space)
    display.note(f"space, {origin}:")
    for dimension in space:
        now = format_value(to_plain(defaults[dimension.key]))
        display.note(f"  {dimension.key}: {dimension} (now {now})")


def compare_winner(
    job: Search, options: Options, winner: Run | None, *, whole: bool
) -> Comparison | None:
    """Train the winner beside the recipe as it is with new seeds, where that is asked for.

    Args:
        job: The study.
        options: How many seeds.
        winner: The best trial; None where none came to its end.
        whole: Whether both are trained as the whole recipe says, and not as trials are.

    Raises:
        TrainingError: One of the runs failed.
        Stopped: This process was told to stop; the run is saved.
    """
    count = options.final if whole else options.seeds
    if winner is None or winner.is_default or not count:
        return None
    # seeds that neither the search nor the choice among the best trials has seen
    first = job.subject.configure({}).train.seed + 1 + MORE_SEEDS
    if whole:
        first += options.seeds
    folder = job.study.folder / ("final" if whole else "seeds")
    configs = _configs(job.subject, winner, whole=whole)
    return compare(job, folder, winner.name, configs, range(first, first + count))


def _configs(subject: Subject, winner: Run, *, whole: bool) -> dict[str, TrainConfig]:
    """Return the settings of the recipe as it is, and of the winner."""
    return {
        "default": subject.configure({}, whole=whole),
        winner.name: subject.configure(winner.values, whole=whole),
    }


def finish_study(
    subject: Subject,
    study: Study,
    space: Space,
    ground: Ground,
    measure: Measure,
    finalists: tuple[Finalist, ...],
    comparison: Comparison | None,
    final: Comparison | None,
) -> Tuned:
    """Write the winner's recipe and the page of a study, finished or not."""
    runs = study.runs()
    winner = find_winner(runs, measure, finalists)
    recipe = None
    if winner is not None:
        recipe = study.folder / BEST
        values = {} if winner.is_default else winner.values
        value, seeds = describe_number(winner, measure, finalists)
        number = f"{ground.metric} {value:.4g} with {seeds}, on {ground.split}."
        header = describe_winner(subject, study.folder, number, winner)
        if comparison is not None:
            header += f"\n{comparison.verdict(ground.metric)}"
        try:
            config = subject.configure(values, whole=True)
        except ConfigError as error:
            config = subject.configure(values)
            header += (
                f"\nAs trials were trained, since its values do not suit the whole recipe: {error}"
            )
        config = replace(config, output=replace(config.output, name=None))
        write_whole(recipe, to_yaml(config, header).encode())
    tuned = Tuned(
        name=subject.opened.name,
        folder=study.folder,
        space=space,
        ground=ground,
        runs=tuple(runs),
        measure=measure,
        best=winner,
        finalists=finalists,
        comparison=comparison,
        final=final,
        importances=study.importances(),
        recipe=recipe,
        page=study.folder / PAGE,
    )
    write_whole(tuned.page, render_study(tuned))
    return tuned


def describe_winner(subject: Subject, folder: Path, number: str, winner: Run) -> str:
    """Return what stands above the settings of the winner's recipe."""
    what = "the recipe as it is" if winner.is_default else f"trial {winner.name}"
    lines = [
        f"The best of the study {folder}, {what}, of the recipe {subject.opened.name}.",
        number,
    ]
    lines += [f"  {key}: {found}" for key, found in winner.values.items()]
    return "\n".join(lines)


def check_options(options: Options) -> None:
    """Refuse numbers that are out of range.

    Raises:
        ConfigError: The first that is.
    """
    if options.trials is not None and options.trials < 1:
        raise ConfigError(f"{name_option('trials')} is {options.trials}; it must be at least 1")
    if options.hours is not None and not options.hours > 0:
        raise ConfigError(f"{name_option('hours')} is {options.hours}; it must be above 0")
    if options.finalists < 1:
        raise ConfigError(
            f"{name_option('finalists')} is {options.finalists}; it must be at least 1, which "
            "takes the best trial by its one seed"
        )
    for name, count in (("seeds", options.seeds), ("final", options.final)):
        if count != 0 and count < 2:
            raise ConfigError(
                f"{name_option(name)} is {count}; it must be 2 or more, for there to be an "
                "interval, or 0 to leave that out"
            )
