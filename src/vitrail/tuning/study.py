"""The study in Optuna: trials in a journal that processes share by a path, taken one by one under a lock."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from vitrail.config.values import to_plain
from vitrail.errors import CheckpointError, ConfigError, MissingExtra, name_option, write_option
from vitrail.files import refusal_told
from vitrail.tuning.journal import Journal
from vitrail.tuning.process import Measure
from vitrail.tuning.space import Dimension, Space, encode, list_grid

Sampler = Literal["tpe", "random", "grid"]
Prune = Literal["median", "none"]
State = Literal[
    "complete", "pruned", "paused", "out of time", "failed", "lost", "interrupted", "running"
]
KEEP = 3
"""One trial in so many goes on where trials are lengthened step by step."""
NAME = "vitrail"
"""Name of the study in its journal."""
FEWEST_WHOLE = 5
"""Trials trained to their end from which on importances are told."""
FIRST_PRUNED = 5
"""Trials before any is ended for being worse than the median of those before."""


@dataclass(frozen=True)
class Plan:
    """How a study searches, and when it ends."""

    trials: int | None
    """Number of trials; None is no limit."""
    hours: float | None
    """Hours of training of all trials together; None is no limit."""
    sampler: Sampler
    prune: Prune
    seed: int
    """Seed of the sampler, which follows from it and the number of the trial."""
    epochs: int
    """Epochs of a whole trial."""
    rungs: tuple[int, ...]
    """Epochs at which trials are compared and the better ones go on; empty trains each whole."""
    warmup: int
    """Epochs before any trial is ended early."""


@dataclass(frozen=True)
class Run:
    """A trial, which is a run that may have been gone on with several times."""

    name: str
    """Name of its folder."""
    state: State
    is_default: bool
    """Whether it is the recipe as it is."""
    values: Mapping[str, Any]
    """Values of the settings that were tried."""
    by_epoch: Mapping[int, float]
    """The metric of each epoch that was evaluated."""
    seconds: float
    reason: str
    """Why it failed; empty where it did not."""
    target: int | None
    """Epoch up to which it was trained; None is to its end."""
    number: int
    """Number of its latest trial in Optuna."""


@dataclass(frozen=True)
class Task:
    """A trial that this process has taken."""

    trial: Any
    """Trial of Optuna, to which numbers are reported."""
    name: str
    """Name of its folder."""
    values: Mapping[str, Any]
    """Values to train with; none is the recipe as it is."""
    is_default: bool
    target: int | None
    """Epoch up to which it is trained; None is to its end."""
    seconds: float | None
    """Seconds that it may take; None is no limit."""
    lock: FileLock
    """Held as long as this process works on it."""


class Study:
    """Trials that are shared by all processes that work on the same folder.

    Args:
        folder: Folder of the study.
        plan: How it searches.
        space: The settings that are searched.
        defaults: What the recipe has for them.
        measure: How good a run is.

    Raises:
        MissingExtra: Optuna is not installed.
        CheckpointError: The folder cannot be written, or its journal cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        plan: Plan,
        space: Space,
        defaults: Mapping[str, Any],
        measure: Measure,
    ) -> None:
        require_optuna()
        self.folder = folder
        self.trials = folder / "trials"
        self._plan = plan
        self._space = space
        self._defaults = defaults
        self._measure = measure
        self._grid = list_grid(space) if plan.sampler == "grid" else []
        self._held: set[int] = set()
        with refusal_told(folder, None, f"choose another with {write_option('study')}"):
            self.trials.mkdir(parents=True, exist_ok=True)
        self.lock = study_lock(folder)
        with self.lock:
            self._study = self._open()

    def _open(self) -> Any:
        """Open or create the study in its journal."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        journal = self.folder / "journal.log"
        pruner: Any = optuna.pruners.NopPruner()
        if self._plan.prune == "median":
            pruner = optuna.pruners.MedianPruner(FIRST_PRUNED, self._plan.warmup)
        try:
            backend: Any = Journal(journal)
            self._storage = optuna.storages.JournalStorage(backend)
            return optuna.create_study(
                storage=self._storage,
                study_name=NAME,
                direction="minimize" if self._measure.is_lower_better else "maximize",
                pruner=pruner,
                load_if_exists=True,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{journal}: is damaged, so that its trials cannot be read; give another folder "
                f"with {name_option('study')}"
            ) from error

    @property
    def optuna(self) -> Any:
        """The study of Optuna."""
        return self._study

    # Taking trials

    def take(self) -> tuple[Task | None, int]:
        """Take the next trial, unless there is none to take now or any more.

        Returns:
            The trial, and the number of trials that other processes work on.
        """
        with self.lock:
            self._mark_lost()
            runs = self.runs()
            running = [run for run in runs if run.state == "running"]
            left = self._seconds_left(runs)
            if left is not None and left <= 0:
                return None, len(running)
            if not self._enqueue_next(runs, len(running)):
                return None, len(running)
            seconds = None if left is None else left / (len(running) + 1)
            return self._ask(f"{len(runs):04d}", seconds), len(running)

    def _ask(self, new: str, seconds: float | None) -> Task:
        """Take the trial that waits, or one that the sampler draws; `new` is the name of one that is new."""
        self._study.sampler = self._sampler(len(self._study.get_trials(deepcopy=False)))
        trial = self._study.ask()
        attributes = trial.user_attrs
        name = attributes.get("run")
        if name is None:
            name = new
            trial.set_user_attr("run", name)
        lock = self._lock_of(name)
        lock.acquire(timeout=0)
        self._held.add(trial.number)
        is_default = attributes.get("default", False)
        values = self._suggest(trial, is_default)
        target = attributes.get("target")
        if target is None and self._plan.rungs and not is_default:
            target = self._plan.rungs[0]
        if target is not None:
            trial.set_user_attr("target", target)
        return Task(
            trial=trial,
            name=name,
            values={} if is_default else values,
            is_default=is_default,
            target=None if target == self._plan.epochs else target,
            seconds=seconds,
            lock=lock,
        )

    def _enqueue_next(self, runs: Sequence[Run], running: int) -> bool:
        """Line up what is to be trained next, where that is not drawn; say whether there is anything."""
        if self._waiting():
            return True
        if not any(run.is_default and run.state != "lost" for run in runs):
            fixed = {}
            for dimension in self._space:
                value = self._defaults[dimension.key]
                if dimension.is_active(fixed) and dimension.holds(value):
                    fixed[dimension.key] = value
            self._enqueue(fixed, {"default": True})
            return True
        limit = self._plan.trials
        is_full = limit is not None and len(runs) >= limit
        point = None
        if self._grid:
            tried = [run.values for run in runs]
            point = next((one for one in self._grid if one not in tried), None)
            is_full = is_full or point is None
        if self._plan.rungs and self._promote(runs, is_last=is_full and not running):
            return True
        if is_full:
            return False
        if point is not None:
            self._enqueue(point, {})
        return True

    def _promote(self, runs: Sequence[Run], *, is_last: bool) -> bool:
        """Let the best of those that wait at an epoch go on, from the latest epoch down; False where none may.

        Args:
            runs: All trials.
            is_last: Whether nothing more will come to an epoch, so that the best of few goes on
                too.
        """
        rungs = self._plan.rungs
        for level in reversed(range(len(rungs) - 1)):
            rung = rungs[level]
            reached = []
            for run in runs:
                is_there = max(run.by_epoch, default=0) >= rung and run.state != "failed"
                value = self._measure.best(run.by_epoch, rung)
                if is_there and value is not None and not run.is_default:
                    reached.append((self._measure.rank(value), run.name, run))
            count = len(reached) // KEEP
            if is_last and reached:
                count = max(count, 1)
            for _, _, run in sorted(reached, key=lambda one: one[:2])[:count]:
                if run.state == "paused" and run.target == rung:
                    self.go_on(run, rungs[level + 1])
                    return True
        return False

    def go_on(self, run: Run, target: int | None) -> None:
        """Line up a run to be gone on with, up to an epoch or to its end."""
        attributes: dict[str, Any] = {"run": run.name, "continues": run.number, "target": target}
        if run.is_default:
            attributes["default"] = True
        fixed = {key: value for key, value in run.values.items() if self._is_searched(key, value)}
        self._enqueue(fixed, attributes)

    def _is_searched(self, key: str, value: Any) -> bool:
        return any(one.key == key and one.holds(value) for one in self._space)

    def _enqueue(self, values: Mapping[str, Any], attributes: Mapping[str, Any]) -> None:
        encoded = {key: encode(value) for key, value in values.items()}
        self._study.enqueue_trial(encoded, user_attrs=dict(attributes))

    def _waiting(self) -> list[Any]:
        return [one for one in self._all() if one.state.name == "WAITING"]

    def _all(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False)

    def _sampler(self, number: int) -> Any:
        """Return the sampler of a trial; what it draws follows from the seed and the number, and the trials before."""
        import optuna

        digest = hashlib.sha256(f"{self._plan.seed}/{number}".encode()).digest()
        seed = int.from_bytes(digest[:4], "big")
        if self._plan.sampler == "tpe":
            startup = 10
            if self._plan.trials is not None:
                startup = max(3, min(10, self._plan.trials // 3))
            return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
        return optuna.samplers.RandomSampler(seed=seed)

    def _suggest(self, trial: Any, is_default: bool) -> dict[str, Any]:
        """Return the values of a trial; of the default those that lie in the space, as the sampler learns from them."""
        values: dict[str, Any] = {}
        for dimension in self._space:
            if not dimension.is_active(values):
                continue
            if is_default and not dimension.holds(self._defaults[dimension.key]):
                continue
            values[dimension.key] = suggest(trial, dimension)
        return values

    def _seconds_left(self, runs: Sequence[Run]) -> float | None:
        """Return the seconds of training that are left; None where there is no limit."""
        if self._plan.hours is None:
            return None
        used = sum(run.seconds for run in runs)
        for trial in self._all():
            if trial.state.name == "RUNNING":
                used += (datetime.now() - trial.datetime_start).total_seconds()
        return 3600 * self._plan.hours - used

    def _lock_of(self, name: str) -> FileLock:
        return FileLock(self.trials / f".{name}.lock")

    def _mark_lost(self) -> None:
        """Note trials as failed whose process has ended without a word, as the system let go of their lock."""
        for trial in self._all():
            if trial.state.name != "RUNNING" or trial.number in self._held:
                continue
            lock = self._lock_of(name_run(trial))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                seconds = self._seconds_trained(trial)
                self._storage.set_trial_user_attr(trial._trial_id, "seconds", seconds)
                self._end(trial.number, trial._trial_id, "lost", "its process has ended")
            finally:
                lock.release()

    def _seconds_trained(self, trial: Any) -> float:
        """Return how long a trial was trained whose process cannot tell any more, by the last word of its log."""
        log = self.trials / f"{name_run(trial)}.log"
        try:
            last = log.stat().st_mtime
        except FileNotFoundError:  # its training had not been started
            return 0.0
        return max(0.0, last - trial.datetime_start.timestamp())

    # Ending trials

    def report(self, task: Task, epoch: int, value: float) -> bool:
        """Take note of an epoch's number; say whether the trial is to be ended for being worse than others."""
        known = self._all()[task.trial.number].intermediate_values
        if epoch not in known:
            task.trial.report(value, epoch)
        return not task.is_default and task.trial.should_prune()

    def complete(self, task: Task, value: float, seconds: float) -> None:
        """Note a trial as trained to its end, with its best number."""
        with self._ending(task, seconds):
            self._study.tell(task.trial, value)

    def end_early(
        self, task: Task, why: Literal["pruned", "paused", "out of time"], seconds: float
    ) -> None:
        """Note a trial as ended before its end; it is saved, and can be gone on with."""
        import optuna

        with self._ending(task, seconds):
            task.trial.set_user_attr("ended", why)
            self._study.tell(task.trial, state=optuna.trial.TrialState.PRUNED)

    def fail(self, task: Task, reason: str, seconds: float) -> None:
        """Note a trial as failed, and why."""
        with self._ending(task, seconds):
            self._end(task.trial.number, task.trial._trial_id, "failed", reason)

    def interrupt(self, task: Task, seconds: float) -> None:
        """Note a trial as interrupted; whoever goes on with the study goes on with it first."""
        with self._ending(task, seconds):
            self._end(task.trial.number, task.trial._trial_id, "interrupted", "")
            run = next(run for run in self.runs() if run.name == task.name)
            self.go_on(run, task.target)

    def _end(self, number: int, identity: int, why: State, reason: str) -> None:
        import optuna

        self._storage.set_trial_user_attr(identity, "ended", why)
        self._storage.set_trial_user_attr(identity, "reason", reason)
        self._study.tell(number, state=optuna.trial.TrialState.FAIL)

    @contextmanager
    def _ending(self, task: Task, seconds: float) -> Iterator[None]:
        """Note how a trial ends and let go of it in one step, within which no other process looks.

        One that did would take it for lost, or go on with it while it is held.
        """
        with self.lock:
            task.trial.set_user_attr("seconds", seconds)
            yield
            self._held.discard(task.trial.number)
            task.lock.release()

    # Looking

    def runs(self) -> list[Run]:
        """Return the trials, each once, in the order in which they began."""
        by_name: dict[str, list[Any]] = {}
        for trial in self._all():
            if "run" in trial.user_attrs or trial.state.name != "WAITING":
                by_name.setdefault(name_run(trial), []).append(trial)
        runs = []
        for name, trials in by_name.items():
            # one that waits to be gone on with is what it was
            begun = [trial for trial in trials if trial.state.name != "WAITING"]
            runs.append(self._describe(name, begun))
        return runs

    def _describe(self, name: str, trials: Sequence[Any]) -> Run:
        """Return a run by the trials that it is made of."""
        last = trials[-1]
        by_epoch: dict[int, float] = {}
        for trial in trials:
            by_epoch |= trial.intermediate_values
        is_default = last.user_attrs.get("default", False)
        values: dict[str, Any] = {}
        for dimension in self._space:
            if dimension.key in last.params:
                values[dimension.key] = decode(dimension, last.params[dimension.key])
            elif is_default:
                values[dimension.key] = to_plain(self._defaults[dimension.key])
        state: State = last.user_attrs.get("ended", "running")
        if last.state.name == "COMPLETE":
            state = "complete"
        return Run(
            name=name,
            state=state,
            is_default=is_default,
            values=values,
            by_epoch=by_epoch,
            seconds=sum(trial.user_attrs.get("seconds", 0.0) for trial in trials),
            reason=last.user_attrs.get("reason", ""),
            target=last.user_attrs.get("target"),
            number=last.number,
        )

    def importances(self) -> dict[str, float]:
        """Return the share of each setting in the differences between whole trials, by fANOVA; the largest first.

        Settings that not every trial searched are left out; there is nothing to tell where few
        trials are whole, or all are equal.
        """
        import optuna

        taken = {run.number for run in self.runs() if not run.is_default}
        whole = []
        for trial in self._all():
            if trial.number in taken and trial.state.name == "COMPLETE":
                whole.append(trial)
        if len(whole) < FEWEST_WHOLE or len({trial.value for trial in whole}) < 2:
            return {}
        apart = optuna.create_study(direction=self._study.direction)
        apart.add_trials(whole)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        return dict(optuna.importance.get_param_importances(apart, evaluator=evaluator))


def study_lock(folder: Path) -> FileLock:
    """Return the lock under which trials are taken from a study."""
    return FileLock(folder / ".lock")


def name_run(trial: Any) -> str:
    """Return the name of a trial's run; one whose process was killed before there was one has a name of its own."""
    return trial.user_attrs.get("run", f"unbegun-{trial.number}")


def require_optuna() -> None:
    """Refuse to search where Optuna is not installed.

    Raises:
        MissingExtra: With what to type.
    """
    if find_spec("optuna") is None:
        raise MissingExtra("`vitrail tune` needs Optuna; run: pip install 'vitrail[tune]'")


def suggest(trial: Any, dimension: Dimension) -> Any:
    """Let the sampler choose a value of a setting."""
    if dimension.choices:
        choices = [encode(choice) for choice in dimension.choices]
        return decode(dimension, trial.suggest_categorical(dimension.key, choices))
    if dimension.is_whole:
        step = 1 if dimension.step is None else int(dimension.step)
        return trial.suggest_int(
            dimension.key, int(dimension.low), int(dimension.high), step=step, log=dimension.log
        )
    return trial.suggest_float(
        dimension.key, dimension.low, dimension.high, step=dimension.step, log=dimension.log
    )


def decode(dimension: Dimension, value: Any) -> Any:
    """Return a value of a setting from what the sampler keeps."""
    if isinstance(value, str) and dimension.choices and value not in dimension.choices:
        return json.loads(value)
    return value


def choose_rungs(epochs: int) -> tuple[int, ...]:
    """Return the epochs at which trials that are lengthened are compared: a ninth, a third, and all.

    Raises:
        ConfigError: There are too few epochs.
    """
    rungs = sorted({max(1, round(epochs / KEEP**2)), max(1, round(epochs / KEEP)), epochs})
    if len(rungs) < 2:
        raise ConfigError(
            f"{write_option('extend', True)}: begins trials with a part of the epochs, and "
            f"train.epochs is {epochs}; give more, or drop it"
        )
    return tuple(rungs)
