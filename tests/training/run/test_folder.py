"""The files of a run: never overwritten, whole after a resume, and a picture that shows something."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from support.runs import events, tensorboard
from vitrail.errors import CheckpointError, ConfigError
from vitrail.files import temporary_name
from vitrail.training.run.folder import Outbox, RunLog, StepLog, create_run, plot_curves, tidy_run
from vitrail.training.run.trackers import TensorBoard, Trackers

LargestFile = Callable[[int], AbstractContextManager[None]]


def row(epoch: int, **more: Any) -> dict[str, Any]:
    return {"epoch": epoch, "lr": 0.1 / epoch, "train_loss": 2.0 / epoch, "train_top1": 10.0 * epoch} | more


def test_a_default_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    assert [create_run(tmp_path / "runs", None, "tiny").name for _ in range(3)] == ["tiny", "tiny-2", "tiny-3"]
    assert (tmp_path / "runs" / "tiny-3" / "last").is_dir()


def test_an_asked_folder_that_holds_nothing_is_taken(tmp_path: Path) -> None:
    (tmp_path / "mine" / "last").mkdir(parents=True)
    (tmp_path / "mine" / "last" / ".lock").write_text("")
    assert create_run(tmp_path, "mine", "tiny") == tmp_path / "mine"


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    (tmp_path / "last").mkdir()
    gone = subprocess.Popen(["true"])
    gone.wait()
    here, elsewhere = temporary_name(tmp_path / "x").name.split(".")[2].split("-")[0], "0123abcd"
    of_the_run = [f".{name}.{elsewhere}-7.tmp" for name in ("config.yaml", "metrics.jsonl", "best-2.safetensors")]
    of_the_run += [f"last/.update-00000003.pt.{elsewhere}-7.tmp", f".report.{here}-{gone.pid}.tmp"]
    others = [f".report.{elsewhere}-7.tmp", f".best.onnx.{here}-{os.getpid()}.tmp", ".mine.tmp"]
    for name in of_the_run + others:
        (tmp_path / name).write_text("")
    (tmp_path / of_the_run[-1]).unlink()
    (tmp_path / of_the_run[-1]).mkdir()
    tidy_run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"last", *others}
    assert not list((tmp_path / "last").iterdir())


def test_an_asked_name_that_is_taken_is_refused_with_the_way_on(tmp_path: Path) -> None:
    (create_run(tmp_path, "mine", "tiny") / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"^output\.name: \S+/mine exists; choose another, or go on with resume="):
        create_run(tmp_path, "mine", "tiny")


def test_a_file_where_runs_should_go_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(
        ConfigError, match=r"^output\.root: \S+/runs is a file; choose another with output\.root=FOLDER"
    ):
        create_run(tmp_path / "runs", None, "tiny")


def test_a_folder_that_may_not_be_written_is_named(unprivileged: Path) -> None:
    with pytest.raises(ConfigError, match=r"^output\.root: \S+/runs cannot be written \(Permission denied\)"):
        create_run(unprivileged / "runs", None, "tiny")


def test_a_root_that_cannot_exist_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^output\.root: /proc/vitrail cannot be written \("):
        create_run(Path("/proc/vitrail"), None, "tiny")


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_log(folder: Path, *before: dict[str, Any]) -> RunLog:
    return RunLog(folder, before, Trackers(tensorboard(folder), pytest.fail))


def step_log(folder: Path, made: int = 0) -> StepLog:
    boards = {"tensorboard": partial(TensorBoard, folder / "tensorboard" / "steps")}
    return StepLog(folder, made, Trackers(boards, pytest.fail))


def step(update: int, loss: float = 1.0) -> dict[str, Any]:
    return {"update": update, "loss": loss, "grad_norm": None}


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def test_rows_are_written_to_both_sinks(tmp_path: Path) -> None:
    log = run_log(tmp_path)
    log.add(row(1, val_top1=20.0, train_loss=None))
    log.write()
    assert lines(tmp_path) == [row(1, val_top1=20.0, train_loss=None)]
    assert events(tmp_path)["val_top1"] == [(1, 20.0)]
    assert "train_loss" not in events(tmp_path)
    log.close()


def test_epochs_run_again_are_not_doubled(tmp_path: Path) -> None:
    log = run_log(tmp_path)
    for epoch in (1, 2, 3):
        log.add(row(epoch))
    log.close()
    log = run_log(tmp_path, row(1), row(2))
    log.add(row(3, train_loss=0.5))
    log.add(row(4))
    log.rewind([row(1), row(2), row(3, train_loss=0.5)])
    log.add(row(4, train_loss=0.25))
    log.write()
    log.close()
    assert lines(tmp_path) == [row(1), row(2), row(3, train_loss=0.5), row(4, train_loss=0.25)]
    assert events(tmp_path)["train_loss"] == [(1, 2.0), (2, 1.0), (3, 0.5), (4, 0.25)]


def test_a_tracker_that_fails_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").touch()
    warnings: list[str] = []
    log = RunLog(tmp_path, [], Trackers(tensorboard(tmp_path), warnings.append))
    for epoch in (1, 2):
        log.add(row(epoch))
    log.write()
    log.close()
    assert lines(tmp_path) == [row(1), row(2)]
    assert len(warnings) == 1
    assert warnings[0].startswith("tensorboard is given no more numbers (")


@pytest.mark.parametrize("epochs", [1, 30])
def test_curves_are_a_picture_with_the_three_lines(tmp_path: Path, epochs: int) -> None:
    rows = [row(e, val_loss=2.2 / e, val_top1=9.0 * e % 90, val_top5=99.0) for e in range(1, epochs + 1)]
    plot_curves(rows, rows[-1], tmp_path / "curves.png", "run: model, 10 images")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for color in ((0x7B, 0x87, 0x94), (0x25, 0x63, 0xA8), (0xC2, 0x57, 0x1A)):
        assert (pixels == color).all(1).sum() > 20


def test_curves_of_a_run_that_was_not_evaluated_are_drawn(tmp_path: Path) -> None:
    plot_curves([row(1), row(2)], {}, tmp_path / "curves.png", "run")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_tracker_that_fails_later_leaves_the_others(tmp_path: Path) -> None:
    class Flaky:
        finished = False

        def log(self, values: dict[str, Any], step: int | None) -> None:
            if step == 2:
                raise ConnectionError("no\nroute")

        def finish(self) -> None:
            self.finished = True

    flaky, warnings = Flaky(), []
    log = RunLog(tmp_path, [], Trackers({"flaky": lambda _: flaky, **tensorboard(tmp_path)}, warnings.append))
    for epoch in (1, 2, 3):
        log.add(row(epoch))
    log.close()
    assert [epoch for epoch, _ in events(tmp_path)["train_loss"]] == [1, 2, 3]
    assert warnings == ["flaky is given no more numbers (ConnectionError: no route)"]
    assert not flaky.finished


def test_what_a_full_disk_refuses_is_written_later(tmp_path: Path, largest_file: LargestFile) -> None:
    warnings: list[str] = []
    outbox = Outbox(warnings.append)
    log = run_log(tmp_path)
    log.add(row(1))
    outbox.put("metrics.jsonl", log.write)
    log.add(row(2))
    with largest_file(60):
        outbox.put("metrics.jsonl", log.write)
        with pytest.raises(CheckpointError, match=r"metrics\.jsonl: cannot be written \(File too large\)"):
            outbox.finish()
    assert lines(tmp_path) == [row(1)]
    assert len(warnings) == 1
    assert warnings[0].endswith("free space or choose another output.root; training goes on, and it is tried again")
    outbox.retry()
    outbox.finish()
    assert lines(tmp_path) == [row(1), row(2)]
    log.close()


def test_a_newer_file_replaces_one_that_still_waits() -> None:
    written: list[int] = []
    full = True

    def write(number: int) -> None:
        if full:
            raise CheckpointError("full")
        written.append(number)

    outbox = Outbox(lambda text: None)
    for number in (1, 2):
        outbox.put("best", partial(write, number))
    full = False
    outbox.retry()
    outbox.retry()
    assert written == [2]


def test_a_run_that_begins_anew_in_its_folder_doubles_nothing(tmp_path: Path) -> None:
    for again in range(2):  # killed before its first save, and in its first epoch
        steps_of, epochs = step_log(tmp_path), run_log(tmp_path)
        steps_of.add(step(1, again))
        epochs.add(row(1))
        steps_of.close()
        epochs.close()
    assert events(tmp_path, "tensorboard/steps")["loss"] == [(1, 1.0)]
    assert [number for number, _ in events(tmp_path)["train_loss"]] == [1]


def test_updates_made_again_are_not_doubled_in_either_place(tmp_path: Path) -> None:
    log = step_log(tmp_path)
    for update in (2, 4, 6):
        log.add(step(update))
        log.write()
    log.close()
    assert steps(tmp_path) == [step(2), step(4), step(6)]
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"update": 8, "lo')  # by a process that was killed
    log = step_log(tmp_path, made=5)
    log.add(step(6, 0.5))
    log.add(step(8, 0.5))
    log.write()
    log.rewind(6)
    log.add(step(8, 0.25))
    log.write()
    log.close()
    assert steps(tmp_path) == [step(2), step(4), step(6, 0.5), step(8, 0.25)]
    assert events(tmp_path, "tensorboard/steps") == {"loss": [(2, 1.0), (4, 1.0), (6, 0.5), (8, 0.25)]}


def test_steps_that_a_full_disk_refuses_are_written_later_and_whole(tmp_path: Path, largest_file: LargestFile) -> None:
    warnings: list[str] = []
    outbox, log = Outbox(warnings.append), StepLog(tmp_path, 0, Trackers({}, pytest.fail))
    for update in range(1, 5):
        log.add(step(update))
        with largest_file(100):
            outbox.put("steps.jsonl", log.write)
    assert len(warnings) == 1
    assert "steps.jsonl: cannot be written (File too large); free space" in warnings[0]
    outbox.finish()
    assert steps(tmp_path) == [step(update) for update in range(1, 5)]
    log.sync()


def test_a_run_that_goes_on_without_its_steps_begins_them_anew(tmp_path: Path) -> None:
    log = step_log(tmp_path, made=7)
    log.sync()
    log.add(step(8))
    log.write()
    log.close()
    assert steps(tmp_path) == [step(8)]
