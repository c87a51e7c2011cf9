"""What a run writes while it lasts: saves, steps, its log, and the report at its end."""

import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

import vitrail.training.train
from support.forked import python
from support.runs import (
    TINY,
    Notebook,
    Signals,
    assert_same_run,
    command,
    events,
    run,
    steps,
)
from vitrail.errors import Stopped
from vitrail.training.run.state import list_states


def test_steps_say_what_each_update_did(image_folder: Path) -> None:
    settings = ("train.epochs=2", "train.log_every=2", "schedule.warmup_epochs=0")
    result = run(image_folder, *settings)
    found = [json.loads(line) for line in (result.folder / "steps.jsonl").read_text().splitlines()]
    assert [(row["epoch"], row["update"]) for row in found] == [(1, 2), (1, 3), (2, 5), (2, 6)]
    assert [row["lr"] for row in found[1::2]] == [row["lr"] for row in result.rows]
    for epoch, (first, last) in enumerate(zip(found[::2], found[1::2], strict=True)):
        assert (2 * first["loss"] + last["loss"]) / 3 == pytest.approx(result.rows[epoch]["train_loss"])
    assert all(row["images_per_s"] > 0 and row["grad_norm"] > 0 for row in found)
    assert "loss_scale" not in found[0]
    norms = [
        steps(run(image_folder, "train.epochs=1", f"optim.clip_norm={clip}").folder)[0]["grad_norm"]
        for clip in ("null", "1e-6")
    ]
    assert norms[0] == norms[1], "it is the norm before it is clipped"
    assert events(result.folder, "tensorboard/steps")["grad_norm"] == [
        (row["update"], pytest.approx(row["grad_norm"])) for row in found
    ]


def test_the_log_has_what_the_terminal_showed_before_and_after_a_resume(image_folder: Path) -> None:
    folder = image_folder.parent / "runs" / "told"
    words = [
        "-m",
        "vitrail",
        "train",
        str(TINY),
        f"data.root={image_folder}",
        "train.epochs=2",
        "--resume",
        str(folder),
    ]
    (image_folder / "train" / "red" / "\x1b[31m.jpg").write_bytes(b"no image")
    stopped = python(*words, "train.max_hours=1e-9")
    assert stopped.returncode == os.EX_TEMPFAIL
    done = python(*words)
    assert done.returncode == 0, done.stderr
    log = (folder / "log.txt").read_text()
    assert "stopped by train.max_hours=1e-09 after update 1 of 6, and saved; go on with: vitrail train" in log
    assert f"{folder}: goes on after update 1 of 6" in log
    shown = [
        line.rstrip().replace("\x1b", r"\x1b")
        for part in (stopped, done)
        for text in (part.stderr, part.stdout)
        for line in text.splitlines()
    ]
    assert sorted(line.rstrip() for line in log.splitlines()) == sorted(shown)
    assert "\x1b" not in log
    assert r"\x1b[31m.jpg: " in log


def test_an_error_that_ends_a_run_ends_its_log(image_folder: Path) -> None:
    settings = (
        "optim.lr=1e30",
        "train.skip_limit=1",
        "train.rollbacks=0",
        "output.name=told",
        "schedule.warmup_epochs=0",
    )
    failed = python(*command(image_folder, *settings))
    assert failed.returncode == 2
    log = (image_folder.parent / "runs" / "told" / "log.txt").read_text()
    assert log.splitlines()[-1] == failed.stderr.splitlines()[-1]
    assert log.splitlines()[-1].startswith("error: ")


def test_saves_happen_as_often_as_asked_and_the_last_are_kept(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=3", "output.save_every_updates=2", "output.keep_last=3").folder
    assert [path.name[:15] for path in list_states(folder / "last")] == [
        "update-00000009", "update-00000008", "update-00000006",
    ]  # fmt: skip
    folder = run(image_folder, "train.epochs=3", "output.save_every_minutes=1e-9", "output.keep_last=99").folder
    assert len(list_states(folder / "last")) == 10
    folder = run(image_folder, "train.epochs=3", "output.keep_last=99").folder
    assert [path.name[:15] for path in list_states(folder / "last")] == ["update-00000009", "update-00000000"]


@pytest.mark.thorough
def test_a_disk_that_is_full_for_a_while_loses_nothing(
    image_folder: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    class FullDisk(Notebook):
        """A display that fills the disk after the second update, and frees it after the eleventh."""

        made = 0

        def advance(self, steps: int = 1, **values: str) -> None:
            self.made += steps
            if steps and self.made == 2:
                limit.__enter__()
            if steps and self.made == 11:
                limit.__exit__(None, None, None)

    settings = ("train.epochs=4", "output.save_every_updates=1")
    whole = run(image_folder, *settings, "output.name=whole")
    limit, display = largest_file(2_000), FullDisk()
    other = run(image_folder, *settings, "output.name=other", display=display)
    assert_same_run(other.folder, whole.folder)
    saves = [text for text in display.warnings if "training goes on, and the next save is tried" in text]
    assert len(saves) == 9
    assert any("best.safetensors: cannot be written (File too large)" in text for text in display.warnings)


def test_a_run_on_a_machine_under_load_says_so_once(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    monkeypatch.setattr(vitrail.training.train, "WORTH_A_WORD_S", 0.0)
    display = Notebook()
    run(image_folder, "train.epochs=2", display=display)
    (warning,) = [text for text in display.warnings if text.startswith("load average ")]
    assert ", which other work takes: training waits for its share; run less beside it, or" in warning


def test_a_load_that_comes_later_is_told_after_a_long_epoch(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Busy(Notebook):
        def advance(self, steps: int = 1, **values: str) -> None:
            monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))

    for worth, told in ((1e9, False), (0.0, True)):
        monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
        monkeypatch.setattr(vitrail.training.train, "WORTH_A_WORD_S", worth)
        run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", display=(display := Busy()))
        assert any(text.startswith("load average 1000.0 on ") for text in display.warnings) == told


def test_a_stop_while_the_report_is_made_leaves_a_finished_run(image_folder: Path) -> None:
    display = Signals(4)  # after three updates, the first batch of the report
    result = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", display=display)
    assert result.report is None
    assert "stopped by SIGTERM; the run is finished, but its report is left out" in display.warnings[-1]
    assert f"vitrail evaluate {result.folder}/best.safetensors --report {result.folder}/report" in display.warnings[-1]
    assert not (result.folder / "report").exists()
    again = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", resume=result.folder, display=display)
    assert "is finished, with 1 epoch;" in display.notes[-1]
    assert again.best == result.best


def test_a_report_that_cannot_be_written_does_not_fail_a_finished_run(image_folder: Path) -> None:
    settings = ("train.epochs=2", "schedule.warmup_epochs=0")
    with pytest.raises(Stopped):
        run(image_folder, *settings, display=Signals(4))
    folder = image_folder.parent / "runs" / "tiny"
    (folder / "report").mkdir()
    (folder / "report" / "notes.txt").write_text("mine")
    display = Notebook()
    result = run(image_folder, *settings, resume=folder, display=display)
    assert (result.report, len(result.rows)) == (None, 2)
    assert "report: holds other files, such as notes.txt, and is not replaced" in display.warnings[-1]
    assert (folder / "curves.png").exists()


def test_a_run_whose_best_weights_are_gone_ends_without_a_report(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.training.run.best_files.save_model", lambda *rest: None)
    display = Notebook()
    assert run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", display=display).report is None
    assert "best.safetensors: is missing" in display.warnings[-1]
