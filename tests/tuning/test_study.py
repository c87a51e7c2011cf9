"""A study in its journal: what is drawn, ended early, lengthened, lost and gone on with; nothing is trained."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vitrail.errors import CheckpointError, ConfigError
from vitrail.tuning.process import Measure
from vitrail.tuning.record import keep_study
from vitrail.tuning.space import Space, read_space
from vitrail.tuning.study import Plan, Study, Task

SPACE = read_space(
    {
        "optim.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "augment.scale": [[0.08, 1.0], [0.5, 1.0]],
        "augment.auto_augment": [None, "rand-m9-mstd0.5-inc1"],
        "augment.mixup": {"low": 0.1, "high": 0.8, "when": {"augment.scale": [[0.5, 1.0]]}},
        "train.batch_size": {"low": 16, "high": 64, "step": 16},
    },
    "space",
)
DEFAULTS = {
    "optim.lr": 1e-3,
    "augment.scale": [0.7, 1.0],
    "augment.auto_augment": None,
    "augment.mixup": 0.0,
    "train.batch_size": 32,
}
PLAN = Plan(trials=30, hours=None, sampler="tpe", prune="none", seed=0, epochs=9, rungs=(), warmup=1)


def open_study(folder: Path, space: Space = SPACE, loss: bool = False, **plan: Any) -> Study:
    defaults = {one.key: DEFAULTS.get(one.key) for one in space}
    measure = Measure("val_loss" if loss else "val_top1", is_lower_better=loss)
    return Study(folder, replace(PLAN, **plan), space, defaults, measure)


def take(study: Study) -> Task:
    task, _ = study.take()
    assert task is not None
    return task


def finish(study: Study, task: Task, *values: float) -> None:
    for epoch, value in enumerate(values, 1):
        study.report(task, epoch, value)
    study.complete(task, max(values), 1.0)


def draw(folder: Path, count: int, **plan: Any) -> list[Any]:
    """The values of the first trials, whose number is better for a higher rate."""
    study, drawn = open_study(folder, **plan), []
    for _ in range(count):
        task = take(study)
        drawn.append(task.values)
        finish(study, task, 100 * task.values.get("optim.lr", 1e-3))
    return drawn


def test_the_first_trial_is_the_recipe_as_it_is(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    task = take(study)
    assert (task.is_default, task.values, task.name) == (True, {}, "0000")
    # the sampler learns of it what lies in the space
    assert task.trial.params == {"optim.lr": 1e-3, "augment.auto_augment": None, "train.batch_size": 32}
    finish(study, task, 50.0, 60.0)
    (run,) = study.runs()
    assert (run.state, run.is_default, run.by_epoch) == ("complete", True, {1: 50.0, 2: 60.0})
    assert run.values["augment.scale"] == [0.7, 1.0]  # also where it does not


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_repeats(tmp_path: Path, sampler: Any) -> None:
    first = draw(tmp_path / "a", 16, sampler=sampler, trials=16)
    assert draw(tmp_path / "b", 16, sampler=sampler, trials=16) == first
    assert draw(tmp_path / "c", 4, sampler=sampler, trials=16, seed=1) != first[:4]
    for values in first[1:]:
        assert 1e-4 <= values["optim.lr"] <= 1e-2
        assert values["augment.scale"] in ([0.08, 1.0], [0.5, 1.0])
        assert values["augment.auto_augment"] in (None, "rand-m9-mstd0.5-inc1")
        assert ("augment.mixup" in values) == (values["augment.scale"] == [0.5, 1.0])
        assert values["train.batch_size"] in (16, 32, 48, 64)
    # one that goes on draws what it would have drawn
    draw(tmp_path / "d", 5, sampler=sampler, trials=16)
    assert draw(tmp_path / "d", 3, sampler=sampler, trials=16) == first[5:8]


def test_tpe_learns(tmp_path: Path) -> None:
    drawn = draw(tmp_path, 30)
    late = sorted(values["optim.lr"] for values in drawn[-10:])
    assert late[5] > 5e-3  # of a range whose middle is 1e-3


def test_a_grid_takes_every_combination_once(tmp_path: Path) -> None:
    space = read_space({"optim.lr": [1e-3, 2e-3], "augment.scale": [[0.08, 1.0], [0.7, 1.0]]}, "space")
    study = open_study(tmp_path, space, sampler="grid", trials=None)
    drawn = []
    for _ in range(4):
        task = take(study)
        drawn.append(task.values)
        finish(study, task, 1.0)
    # the recipe itself is one of the four
    assert drawn == [
        {},
        {"optim.lr": 1e-3, "augment.scale": [0.08, 1.0]},
        {"optim.lr": 2e-3, "augment.scale": [0.08, 1.0]},
        {"optim.lr": 2e-3, "augment.scale": [0.7, 1.0]},
    ]
    assert study.take() == (None, 0)


def test_trials_that_are_worse_than_the_median_are_ended(tmp_path: Path) -> None:
    study = open_study(tmp_path, prune="median", warmup=2)
    for value in range(6):
        task = take(study)
        assert not study.report(task, 1, 50.0 + value)
        assert not study.report(task, 2, 60.0 + value)
        study.complete(task, 60.0 + value, 1.0)
    worse = take(study)
    assert not study.report(worse, 1, 10.0)  # in the warm-up
    assert study.report(worse, 2, 20.0)
    study.end_early(worse, "pruned", 1.0)
    better = take(study)
    assert not study.report(better, 2, 64.0)
    study.complete(better, 64.0, 1.0)
    assert [run.state for run in study.runs()][-2:] == ["pruned", "complete"]
    loss = open_study(tmp_path / "loss", loss=True, prune="median", warmup=1)
    for value in range(6):
        task = take(loss)
        loss.report(task, 1, 1.0 + value)
        loss.complete(task, 1.0 + value, 1.0)
    task = take(loss)
    assert loss.report(task, 1, 9.0)
    loss.end_early(task, "pruned", 1.0)


def test_the_best_third_goes_on(tmp_path: Path) -> None:
    study = open_study(tmp_path, rungs=(1, 3, 9), trials=10)
    log = []
    while (task := study.take()[0]) is not None:
        until = task.target or 9
        log.append((task.name, until))
        # all are equal but for the number of the run: the fourth is the best, and none is lucky
        quality = 10.0 + (int(task.name) == 4) + (task.is_default) * 5
        for epoch in range(1, until + 1):
            study.report(task, epoch, quality)
        if task.target is None:
            study.complete(task, quality, 1.0)
        else:
            study.end_early(task, "paused", 1.0)
    begun = [name for name, until in log if until == 1]
    assert begun == [f"{number:04d}" for number in range(1, 10)]
    assert log[0] == ("0000", 9)  # the recipe as it is runs whole
    assert len({name for name, _ in log}) == 10
    reached_3 = [name for name, until in log if until == 3]
    reached_9 = [name for name, until in log if until == 9 and name != "0000"]
    assert len(reached_3) == 9 // 3
    assert reached_9 == ["0004"]
    runs = {run.name: run for run in study.runs()}
    assert runs["0004"].state == "complete"
    assert len(runs["0004"].by_epoch) == 9
    assert runs["0004"].seconds == 3.0  # of its three parts
    assert sum(run.state == "paused" for run in runs.values()) == 8


def test_an_interrupted_trial_is_the_next(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    finish(study, take(study), 1.0)
    task = take(study)
    study.report(task, 1, 2.0)
    study.interrupt(task, 5.0)
    other = open_study(tmp_path)  # as the same command opens it
    again = take(other)
    assert (again.name, again.values) == (task.name, task.values)
    other.report(again, 1, 2.0)
    finish(other, again, 2.0, 3.0)
    first, second = other.runs()
    assert (second.state, second.seconds) == ("complete", 6.0)
    assert not first.reason
    third = take(other)
    assert third.name not in (first.name, second.name)


def test_a_trial_whose_process_is_gone_is_lost(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    held = take(study)
    other = open_study(tmp_path)
    second, others = other.take()
    assert (second is not None, others) == (True, 1)
    assert [run.state for run in other.runs()] == ["running", "running"]
    held.lock.release()  # as the system does where a process is killed
    third = take(other)
    states = {run.name: (run.state, run.reason) for run in other.runs()}
    assert states[held.name] == ("lost", "its process has ended")
    assert states[third.name][0] == "running"
    # what was lost was the recipe as it is, which is trained anew; another process has drawn its own
    assert (held.is_default, third.is_default) == (True, True)
    other.optuna.ask()  # killed before it could say what it works on
    take(open_study(tmp_path))
    assert other.runs()[-2].state == "lost"


def test_the_training_of_a_lost_trial_counts(tmp_path: Path) -> None:
    study = open_study(tmp_path, trials=None, hours=1.0)
    held = take(study)
    log = study.trials / f"{held.name}.log"
    log.write_text("the last words of its training")
    began = study.optuna.trials[-1].datetime_start.timestamp()
    os.utime(log, (began + 600, began + 600))
    held.lock.release()  # as the system does where a process is killed
    other = open_study(tmp_path, trials=None, hours=1.0)
    task = take(other)
    first, *_ = other.runs()
    assert (first.state, first.seconds) == ("lost", pytest.approx(600, abs=1))
    assert task.seconds is not None
    assert 2990 < task.seconds <= 3001


def test_budgets_end_a_search(tmp_path: Path) -> None:
    study = open_study(tmp_path / "trials", trials=2)
    tasks = [take(study), take(study)]
    assert study.take() == (None, 2)
    for task in tasks:
        finish(study, task, 1.0)
    assert study.take() == (None, 0)
    more = open_study(tmp_path / "trials", trials=3)
    finish(more, take(more), 1.0)
    assert more.take() == (None, 0)

    timed = open_study(tmp_path / "hours", trials=None, hours=1.0)
    task = take(timed)
    assert task.seconds is not None
    assert 3590 < task.seconds <= 3600
    timed.complete(task, 1.0, 3000.0)
    task = take(timed)
    assert task.seconds is not None
    assert 590 < task.seconds <= 600
    timed.end_early(task, "out of time", 600.0)
    assert timed.take() == (None, 0)


def test_importances_are_of_whole_trials(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    assert study.importances() == {}
    for _ in range(12):
        task = take(study)
        finish(study, task, 100 * task.values.get("optim.lr", 1e-3))
    importances = study.importances()
    assert max(importances, key=lambda key: importances[key]) == "optim.lr"
    assert "augment.mixup" not in importances  # not every trial had it
    assert sum(importances.values()) == pytest.approx(1.0)


def test_what_a_study_is_of_is_kept(tmp_path: Path) -> None:
    facts: dict[str, Any] = {
        "metric": "val_top1",
        "split": "digits",
        "images": {"train": "a", "val": "b"},
        "extend": False,
        "space": {"optim.lr": {"low": 1e-4, "high": 1e-2}},
        "recipe": {"optim.lr": 1e-3, "output.root": "runs"},
    }
    keep_study(tmp_path, facts)
    keep_study(tmp_path, {**facts, "recipe": {**facts["recipe"], "output.root": "elsewhere"}})
    for other, said in (
        ({"metric": "val_loss"}, "is of another metric: val_top1 there and val_loss here; give another folder"),
        ({"extend": True}, "is of trials without extend=True, and this is with; give another folder"),
        ({"images": {"train": "c", "val": "b"}}, "is of other images: there digits, here digits"),
        ({"space": {"optim.lr": [1e-3]}}, "is of another space: optim.lr is {high: 0.01, low: 0.0001} there and"),
        ({"recipe": {"optim.lr": 2e-3}}, "is of another recipe: optim.lr is 0.001 there and 0.002 here"),
    ):
        with pytest.raises(ConfigError) as caught:
            keep_study(tmp_path, {**facts, **other})
        assert said in str(caught.value)


def test_a_trial_ends_and_is_let_go_of_in_one_step(tmp_path: Path) -> None:
    study = open_study(tmp_path, rungs=(1, 9))
    finish(study, take(study), 1.0)
    task = take(study)
    study.report(task, 1, 2.0)
    held, states = threading.Event(), []

    def look() -> None:
        """What another process does, which takes a trial meanwhile."""
        other = open_study(tmp_path, rungs=(1, 9))
        with other.lock:
            held.set()
            time.sleep(0.3)
            states.extend(run.state for run in other.runs())

    looker = threading.Thread(target=look)
    looker.start()
    assert held.wait(10)
    study.end_early(task, "paused", 1.0)
    looker.join()
    assert states == ["complete", "running"]
    assert not task.lock.is_locked


def test_half_a_line_in_the_journal_spoils_none_after_it(tmp_path: Path) -> None:
    study = open_study(tmp_path)
    finish(study, take(study), 1.0)
    with (tmp_path / "journal.log").open("ab") as journal:  # by a process that a full disk or the system ended
        journal.write(b'{"op_code":6,"wor')
    finish(study, take(study), 2.0)
    other = open_study(tmp_path)
    finish(other, take(other), 3.0)
    assert [run.by_epoch for run in open_study(tmp_path).runs()] == [{1: 1.0}, {1: 2.0}, {1: 3.0}]


def test_a_full_disk_is_one_line_and_loses_no_trial_before(
    tmp_path: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    study = open_study(tmp_path)
    finish(study, take(study), 1.0)
    task = take(study)
    size = (tmp_path / "journal.log").stat().st_size
    with largest_file(size + 20), pytest.raises(CheckpointError) as caught:
        study.report(task, 1, 2.0)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path / 'journal.log'}: cannot be written (")
    assert said.endswith("free space, and begin the same again, which goes on with the study")
    assert (tmp_path / "journal.log").stat().st_size > size  # half a line
    finish(study, task, 2.0)
    assert [run.by_epoch for run in open_study(tmp_path).runs()] == [{1: 1.0}, {1: 2.0}]


@pytest.mark.parametrize("junk", [b"\x00\x00\n", b"{}\n", b"[1]\n"])
def test_a_damaged_journal_is_one_line(junk: bytes, tmp_path: Path) -> None:
    study = open_study(tmp_path)
    finish(study, take(study), 1.0)
    journal = tmp_path / "journal.log"
    first, *others = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([first, junk, *others]))
    with pytest.raises(CheckpointError, match=r"journal\.log: is damaged, .*; give another folder with study$"):
        open_study(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(unprivileged: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written \(Permission denied\); choose another with study="):
        open_study(unprivileged / "study")
