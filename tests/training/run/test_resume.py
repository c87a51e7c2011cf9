"""Runs that were stopped, killed, lengthened or forked go on to the last bit, or say why not."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from support.forked import Python, python, wait_until
from support.runs import (
    EVERYTHING,
    TINY,
    Notebook,
    Signals,
    assert_same_run,
    assert_same_weights,
    command,
    has_saved,
    last_state,
    rows,
    run,
)
from vitrail.config.resolve import read_yaml
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError, DataError, Interrupted, Stopped
from vitrail.training.run.state import list_states, save_state
from vitrail.training.start import begin
from vitrail.training.train import train
from vitrail.weights.loading import load_model, open_model


def test_a_run_stopped_in_an_evaluation_begins_that_evaluation_anew(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(image_folder, "train.epochs=2", "output.name=whole").folder
    with monkeypatch.context() as patch:
        patch.setattr("vitrail.distributed.watchdog.Watchdog.stir", lambda self: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Stopped, match=r"^stopped by SIGTERM after update 3 of 6, and saved; "):
            run(image_folder, "train.epochs=2", "output.name=stopped")
    stopped = whole.with_name("stopped")
    assert rows(stopped) == []
    run(image_folder, "train.epochs=2", "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.thorough), "bfloat16"])
def test_a_run_killed_at_any_moment_goes_on_to_the_last_bit(image_folder: Path, precision: str) -> None:
    settings = (*EVERYTHING, "train.epochs=8", f"train.precision={precision}", "output.save_every_updates=1")
    root = image_folder.parent / "runs"
    start = command(image_folder, *settings, "output.name=killed")
    process = Python(*start)
    try:
        wait_until(has_saved(root / "killed", 8), process)
    finally:
        process.kill()
    assert 8 <= (before := last_state(root / "killed"))["epoch"] * 3 + before["step"] < 24
    run(image_folder, *settings, "output.name=whole")
    run(image_folder, *settings, "output.name=killed", "data.workers=1", resume=root / "killed")
    assert_same_run(root / "killed", root / "whole")
    assert not [path for path in (root / "killed").rglob("*") if path.suffix == ".tmp"]


IMPROVING = ("train.epochs=5", "optim.lr=1e-2", "train.monitor=train_loss", "output.keep_best=3")


@pytest.mark.thorough
def test_the_best_weights_of_a_killed_run_are_those_of_the_whole_one(image_folder: Path) -> None:
    root = image_folder.parent / "runs"
    whole = run(image_folder, *IMPROVING, "output.name=whole").folder
    process = Python(*command(image_folder, *IMPROVING, "output.name=killed"))
    killed = root / "killed"
    try:
        # better weights were written, and no save since the first knows of them
        wait_until((killed / "best-2.safetensors").exists, process)
    finally:
        process.kill()
    assert last_state(killed)["bests"] == []
    again = ["-m", "vitrail", "train", "--resume", killed, f"data.root={image_folder}", "output.save_every_updates=4"]
    process = Python(*again)
    try:  # now one does
        wait_until(lambda: has_saved(killed, 8)() and len(rows(killed)) == 3, process)
    finally:
        process.kill()
    run(image_folder, *IMPROVING, "output.name=killed", resume=killed)
    assert_same_run(killed, whole)
    for name in ("best-2.safetensors", "best-3.safetensors"):
        assert_same_weights(killed / name, whole / name)
    assert {path.name for path in killed.iterdir()} - {"log.txt"} == {path.name for path in whole.iterdir()}


def test_a_run_that_goes_on_otherwise_keeps_the_best_that_its_save_knows(image_folder: Path) -> None:
    settings = ("schedule.warmup_epochs=0", "train.monitor=train_loss", "optim.lr=1e-2")
    first = run(image_folder, *settings, "train.epochs=2")
    saved = {path.name: path.read_bytes() for path in list_states(first.folder / "last")}
    longer = run(image_folder, *settings, "train.epochs=6", resume=first.folder)
    assert longer.best["epoch"] > 2
    for path in list_states(first.folder / "last"):  # its machine was lost, and what it saved since
        path.unlink()
    for name, data in saved.items():
        (first.folder / "last" / name).write_bytes(data)
    display = Notebook()
    again = run(image_folder, *settings, "train.epochs=3", "optim.lr=1e-2", resume=first.folder, display=display)
    told = f"{first.folder}: the best weights, of epoch {first.best['epoch']}, are not there or are damaged; "
    assert f"{told}they are looked for anew" in display.warnings
    assert open_model(first.folder / "best.safetensors").record.metrics == again.best
    assert again.best["epoch"] == 3


def test_a_save_of_an_earlier_version_keeps_the_best_files(image_folder: Path) -> None:
    folder = run(image_folder, *IMPROVING).folder
    saved = last_state(folder)
    bests = saved.pop("bests")
    assert len(bests) == 3
    save_state(folder / "last", saved | {"best": bests[0]}, 15, 1)
    again = run(image_folder, *IMPROVING, "train.epochs=6", resume=folder)
    assert again.best["epoch"] >= bests[0]["epoch"]
    kept = [open_model(path).record.metrics for path in sorted(folder.glob("best*.safetensors"))]
    assert bests[0] in kept


def test_a_second_process_on_a_run_is_told_and_changes_nothing(image_folder: Path) -> None:
    settings = ("train.epochs=300", "schedule.warmup_epochs=0")
    folder = image_folder.parent / "runs" / "mine"
    process = Python(*command(image_folder, *settings, "output.name=mine"))
    try:
        wait_until(has_saved(folder, 0), process)
        for words in (["--resume", folder], ["--extend", folder, "train.epochs=400"]):
            told = python("-m", "vitrail", "train", *words, f"data.root={image_folder}")
            assert told.returncode == 2
            assert f"error: {folder}: process {process.pid} on " in told.stderr
            assert "works on it; wait for its end or stop it" in told.stderr
        assert process.poll() is None
    finally:
        process.kill()
    display = Signals(1)
    with pytest.raises(Stopped):
        run(image_folder, *settings, "output.name=mine", resume=folder, display=display)


def test_a_folder_that_a_killed_start_left_begins_the_run(image_folder: Path) -> None:
    folder = image_folder.parent / "runs" / "made"
    (folder / "last").mkdir(parents=True)
    (folder / ".config.yaml.0123abcd-7.tmp").write_text("half")
    start = begin(str(TINY), [f"data.root={image_folder}", "train.epochs=1", "schedule.warmup_epochs=0"], resume=folder)
    result = train(start.config, name=start.name, resume=start.resume)
    assert result.folder == folder
    assert not list(folder.glob(".*"))


def test_a_finished_run_is_given_the_curves_and_the_report_that_it_lacks(image_folder: Path) -> None:
    settings = ("train.epochs=2", "schedule.warmup_epochs=0")
    whole = run(image_folder, *settings, "output.name=whole").folder
    killed = run(image_folder, *settings, "output.name=killed").folder
    shutil.rmtree(killed / "report")
    (killed / "curves.png").unlink()
    result = run(image_folder, *settings, "output.name=killed", resume=killed)
    assert result.report == killed / "report" / "report.html"
    assert (killed / "report" / "per_class.csv").read_bytes() == (whole / "report" / "per_class.csv").read_bytes()
    assert (killed / "curves.png").exists()
    aside = killed / "last" / "best-0123456789abcdef.safetensors"  # which only the save before the last needed
    shutil.copy(killed / "best.safetensors", aside)
    before = (killed / "report" / "report.html").read_bytes(), (killed / "curves.png").read_bytes()
    assert run(image_folder, *settings, "output.name=killed", resume=killed).report is None
    assert not aside.exists()
    assert before == ((killed / "report" / "report.html").read_bytes(), (killed / "curves.png").read_bytes())
    old = {path: path.read_bytes() for path in [*(killed / "report").iterdir(), killed / "curves.png"]}
    longer = ("train.epochs=3", "schedule.warmup_epochs=0")
    run(image_folder, *longer, "output.name=killed", resume=killed)
    for path, data in old.items():  # as if it were killed before it had written them
        path.write_bytes(data)
    run(image_folder, *longer, "output.name=killed", resume=killed)
    assert json.loads((killed / "report" / "report.json").read_text())["training"] == {"updates": 9}
    assert (killed / "curves.png").read_bytes() != old[killed / "curves.png"]


def test_a_finished_run_says_so_and_is_left_as_it_is(image_folder: Path) -> None:
    first = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0")
    before = {path: path.read_bytes() for path in first.folder.rglob("[!.]*") if path.is_file()}
    display = Notebook()
    again = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", resume=first.folder, display=display)
    assert again.rows == first.rows
    assert again.best == first.best
    assert len(display.notes) == 1
    assert display.notes[0].startswith(
        f"{first.folder} is finished, with 1 epoch; to lengthen it: vitrail train --extend"
    )
    for path, data in before.items():
        assert path.read_bytes() == data, path


def test_a_run_that_lost_its_saves_does_not_begin_anew_over_its_results(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    for path in list_states(folder / "last"):
        path.unlink()
    before = rows(folder)
    advice = rf"put one back from a copy, or move {folder} away to begin it anew"
    with pytest.raises(
        CheckpointError, match=rf"holds no save to go on from, though there is metrics\.jsonl; {advice}"
    ):
        run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", resume=folder)
    assert rows(folder) == before
    (folder / "metrics.jsonl").unlink()
    (folder / "best.safetensors").unlink()
    shutil.rmtree(folder / "last")
    display = Notebook()
    run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", resume=folder, display=display)
    assert display.notes == [f"{folder}: nothing was saved yet; it begins anew"]
    assert rows(folder) == before


def test_settings_that_were_changed_in_the_file_are_refused(image_folder: Path) -> None:
    with pytest.raises(Stopped):
        run(image_folder, display=Signals(1))
    folder = image_folder.parent / "runs" / "tiny"
    with pytest.raises(
        CheckpointError,
        match=r"config\.yaml: was changed, and no longer has the run's settings: optim\.lr is 0\.003 there and 0\.5 he",
    ):
        run(image_folder, "optim.lr=0.5", resume=folder)
    display = Signals(1)
    with pytest.raises(Stopped):
        run(image_folder, "output.keep_last=3", resume=folder, display=display)
    assert display.notes == [f"{folder}: goes on after update 1 of 12"]


def test_an_extended_run_goes_on_with_the_longer_schedule(image_folder: Path) -> None:
    short = run(image_folder, "train.epochs=2", "schedule.cooldown_epochs=1")
    longer = run(image_folder, "train.epochs=5", resume=short.folder)
    assert longer.folder == short.folder
    assert [row["epoch"] for row in longer.rows] == [1, 2, 3, 4, 5]
    assert list(longer.rows[:3]) == list(short.rows)
    assert longer.rows[3]["lr"] > longer.rows[4]["lr"] > 1e-5
    assert read_yaml(short.folder / "config.yaml").values["train"]["epochs"] == 5


def test_a_fork_begins_a_new_schedule_from_the_averaged_weights(image_folder: Path) -> None:
    first = run(image_folder, "train.epochs=8", "optim.lr=1e-2", "ema.decay=0.5")
    fork = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "optim.lr=1e-9", "schedule.min_lr=0",
               fork=first.folder)  # fmt: skip
    assert fork.folder != first.folder
    assert [row["epoch"] for row in fork.rows] == [1]
    assert fork.rows[0]["val_loss"] == pytest.approx(first.rows[-1]["val_loss"], rel=1e-3)
    with pytest.raises(CheckpointError, match=r"does not fit the model: 29 weights missing"):
        run(image_folder, "model.options.depth=2", fork=first.folder)


def test_a_run_goes_on_where_names_are_written_in_another_form_of_unicode(image_folder: Path) -> None:
    for split in ("train", "val"):
        (image_folder / split / "red").rename(image_folder / split / "cafe\u0301")
    settings = ("train.epochs=1", "schedule.warmup_epochs=0")
    first = run(image_folder, *settings)
    for split in ("train", "val"):
        (image_folder / split / "cafe\u0301").rename(image_folder / split / "caf\u00e9")
    assert load_model(first.folder / "best.safetensors").classes == ("blue", "caf\u00e9", "green")
    fork = run(image_folder, *settings, fork=first.folder)
    assert load_model(fork.folder / "best.safetensors").classes == ("blue", "caf\u00e9", "green")


def test_a_second_interrupt_says_how_to_go_on_from_the_last_save(image_folder: Path) -> None:
    class Impatient(Quiet):
        def advance(self, steps: int = 1, **values: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"^stopped at once; go on from the last save with: vitrail train --res"):
        run(image_folder, display=Impatient())


def test_a_run_is_not_resumed_with_other_classes_or_another_model(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    (image_folder / "train" / "red" / "more.jpg").write_bytes(next(image_folder.rglob("*.jpg")).read_bytes())
    with pytest.raises(DataError, match=r"was trained on other images than those in data\.root; give the fol"):
        run(image_folder, "train.epochs=2", resume=folder)
    with pytest.raises(CheckpointError, match=r"config\.yaml: was changed, and no longer describes the run's model"):
        run(image_folder, "train.epochs=2", "model.options.depth=2", resume=folder)
    for split in ("train", "val"):
        (image_folder / split / "red").rename(image_folder / split / "a")
    with pytest.raises(DataError, match=r"differences, as index: model / data = 0: blue / a; 1: green / blue"):
        run(image_folder, "train.epochs=2", resume=folder)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size 512 is more than the 24 training images"):
        run(image_folder, "train.batch_size=512")
    assert not (image_folder.parent / "runs").exists()


def test_a_name_that_exists_is_never_overwritten(image_folder: Path) -> None:
    run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=mine")
    with pytest.raises(ConfigError, match="exists; choose another"):
        run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=mine")
    first = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0")
    second = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0")
    assert (first.folder.name, second.folder.name) == ("tiny", "tiny-2")
