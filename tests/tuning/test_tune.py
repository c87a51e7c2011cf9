"""Studies of tiny models in real processes: their end, interruptions, losses, failures, lengthening and sharing."""

from __future__ import annotations

import json
import os
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.forked import Python, is_alive, python, wait_until
from support.runs import TINY, assert_same_weights, rows

SPACE = """
optim.lr: {low: 1e-4, high: 1e-2, log: true}
model.drop_path_rate: [0.0, 0.1]
"""


def words(images: Path, study: Path, *more: object, space: str = SPACE, finalists: int = 1) -> list[str]:
    file = study.parent / "space.yaml"
    file.write_text(space)
    return [
        *("-m", "vitrail", "tune", str(TINY), str(file), f"data.root={images}", "--study", str(study)),
        *("--finalists", str(finalists)),
        *map(str, more),
    ]


def trials(study: Path) -> list[Any]:
    """The trials as Optuna has them."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(str((study / "journal.log").resolve())))
    return optuna.load_study(study_name="vitrail", storage=storage).trials


def has_epochs(run: Path, count: int) -> bool:
    file = run / "metrics.jsonl"
    return file.exists() and file.read_bytes().count(b"\n") >= count


def child_of(pid: int) -> int:
    """The training that a study has started."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            return int(child)
    raise AssertionError


@pytest.mark.thorough
def test_a_study_ends_with_a_recipe_a_page_and_the_gain(image_folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    done = python(*words(image_folder, study, "--trials", 3, "--seeds", 2, "--final", 2, finalists=2))
    assert done.returncode == 0, done.stderr

    # the first trial is the recipe as it is, and each is a run
    first, *others = trials(study)
    assert first.params == {"optim.lr": 3e-3, "model.drop_path_rate": 0.0}
    assert [trial.state.name for trial in (first, *others)] == ["COMPLETE"] * 3
    for trial in (first, *others):
        run = study / "trials" / trial.user_attrs["run"]
        values = [row["val_top1"] for row in rows(run)]
        assert trial.value == max(values)
        assert list(trial.intermediate_values.values()) == values
        assert (run / "best.safetensors").is_file()
        assert (run / "report" / "report.html").is_file()
    settings = yaml.safe_load((study / "trials" / "0001" / "config.yaml").read_text())
    assert settings["optim"]["lr"] == others[0].params["optim.lr"]
    assert settings["train"]["monitor"] == "val_top1"

    # what comes of it
    best = yaml.safe_load((study / "best.yaml").read_text())
    finalists = sorted((first, *others), key=lambda trial: (-trial.value, trial.number))[:2]
    means = []
    for trial in finalists:
        more = [study / "finalists" / f"{trial.user_attrs['run']}-seed{seed}.json" for seed in (1, 2)]
        means.append(statistics.fmean([trial.value, *(json.loads(file.read_text())["value"] for file in more)]))
    winner = finalists[means.index(max(means))]
    assert len(list((study / "finalists").glob("*.json"))) == 4
    assert f"val_top1 {max(means):.4g} with 3 seeds, on " in (study / "best.yaml").read_text()
    assert best["optim"]["lr"] == winner.params["optim.lr"]
    assert "of the recipe tiny" in (study / "best.yaml").read_text().splitlines()[0]
    page = (study / "study.html").read_text()
    assert "Parallel coordinates" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert f"next: vitrail train {study / 'best.yaml'}" in done.stdout
    if winner.number == 0:
        assert "No trial was better than the recipe as it is" in done.stdout
    else:
        compared = sorted(path.name for path in (study / "seeds").glob("*.json"))
        name = winner.user_attrs["run"]
        assert compared == [f"{name}-seed3.json", f"{name}-seed4.json", "default-seed3.json", "default-seed4.json"]
        assert len(list((study / "final").glob("*-seed[56].json"))) == 4
        assert "95 % interval" in done.stdout

    # the same command has nothing to do; more trials go on with the study
    before = (study / "trials" / "0002" / "metrics.jsonl").stat().st_mtime_ns
    again = python(*words(image_folder, study, "--trials", 4, "--seeds", 0))
    assert again.returncode == 0, again.stderr
    assert (study / "trials" / "0002" / "metrics.jsonl").stat().st_mtime_ns == before
    assert len(trials(study)) == 4

    # and no other study
    other = python(*words(image_folder, study, "--trials", 5, space="optim.lr: [1e-3, 2e-3]"))
    assert other.returncode == 2
    assert "is of another space: optim.lr is {high: 0.01, log: true, low: 0.0001} there and" in other.stderr
    assert "model.drop_path_rate is [0.0, 0.1] there and not searched here" in other.stderr
    other = python(*words(image_folder, study, "optim.weight_decay=0.2"))
    assert "is of another recipe: optim.weight_decay is 0.05 there and 0.2 here" in other.stderr
    other = python(*words(image_folder, study, "--metric", "val_loss"))
    assert "another recipe: " in other.stderr or "another metric: val_top1 there and val_loss here" in other.stderr
    next((image_folder / "val").rglob("*.jpg")).unlink()
    other = python(*words(image_folder, study))
    assert "is of other images: there " in other.stderr


@pytest.mark.thorough
def test_an_interrupted_study_goes_on_with_its_trial_to_the_same_end(image_folder: Path, tmp_path: Path) -> None:
    options = ("--trials", 2, "--seeds", 0, "--prune", "none", "train.epochs=30")
    whole = python(*words(image_folder, tmp_path / "whole", *options))
    assert whole.returncode == 0, whole.stderr

    study = tmp_path / "study"
    process = Python(*words(image_folder, study, *options))
    wait_until(lambda: has_epochs(study / "trials" / "0001", 3), process)
    process.send_signal(signal.SIGTERM)
    stopped = process.wait()
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped by SIGTERM; the study" in stopped.stderr
    assert "the same command goes on with it" in stopped.stderr
    assert "interrupted" in (study / "study.html").read_text()

    done = python(*words(image_folder, study, *options))
    assert done.returncode == 0, done.stderr
    for name in ("0000", "0001"):
        assert rows(study / "trials" / name) == rows(tmp_path / "whole" / "trials" / name)
        assert_same_weights(*(folder / "trials" / name / "best.safetensors" for folder in (study, tmp_path / "whole")))
    assert sorted(path.name for path in (study / "trials").iterdir() if path.is_dir()) == ["0000", "0001"]
    assert "Not yet" not in done.stdout


@pytest.mark.thorough
def test_a_study_that_is_stopped_in_its_final_runs_keeps_what_it_compared(image_folder: Path, tmp_path: Path) -> None:
    slow = tmp_path / "slow.yaml"
    slow.write_text(TINY.read_text().replace("lr: 3.0e-3", "lr: 1.0e-9"))
    study = tmp_path / "study"
    command = words(image_folder, study, "--sampler", "grid", "--metric", "val_loss", space="optim.lr: [3.0e-3]")
    command[command.index(str(TINY))] = str(slow)
    process = Python(*command, "schedule.min_lr=0", "schedule.warmup_lr=0", "--seeds", 2, "--final", 2)
    wait_until(lambda: has_epochs(study / "final" / "default-seed5", 1), process)
    process.send_signal(signal.SIGTERM)
    stopped = process.wait()
    assert stopped.returncode == 75, stopped.stderr
    assert "Trial 0001 is better than the recipe as it is: mean gain in val_loss" in (study / "study.html").read_text()
    assert "# trial 0001 is better than the recipe as it is" in (study / "best.yaml").read_text()


@pytest.mark.thorough
def test_a_killed_process_loses_its_trial_alone(image_folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    options = ("--trials", 2, "--seeds", 0, "train.epochs=200")
    process = Python(*words(image_folder, study, *options))
    wait_until(lambda: has_epochs(study / "trials" / "0000", 2), process)
    training = child_of(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while is_alive(training):  # which is told by the system, saves and leaves
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert trials(study)[0].state.name == "RUNNING"
    assert list((study / "trials" / "0000" / "last").glob("update-*.pt"))

    # a training that is killed is recorded, and the search goes on
    process = Python(*words(image_folder, study, *options))
    wait_until(lambda: has_epochs(study / "trials" / "0001", 2), process)
    os.kill(child_of(process.pid), signal.SIGKILL)
    done = process.wait()
    assert done.returncode == 0, done.stderr
    assert "trial 0001 failed: killed, most often for lack of memory" in done.stderr
    lost, killed = trials(study)
    assert (lost.state.name, lost.user_attrs["ended"]) == ("FAIL", "lost")
    assert (killed.state.name, killed.user_attrs["ended"]) == ("FAIL", "failed")
    assert "No trial has been trained to its end yet" in done.stdout
    assert not (study / "best.yaml").exists()


@pytest.mark.thorough
def test_what_fails_is_recorded_and_the_search_goes_on(image_folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    wild = "optim.lr: [1.0e+30, 1.0e-3]"
    settings = ("schedule.warmup_epochs=0", "schedule.name=constant", "train.rollbacks=0", "train.skip_limit=2")
    done = python(
        *words(image_folder, study, "--sampler", "grid", "--seeds", 0, *settings, "train.log_every=1", space=wild)
    )
    assert done.returncode == 0, done.stderr
    states = [(trial.state.name, trial.user_attrs.get("reason", "")) for trial in trials(study)]
    assert [state for state, _ in states] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "not finite" in states[1][1]
    assert "trial 0001 failed: " in done.stderr

    # where all of them fail, that ends
    study = tmp_path / "other"
    wild = "model.drop_path_rate: {low: 0.0, high: 0.2}"
    done = python(
        *words(
            image_folder,
            study,
            "--seeds",
            0,
            "--trials",
            9,
            *settings,
            "optim.lr=1e30",
            "train.log_every=1",
            space=wild,
        )
    )
    assert done.returncode == 2
    assert "all 3 trials have failed; the latest, 0002: " in done.stderr
    assert "not finite" in (study / "study.html").read_text()
    assert len(trials(study)) == 3


@pytest.mark.thorough
def test_lengthened_trials_end_as_if_they_had_never_stopped(image_folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    space = "optim.lr: {low: 1e-4, high: 1e-2, log: true}"
    options = ("--extend", "--trials", 5, "--seeds", 0, "train.epochs=27")
    done = python(*words(image_folder, study, *options, space=space))
    assert done.returncode == 0, done.stderr
    found = trials(study)
    by_run: dict[str, list[Any]] = {}
    for trial in found:
        by_run.setdefault(trial.user_attrs["run"], []).append(trial)
    assert len(by_run) == 5
    assert by_run["0000"][0].state.name == "COMPLETE"  # the recipe as it is runs whole
    targets = {name: [trial.user_attrs.get("target") for trial in one] for name, one in by_run.items()}
    assert sorted(targets.values(), key=str)[:4].count([3]) == 3
    (promoted,) = [name for name, one in by_run.items() if len(one) > 1]
    assert targets[promoted] == [3, 9, 27]
    assert [trial.state.name for trial in by_run[promoted]] == ["PRUNED", "PRUNED", "COMPLETE"]
    at_3 = {name: max(v for e, v in one[0].intermediate_values.items() if e <= 3) for name, one in by_run.items()}
    del at_3["0000"]
    assert at_3[promoted] == max(at_3.values())

    # the recipe of the trial, trained in one piece
    recipe = study / "trials" / f"{promoted}.yaml"
    alone = python("-m", "vitrail", "train", recipe, f"output.root={tmp_path}", "output.name=alone")
    assert alone.returncode == 0, alone.stderr
    assert rows(study / "trials" / promoted) == rows(tmp_path / "alone")
    assert_same_weights(study / "trials" / promoted / "best.safetensors", tmp_path / "alone" / "best.safetensors")


@pytest.mark.thorough
def test_processes_share_a_study(image_folder: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    command = words(image_folder, study, "--trials", 6, "--seeds", 2, finalists=2)
    pair = [Python(*command) for _ in range(2)]
    ended = [process.wait() for process in pair]
    assert [done.returncode for done in ended] == [0, 0], [done.stderr for done in ended]
    found = trials(study)
    assert len(found) == 6
    assert all(trial.state.is_finished() for trial in found)
    spans = [(trial.datetime_start, trial.datetime_complete) for trial in found]
    assert any(a[0] < b[0] < a[1] for a in spans for b in spans)  # at the same time
    # each was made once, and both tell the same
    assert len({trial.user_attrs["run"] for trial in found}) == 6
    verdicts = {
        line for done in ended for line in done.stdout.splitlines() if "recipe as it is:" in line or "No trial" in line
    }
    assert len(verdicts) == 1


def test_the_numbers_of_a_run_are_read_while_it_writes(tmp_path: Path) -> None:
    from vitrail.tuning.process import Measure, read_rows

    file = tmp_path / "metrics.jsonl"
    assert read_rows(tmp_path) == []
    whole = [
        {"epoch": 1, "val_loss": 2.0},
        {"epoch": 2},
        {"epoch": 3, "val_loss": float("nan")},
        {"epoch": 4, "val_loss": 1.0},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in whole) + '{"epoch": 5, "val_lo')
    measure = Measure("val_loss", is_lower_better=True)
    assert len(read_rows(tmp_path)) == 4
    assert measure.read(tmp_path) == {1: 2.0, 4: 1.0}
    assert measure.best(measure.read(tmp_path)) == 1.0
    assert measure.best(measure.read(tmp_path), until=3) == 2.0
