import itertools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import vitrail.training.train
from support.forked import Python, python, wait_until
from support.runs import (
    EVERYTHING,
    TINY,
    Notebook,
    Signals,
    assert_same_run,
    assert_same_weights,
    command,
    events,
    has_saved,
    last_state,
    rows,
    run,
    settle,
    steps,
)
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError, DataError, Interrupted, MissingExtra, Stopped, TrainingError
from vitrail.evaluation.evaluate import evaluate
from vitrail.models.dialects import write_names
from vitrail.models.registry import create_model, find_variant
from vitrail.training.run.state import list_states, save_state
from vitrail.training.run.stop import Stop
from vitrail.training.setup import build_job
from vitrail.training.start import begin
from vitrail.training.train import due, is_better, train
from vitrail.weights.convert import convert
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt, read_ckpt
from vitrail.weights.loading import load_model, open_model


def test_a_tiny_transformer_learns_three_colours_and_leaves_a_whole_run_folder(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=12", "optim.lr=1e-2")
    assert result.best["val_top1"] == 100.0
    assert result.folder == image_folder.parent / "runs" / "tiny"
    names = {path.name for path in result.folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "curves.png", "best.safetensors", "last"} <= names
    assert len(rows(result.folder)) == 12
    assert not [path for path in result.folder.rglob("*.tmp")]
    assert Path(result.example).is_file()
    assert result.report == result.folder / "report" / "report.html"
    reported = json.loads((result.folder / "report" / "report.json").read_text())
    for ours, theirs in (("top1", "val_top1"), ("top5", "val_top5"), ("loss", "val_loss"), ("n_ok", "val_n")):
        assert reported[ours] == result.best[theirs], ours
    page = result.report.read_text()
    assert page.count("<polyline") == 5
    assert "Training images as the model saw them" in page
    assert "embed_dim: 24" in page


def test_the_saved_config_is_a_recipe_that_repeats_the_run_bit_for_bit(image_folder: Path) -> None:
    first = run(image_folder, "augment.mixup=0.8", "augment.cutmix=1.0", "augment.erase_prob=0.5", "train.epochs=2")
    saved = resolve(TrainConfig, [read_yaml(first.folder / "config.yaml")]).config
    second = train(saved, name="again")
    assert rows(first.folder) == rows(second.folder)
    assert_same_weights(first.folder / "best.safetensors", second.folder / "best.safetensors")


def test_loader_workers_do_not_change_the_run(image_folder: Path) -> None:
    first = run(image_folder, "train.epochs=1", "data.workers=0", "augment.auto_augment=rand-m9-mstd0.5-inc1")
    second = run(image_folder, "train.epochs=1", "data.workers=2", "augment.auto_augment=rand-m9-mstd0.5-inc1")
    assert rows(first.folder) == rows(second.folder)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_stopped_after_any_update_goes_on_to_the_last_bit(image_folder: Path, precision: str) -> None:
    settings = (*EVERYTHING, "train.epochs=3", f"train.precision={precision}")
    whole = run(image_folder, *settings, "output.name=whole").folder
    stopped = image_folder.parent / "runs" / "stopped"
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM after update 1 of 9, and saved; go on with: vitrail train"):
        run(image_folder, *settings, "output.name=stopped", display=Signals(1))
    for update in range(2, 10):  # each time one more, with another number of loader processes now and then
        workers = f"data.workers={2 * (update == 5)}"
        with pytest.raises(Stopped, match=rf"after update {update} of 9"):
            run(image_folder, *settings, "output.name=stopped", workers, resume=stopped, display=Signals(1))
    run(image_folder, *settings, "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)


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
    assert "is finished, with 1 epochs" in display.notes[-1]
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


def test_a_finished_run_says_so_and_is_left_as_it_is(image_folder: Path) -> None:
    first = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0")
    before = {path: path.read_bytes() for path in first.folder.rglob("[!.]*") if path.is_file()}
    display = Notebook()
    again = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", resume=first.folder, display=display)
    assert again.rows == first.rows
    assert again.best == first.best
    assert len(display.notes) == 1
    assert display.notes[0].startswith(
        f"{first.folder} is finished, with 1 epochs; to lengthen it: vitrail train --extend"
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


def mindcv_file(folder: Path) -> Path:
    """Return a MindSpore checkpoint of the tiny model for seven classes at 48 pixels, as MindCV names its weights."""
    options = read_yaml(TINY).values["model"]["options"]
    torch.manual_seed(1)
    model = create_model("tnt_ti_patch16_224", num_classes=7, image_size=48, **options)
    dialect = next(d for d in find_variant("tnt_ti_patch16_224")[0].dialects if d.name == "mindcv")
    links, _ = write_names(model.state_dict(), dialect)
    path = folder / "theirs.ckpt"
    path.write_bytes(b"".join(encode_ckpt({link.theirs[0]: model.state_dict()[link.ours[0]] for link in links})))
    return path


def test_a_net_of_the_zoo_is_trained_and_goes_back_to_it(image_folder: Path, tmp_path: Path) -> None:
    settings = ("model.options.biases=zoo", "model.options.gelu=tanh", "model.options.norm_eps=1.0e-7")
    short = ("train.epochs=1", "schedule.warmup_epochs=0", "ema.decay=null")
    first = run(image_folder, *settings, *short).folder / "best.safetensors"
    assert convert(first, tmp_path / "theirs.ckpt", "zoo").difference == 0
    display = Notebook()
    again = run(image_folder, f"model.weights={tmp_path / 'theirs.ckpt'}", settings[0], *short, display=display).folder
    assert any("zoo tnt_ti_patch16_224" in note for note in display.notes)
    assert load_model(again / "best.safetensors").config == load_model(first).config
    assert convert(again / "best.safetensors", tmp_path / "again.ckpt", "zoo").difference == 0


STILL = ("train.epochs=1", "schedule.warmup_epochs=0", "optim.lr=1e-20", "schedule.min_lr=0")


def test_a_run_begins_with_the_weights_of_another_project(image_folder: Path, tmp_path: Path) -> None:
    path, display = mindcv_file(tmp_path), Notebook()
    result = run(image_folder, f"model.weights={path}", *STILL, display=display)
    assert any(
        "mindcv tnt_ti_patch16_224" in note and "2 new" in note and "1 resized" in note for note in display.notes
    )
    assert any("MindCV normalises with ImageNet's mean and std" in warning for warning in display.warnings)
    loaded, theirs = load_model(result.folder / "best.safetensors"), read_ckpt(path)
    assert loaded.config.gelu == "tanh"
    assert loaded.config.final_norm_eps == 1e-7
    assert loaded.preprocess is not None
    assert loaded.preprocess.mean == (0.485, 0.456, 0.406)
    assert torch.equal(loaded.state_dict()["blocks.0.outer_norm1.weight"], theirs["blocks.0.outer_norm1.gamma"])
    assert loaded.state_dict()["outer_pos"].shape == (1, 5, 24)
    written = read_yaml(result.folder / "config.yaml").values
    assert (written["model"]["options"]["gelu"], written["model"]["weights"]) == ("tanh", str(path))
    assert written["preprocess"]["mean"] == [0.485, 0.456, 0.406]


def numbered(folder: Path, classes: int) -> tuple[Path, Path]:
    """Return folders class1, class2, class10, ... of images, and weights without names of as many classes."""
    root = folder / "numbered"
    for number in (1, 2, *range(10, 8 + classes)):
        (root / f"class{number}").mkdir(parents=True)
        for i in range(6):
            Image.new("RGB", (32, 32), (number * 20, i * 9, 99)).save(root / f"class{number}" / f"{i}.png")
    options = read_yaml(TINY).values["model"]["options"]
    torch.manual_seed(1)
    model = create_model("tnt_ti_patch16_224", num_classes=classes, image_size=32, **options)
    torch.save(model.state_dict(), folder / "nameless.pth")
    return root, folder / "nameless.pth"


def test_a_head_without_names_is_kept_in_training_where_the_counts_are_equal(tmp_path: Path) -> None:
    root, path = numbered(tmp_path, 3)
    head = torch.load(path)["head.weight"]
    display = Notebook()
    result = run(root, f"model.weights={path}", *STILL, "train.batch_size=6", display=display)
    loaded = load_model(result.folder / "best.safetensors")
    assert loaded.classes == ("class1", "class10", "class2")
    assert torch.allclose(loaded.state_dict()["head.weight"], head, atol=1e-5)
    assert any(
        "names no classes; its head is kept, and the order of its 3 outputs is taken" in w for w in display.warnings
    )
    assert any("index 1 is class10 in the order of text" in text for text in display.warnings)

    display = Notebook()
    settings = [f"model.weights={path}", *STILL, "train.batch_size=6", "data.class_order=natural"]
    result = run(root, *settings, display=display)
    assert load_model(result.folder / "best.safetensors").classes == ("class1", "class2", "class10")
    assert not any("in the order of text" in text for text in display.warnings)
    assert read_yaml(result.folder / "config.yaml").values["data"]["class_order"] == "natural"
    again = evaluate(
        result.folder / "best.safetensors", [parse_command_line(["data.workers=0", "evaluate.device=cpu"])]
    )
    assert again.accuracy.top1 == result.rows[-1]["val_top1"]

    names = tmp_path / "names.txt"
    names.write_text("class10\nclass1\nclass2\n")
    display = Notebook()
    result = run(
        root, f"model.weights={path}", f"weights.classes={names}", *STILL, "train.batch_size=6", display=display
    )
    assert torch.allclose(
        load_model(result.folder / "best.safetensors").state_dict()["head.weight"], head[[1, 0, 2]], atol=1e-5
    )
    assert not any("head" in text for text in display.warnings)


def test_a_dropped_head_is_a_warning_and_order_decides_where_it_is_asked_to(tmp_path: Path) -> None:
    root, path = numbered(tmp_path, 4)
    names = tmp_path / "names.txt"
    names.write_text("ant\nbee\ncat\ndog\n")
    settings = [f"model.weights={path}", f"weights.classes={names}", *STILL, "train.batch_size=6"]
    display = Notebook()
    run(root, *settings, display=display)
    assert any(
        "its head is dropped, and that of 4 classes is fresh: none of its 4" in text for text in display.warnings
    )
    display = Notebook()
    result = run(root, *settings, "data.match_classes=by-order", "data.class_order=natural", display=display)
    weights = load_model(result.folder / "best.safetensors").state_dict()["head.weight"]
    assert torch.allclose(weights, torch.load(path)["head.weight"], atol=1e-5)
    assert any(
        "matched with those of the data by their order: 0 is ant there and class1" in w for w in display.warnings
    )
    shutil.rmtree(root / "class10")
    with pytest.raises(DataError, match=r"by-order: .* has 4 classes and the data 3; give as many"):
        run(root, *settings, "data.match_classes=by-order")


def test_a_binary_classifier_of_one_logit_is_trained_on_as_one_of_two(image_folder: Path, tmp_path: Path) -> None:
    _, path = numbered(tmp_path, 1)
    for split in ("train", "val"):
        shutil.rmtree(image_folder / split / "red")
    result = run(image_folder, f"model.weights={path}", *STILL)
    weights = load_model(result.folder / "best.safetensors").state_dict()["head.weight"]
    assert torch.allclose(weights[1], torch.load(path)["head.weight"][0], atol=1e-5)
    assert torch.allclose(weights[0], torch.zeros(()), atol=1e-5)


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


def test_what_is_set_counts_more_than_what_the_weight_file_says(image_folder: Path, tmp_path: Path) -> None:
    settings = ("model.options.gelu=erf", "preprocess.mean=[0.5,0.5,0.5]", *STILL)
    display = Notebook()
    folder = run(image_folder, f"model.weights={mindcv_file(tmp_path)}", *settings, display=display).folder
    assert any("expects gelu=tanh; the settings say erf, which is taken" in text for text in display.warnings)
    assert any("expects preprocess.mean=(0.485, 0.456, 0.406); the settings" in text for text in display.warnings)
    assert any("decides model.options.final_norm_eps=1e-07, preprocess.std=" in text for text in display.notes)
    loaded = load_model(folder / "best.safetensors")
    assert loaded.config.gelu == "erf"
    assert loaded.preprocess is not None
    assert loaded.preprocess.mean == (0.5, 0.5, 0.5)


def test_a_run_goes_on_and_is_forked_without_the_file_it_began_with(image_folder: Path, tmp_path: Path) -> None:
    path = mindcv_file(tmp_path)
    words = [f"data.root={image_folder}", f"output.root={tmp_path / 'runs'}", f"model.weights={path}"]
    start = begin(str(TINY), words)
    with pytest.raises(Stopped):
        train(start.config, name="tiny", display=Signals(2))
    whole = train(start.config, name="whole", display=Quiet())
    path.unlink()
    folder = tmp_path / "runs" / "tiny"
    for recipe in (None, str(TINY)):  # a recipe lacks what the weight file decided, and that is no difference
        again = begin(recipe, [words[0], words[2]] if recipe else [], resume=folder)
        assert again.config.model.options["gelu"] == "tanh"
    resumed = train(again.config, name=again.name, resume=again.resume, display=Quiet())
    assert_same_run(whole.folder, resumed.folder)
    fork = begin(None, ["train.epochs=1"], fork=folder)
    assert fork.config.model.weights is None
    assert fork.config.model.options["gelu"] == "tanh"
    with pytest.raises(ConfigError, match=r"begins with that run's weights; drop model\.weights="):
        begin(None, [f"model.weights={path}"], fork=folder)


def test_a_run_ends_early_when_nothing_gets_better(image_folder: Path) -> None:
    display = Notebook()
    settings = ("optim.lr=1e-20", "schedule.min_lr=0", "schedule.warmup_epochs=0", "train.epochs=9", "train.patience=2")
    result = run(image_folder, *settings, display=display)
    assert len(result.rows) == 3
    assert display.notes == ["stopped early: no better val_top1 for 2 epochs"]
    again = Notebook()
    assert len(run(image_folder, *settings, resume=result.folder, display=again).rows) == 3
    assert "is finished, with 3 epochs" in again.notes[0]


def test_a_gain_below_the_least_one_does_not_keep_a_run_going(image_folder: Path) -> None:
    more = ("train.epochs=12", "optim.lr=1e-3", "train.patience=2", "train.monitor=val_loss")
    patient = run(image_folder, *more, "output.name=patient")
    assert len(patient.rows) == 12
    losses = [row["val_loss"] for row in patient.rows]
    assert losses == sorted(losses, reverse=True)
    # gains of less than this end the run two epochs after the last larger one, the best weights being the last
    least = 1.5 * max(a - b for a, b in itertools.pairwise(losses[:4]))
    settings = (*more, f"train.min_delta={least}", "output.name=strict")
    with pytest.raises(Stopped):
        run(image_folder, *settings, display=Signals(5))
    folder = image_folder.parent / "runs" / "strict"
    strict = run(image_folder, *settings, resume=folder)
    reference, ends = 0, None
    for epoch in range(1, 12):
        if losses[reference] - losses[epoch] > least:
            reference = epoch
        if ends is None and epoch - reference >= 2:
            ends = epoch + 1
    assert len(strict.rows) == ends
    assert strict.best["epoch"] == ends


def test_the_best_epoch_is_that_of_the_monitored_number(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=6", "optim.lr=1e-2", "train.monitor=val_loss")
    assert result.best == min(result.rows, key=lambda row: row["val_loss"])
    assert not is_better({"train_loss": None}, {}, "train_loss")
    assert is_better({"train_loss": 1.0}, {}, "train_loss")
    for best, better in (((1.0, 5.0), True), ((2.0, 5.0), True), ((2.0, 4.0), False), ((3.0, 5.0), False)):
        before = dict(zip(("val_top1", "val_loss"), best, strict=True))
        assert is_better({"val_top1": 2.0, "val_loss": 4.0}, before, "val_top1") is better


def test_a_second_interrupt_says_how_to_go_on_from_the_last_save(image_folder: Path) -> None:
    class Impatient(Quiet):
        def advance(self, steps: int = 1, **values: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"^stopped at once; go on from the last save with: vitrail train --res"):
        run(image_folder, display=Impatient())


def test_accumulated_parts_make_the_update_of_the_whole_batch(image_folder: Path) -> None:
    whole = run(image_folder, "train.epochs=2", "output.name=whole")
    parts = run(image_folder, "train.epochs=2", "train.accumulate=4", "output.name=parts")
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert math.isclose(a["train_loss"], b["train_loss"], rel_tol=1e-4)
        assert a["val_top1"] == b["val_top1"]


def test_gradient_checkpointing_and_channels_last_change_nothing_but_rounding(image_folder: Path) -> None:
    plain = run(image_folder, "train.epochs=1")
    other = run(image_folder, "train.epochs=1", "train.grad_checkpointing=true", "train.channels_last=true")
    assert math.isclose(plain.rows[0]["train_loss"], other.rows[0]["train_loss"], rel_tol=1e-4)


def test_bfloat16_learns_too(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=12", "optim.lr=1e-2", "train.precision=bfloat16")
    assert result.best["val_top1"] == 100.0


def test_averaged_weights_are_what_is_saved(image_folder: Path) -> None:
    result = run(image_folder, "ema.decay=0.5", "train.epochs=2")
    state = last_state(result.folder)
    saved = load_file(result.folder / "best.safetensors")
    assert result.best["epoch"] != 2 or torch.equal(saved["head.weight"], state["ema"]["head.weight"])
    assert not torch.equal(state["model"]["head.weight"], state["ema"]["head.weight"])


def test_cooldown_epochs_come_on_top_at_the_lowest_rate(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=2", "schedule.cooldown_epochs=1", "schedule.min_lr=1e-4")
    assert [row["epoch"] for row in result.rows] == [1, 2, 3]
    assert result.rows[-1]["lr"] == pytest.approx(1e-4)


def test_learning_rate_scales_with_the_batch_when_asked(image_folder: Path) -> None:
    common = ("train.epochs=1", "schedule.warmup_epochs=0", "schedule.name=constant")
    plain = run(image_folder, *common)
    scaled = run(image_folder, *common, "optim.lr_base_batch=32")
    assert scaled.rows[0]["lr"] == pytest.approx(plain.rows[0]["lr"] / 4)


def test_an_unreadable_training_image_is_left_out_and_named(image_folder: Path) -> None:
    victim = sorted((image_folder / "train" / "red").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:200])
    display = Notebook()
    result = run(image_folder, "train.epochs=2", display=display)
    assert [name for name, _ in result.bad_files] == [str(victim)]
    assert result.rows[-1]["n_bad"] == 1
    assert len([text for text in display.warnings if str(victim) in text and text.endswith("; left out")]) == 1


def test_an_unreadable_training_image_stops_the_run_when_asked(image_folder: Path) -> None:
    victim = sorted((image_folder / "train" / "red").iterdir())[0]
    victim.write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.bad_files=skip"):
        run(image_folder, "train.epochs=2", "data.bad_files=error")


def test_an_unreadable_validation_image_is_named_once(image_folder: Path) -> None:
    victim = sorted((image_folder / "val" / "red").iterdir())[0]
    victim.write_bytes(b"")
    display = Notebook()
    result = run(image_folder, "train.epochs=2", display=display)
    assert display.warnings == [f"{victim}: the file is empty; left out"]
    assert [(row["val_n"], row["n_bad"]) for row in result.rows] == [(11, 1), (11, 1)]


def test_one_unreadable_image_does_not_end_an_epoch_of_single_images(image_folder: Path) -> None:
    victim = sorted((image_folder / "train" / "red").iterdir())[0]
    victim.write_bytes(b"")
    result = run(image_folder, "train.epochs=2", "train.batch_size=8", "train.accumulate=8", "augment.mixup=0.8")
    assert [row["n_bad"] for row in result.rows] == [1, 1]
    assert math.isfinite(result.rows[-1]["train_loss"])


def test_a_training_set_without_any_readable_image_stops_the_run(image_folder: Path) -> None:
    for path in (image_folder / "train").rglob("*.jpg"):
        path.write_bytes(b"not an image")
    with pytest.raises(
        TrainingError, match=r"no training image could be read; one is \S+blue_0\.jpg \(not an image of a"
    ):
        run(image_folder)


def test_a_validation_set_without_any_readable_image_stops_the_run(image_folder: Path) -> None:
    for path in (image_folder / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of the 12 images could be read; the first is \S+blue_0\.jpg \(the file is"
    ):
        run(image_folder)


WILD = ("optim.lr=1e30", "schedule.warmup_epochs=0", "schedule.name=constant")


def test_a_loss_that_stays_not_finite_tells_the_story_and_keeps_the_good_save(image_folder: Path) -> None:
    first = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    folder, display = first.with_name("tiny-2"), Notebook()
    with pytest.raises(
        TrainingError,
        match=r"^update [23] and 1 more of this epoch left out, not finite: the output of \S+ \(\w+\); went back 2 "
        rf"times, down to 0\.25 of the learning rate; last good save: {folder}/last/update-00000000\.\w+\.pt; begin a "
        rf"new run from its weights with vitrail train --fork {folder}, a lower optim\.lr, optim\.clip_norm=1 or train",
    ):
        run(
            image_folder, "train.epochs=3", "train.skip_limit=2", "train.rollbacks=2", *WILD, fork=first,
            display=display,
        )  # fmt: skip
    assert [text.split("; ")[1] for text in display.warnings if "went back" in text] == [
        f"went back to update 0, and on from there at {share} of the learning rate" for share in ("0.5", "0.25")
    ]
    assert [path.name[:15] for path in list_states(folder / "last")] == ["update-00000000"]
    assert rows(folder) == []


def once(monkeypatch: pytest.MonkeyPatch, at: int, updates: int = 1) -> None:
    """Make the loss not finite in some updates, the first time they are made: a fault that cannot be ordered."""
    calls, poisoned, original = itertools.count(1), False, vitrail.training.train.train_step

    def step(*arguments: Any) -> Any:
        nonlocal poisoned
        poisoned = at <= next(calls) < at + updates
        try:
            return original(*arguments)
        finally:
            poisoned = False

    def loss(*arguments: Any, **options: Any) -> torch.Tensor:
        value = cross_entropy(*arguments, **options)
        return value * torch.nan if poisoned else value

    monkeypatch.setattr("vitrail.training.train.train_step", step)
    monkeypatch.setattr("vitrail.training.losses.cross_entropy", loss)


def test_an_update_that_is_not_finite_is_left_out_counted_and_told(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, at=5)
    display = Notebook()
    result = run(image_folder, "train.epochs=3", "augment.mixup=0.8", display=display)
    assert [(row["skipped"], row["overflow_rate"]) for row in result.rows] == [(0, 0.0), (1, 1 / 3), (0, 0.0)]
    assert display.warnings == [
        "update 5 left out, not finite: only with the weights it had then, not with those it has now"
    ]
    assert all(math.isfinite(row["train_loss"]) for row in result.rows)
    assert [row["update"] for row in steps(result.folder) if row["loss"] is None] == [5]
    state = last_state(result.folder)
    assert {float(moments["step"]) for moments in state["optimizer"]["state"].values()} == {8.0}


def test_a_fault_that_passes_is_survived_by_going_back_once(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, at=6, updates=3)
    display = Notebook()
    result = run(
        image_folder, "train.epochs=4", "train.skip_limit=3", "output.save_every_updates=2", "schedule.name=constant",
        "schedule.warmup_epochs=0",
        display=display,
    )  # fmt: skip
    assert [text.split("; ")[-1] for text in display.warnings][-1] == (
        "went back to update 4, and on from there at 0.5 of the learning rate"
    )
    assert [row["epoch"] for row in result.rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in result.rows] == pytest.approx([3e-3, 1.5e-3, 1.5e-3, 1.5e-3])
    assert rows(result.folder) == [{k: v for k, v in row.items() if not k.endswith("_s")} for row in result.rows]
    made = steps(result.folder)
    assert [row["update"] for row in made] == list(range(1, 13))
    assert [row["lr"] for row in made] == pytest.approx([3e-3] * 4 + [1.5e-3] * 8)
    assert all(row["loss"] is not None for row in made)
    assert [step for step, _ in events(result.folder, "tensorboard/steps")["loss"]] == list(range(1, 13))


def test_a_run_stopped_while_updates_are_left_out_keeps_the_good_save(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, at=4, updates=99)
    with pytest.raises(Stopped):
        run(image_folder, "train.epochs=4", "output.save_every_updates=1", display=Signals(5))
    assert list_states(image_folder.parent / "runs" / "tiny" / "last")[0].name.startswith("update-00000003.")


def test_an_epoch_without_any_update_has_no_training_loss(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once(monkeypatch, at=4, updates=3)
    result = run(image_folder, "train.epochs=3")
    assert [row["train_loss"] is None for row in result.rows] == [False, True, False]
    assert json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[1])["train_top1"] is None


def test_weights_that_are_not_finite_are_not_saved(image_folder: Path) -> None:
    # one update an epoch: its loss is that of the weights before it
    with pytest.raises(TrainingError, match=r"weights are not finite after update 1; went back 1 times, down to 0\.5"):
        run(
            image_folder, "train.batch_size=24", "optim.eps=1e-30", *WILD[1:], "optim.lr=3e38",
            "optim.weight_decay=1e3", "train.rollbacks=1", "output.save_every_updates=1",
        )  # fmt: skip
    folder = image_folder.parent / "runs" / "tiny"
    assert not (folder / "best.safetensors").exists()
    assert [path.name[:15] for path in list_states(folder / "last")] == ["update-00000000"]


def test_a_tracker_that_is_not_installed_is_refused_before_training(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.training.run.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"^output\.trackers has wandb, which is not installed; run: pip inst"):
        run(image_folder, "output.trackers=[tensorboard, wandb]")


def test_trackers_may_be_none(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.trackers=[]").folder
    assert not (folder / "tensorboard").exists()


def test_anomaly_detection_names_the_operation(image_folder: Path) -> None:
    with (
        pytest.warns(UserWarning, match="Error detected in"),
        pytest.raises(TrainingError, match=r"^train\.detect_anomaly: Function '\w+' returned nan values in its"),
    ):
        run(image_folder, "train.detect_anomaly=true", *WILD)


def test_an_average_that_is_too_slow_for_the_run_is_told(image_folder: Path) -> None:
    display = Notebook()
    short = ("train.epochs=1", "schedule.warmup_epochs=0", "ema.decay=0.9999")
    run(image_folder, *short, "ema.warmup=false", display=display)
    assert display.warnings == [
        "ema.decay 0.9999 is slow for 3 updates: 100% of the weights that are evaluated and saved will be the initial "
        "ones; lower it, or set ema.decay=null"
    ]


def test_an_average_that_is_too_slow_for_the_run_follows_its_updates(image_folder: Path) -> None:
    display = Notebook()
    more = ("train.epochs=4", "optim.lr=1e-2", "ema.decay=0.99996")
    result = run(image_folder, *more, "output.name=follows", display=display)
    assert not display.warnings
    assert display.notes == [
        "ema.decay 0.99996 is slow for 12 updates, so it follows their number, as (1 + n) / (10 + n); ema.warmup=false "
        "keeps it as it is"
    ]
    kept = run(image_folder, *more, "ema.warmup=false", "output.name=kept")
    chance = 100 / 3
    assert result.best["val_top1"] > 1.5 * chance
    assert result.best["val_loss"] < kept.best["val_loss"]

    # by hand: from the weights of every update
    state, average = run(image_folder, *more, "output.save_every_updates=1", "output.keep_last=99"), {}
    for path in reversed(list_states(state.folder / "last")):
        saved = torch.load(path, weights_only=True)
        made = 3 * saved["epoch"] + saved["step"]
        decay = min(0.99996, made / (9 + made))
        average = {
            name: decay * average.get(name, tensor) + (1 - decay) * tensor for name, tensor in saved["model"].items()
        }
    for name, tensor in last_state(state.folder)["ema"].items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        (("ema.decay=0.9",), [0.1, 2 / 11, 0.9]),  # 0.9 ** 12 of the initial weights would be left
        (("ema.decay=0.5",), [0.5, 0.5, 0.5]),
        (("ema.decay=0.5", "ema.warmup=true"), [0.1, 2 / 11, 0.5]),
        (("ema.decay=0.9", "ema.warmup=false"), [0.9, 0.9, 0.9]),
    ],
)
def test_the_decay_of_an_average_follows_the_updates_up_to_its_setting(
    image_folder: Path, settings: tuple[str, ...], decays: list[float]
) -> None:
    config = settle(image_folder, *settings)
    accelerator = Accelerator(cpu=True)
    job, _ = build_job(config, accelerator, "float32", Quiet(), Stop(None))
    assert [job.average_decay(update) for update in (0, 1, 999)] == pytest.approx(decays)


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


def test_the_last_best_weights_are_kept_when_asked(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=6", "optim.lr=1e-2", "train.monitor=train_loss", "output.keep_best=2")
    kept = [open_model(result.folder / f"best{n}.safetensors").record.metrics["epoch"] for n in ("", "-2")]
    falls = [
        row["epoch"]
        for row in result.rows
        if row["train_loss"] == min(r["train_loss"] for r in result.rows[: row["epoch"]])
    ]
    assert kept == falls[:-3:-1]


def test_model_options_cannot_say_twice_what_the_settings_say(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.num_classes: is not an option"):
        run(image_folder, "model.options.num_classes=7")


def test_due_is_true_every_so_often_and_at_the_end() -> None:
    assert [n for n in range(10) if due(n, 4, 10)] == [3, 7, 9]


def test_a_name_with_dollars_is_no_formula(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=q$x^$")
    assert (result.folder / "curves.png").stat().st_size > 10_000


def test_of_epochs_as_accurate_the_one_of_lower_loss_is_the_best(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=14", "optim.lr=1e-2")
    top1 = max(row["val_top1"] for row in result.rows)
    accurate = [row for row in result.rows if row["val_top1"] == top1]
    assert len(accurate) > 1
    assert result.best == min(accurate, key=lambda row: row["val_loss"])


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_a_tracker_takes_the_numbers_of_a_run_and_of_its_resumption(image_folder: Path, name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    place = image_folder.parent
    environment = {
        **os.environ, "TRACKIO_DIR": str(place / "trackio"), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
    }  # fmt: skip
    for words in (
        command(image_folder, f"output.trackers=[{name}]", "train.epochs=1", "schedule.warmup_epochs=0"),
        [*command(image_folder)[:3], "--extend", str(place / "runs" / "tiny"), "train.epochs=2"],
    ):
        done = python(*words, env=environment, cwd=place)
        assert done.returncode == 0
        assert "is given no more numbers" not in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_update_does_not_wait_for_the_device(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = vitrail.training.train.train_step

    def step(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr("vitrail.training.train.train_step", step)
    for precision in ("float32", "bfloat16", "float16"):
        run(image_folder, *EVERYTHING, "train.device=auto", f"train.precision={precision}", "train.epochs=2")


def test_images_are_looked_at_once_before_the_first_training(image_folder: Path) -> None:
    victim = image_folder / "train" / "red" / "red_3.jpg"
    assert victim.exists()
    victim.write_bytes(victim.read_bytes()[:90])
    (image_folder / "val" / "red" / "copy.jpg").write_bytes((image_folder / "train" / "red" / "red_1.jpg").read_bytes())
    settings = ("train.epochs=1", "schedule.warmup_epochs=0", "data.check=true")
    first = Notebook()
    run(image_folder, *settings, display=first)
    said = [text for text in first.warnings if "images" in text]
    assert any(text.startswith("1 images cannot be read: ") for text in said)
    assert "1 groups of images on both sides of training and validation are the same file, byte for byte" in said[1]
    assert f"to see them: vitrail check-data data.root={image_folder}" in first.notes
    result = run(image_folder, *settings, "data.bad_files=quarantine", display=(second := Notebook()))
    assert any("1 images that cannot be read are left out" in text for text in second.notes)
    assert result.rows[-1]["n_bad"] == 0
    weights = open_model(result.folder / "best.safetensors")
    assert len(weights.record.provenance["manifest"]) == 16
    with pytest.raises(
        DataError, match=r"red/red_3\.jpg: cannot be read, .*; so it is with 1 images in all; repair or remove"
    ):
        run(image_folder, *settings, "data.bad_files=error")


def test_a_check_changes_nothing_of_a_run(image_folder: Path) -> None:
    plain = run(image_folder, "train.epochs=2", "output.name=plain")
    checked = run(image_folder, "train.epochs=2", "output.name=checked", "data.check=true")
    assert_same_run(checked.folder, plain.folder)


def test_a_run_does_not_go_on_with_other_validation_images(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    val = image_folder / "val"
    aside = image_folder.parent / "aside"
    again = f"; put them back as they were, or begin a new run from its weights with vitrail train --fork {folder}"

    def refusal() -> str:
        with pytest.raises(DataError) as caught:
            run(image_folder, "train.epochs=2", "schedule.warmup_epochs=0", resume=folder)
        return str(caught.value)

    what = f"{folder}: was validated with other images than those in data.root: "
    (val / "red" / "red_0.jpg").rename(aside)
    assert refusal() == f"{what}1 are gone (red/red_0.jpg){again}"
    shutil.copy(aside, val / "green" / "more.jpg")
    assert refusal() == f"{what}1 are gone (red/red_0.jpg), 1 are new (green/more.jpg){again}"
    (val / "green" / "more.jpg").rename(val / "red" / "red_0.jpg")
    assert len(run(image_folder, "train.epochs=2", "schedule.warmup_epochs=0", resume=folder).rows) == 2


def test_other_labels_of_the_validation_images_are_told(image_folder: Path) -> None:
    table = [f"{p.relative_to(image_folder)},{p.parent.name},{p.parts[-3]}" for p in image_folder.rglob("*.jpg")]
    (image_folder / "l.csv").write_text("path,label,split\n" + "\n".join(sorted(table)) + "\n")
    settings = (f"data.list={image_folder}/l.csv", "schedule.warmup_epochs=0")
    folder = run(image_folder, *settings, "train.epochs=1").folder
    text = (image_folder / "l.csv").read_text()
    (image_folder / "l.csv").write_text(text.replace("val/red/red_0.jpg,red", "val/red/red_0.jpg,blue"))
    with pytest.raises(DataError, match=r"data\.root: 1 have another class \(val/red/red_0\.jpg\); put them back"):
        run(image_folder, *settings, "train.epochs=2", resume=folder)


@pytest.mark.parametrize("check", ["true", "false"])
def test_the_best_epoch_is_not_compared_across_other_contents(image_folder: Path, check: str) -> None:
    settings = ("schedule.warmup_epochs=0", f"data.check={check}", "train.monitor=val_loss")
    first = run(image_folder, *settings, "train.epochs=2")
    display = Notebook()
    run(image_folder, *settings, "train.epochs=2", resume=first.folder, display=display)
    assert not display.warnings
    for path in (image_folder / "val" / "red").glob("*.jpg"):  # harder ones
        path.write_bytes((image_folder / "val" / "blue" / path.name.replace("red", "blue")).read_bytes())
    told = (
        f"{first.folder}: its validation images are others than before: 4 have another content (red/red_0.jpg, "
        "red/red_1.jpg, red/red_2.jpg and 1 more); accuracies cannot be compared"
    )
    done = run(image_folder, *settings, "train.epochs=2", resume=first.folder, display=display)
    assert display.warnings.pop() == told  # it is finished, and keeps its best epoch
    assert done.best == first.best
    for number in (2, 3):
        shutil.copy(first.folder / "best.safetensors", first.folder / f"best-{number}.safetensors")
    kept = "output.keep_best=3"
    longer = run(image_folder, *settings, "train.epochs=3", kept, resume=first.folder, display=display)
    assert [path.name for path in first.folder.glob("best*")] == ["best.safetensors"]  # those before compare nothing
    assert f"{told}, so the best epoch is looked for anew" in display.warnings
    assert longer.best["epoch"] == 3  # though it is worse than those before
    assert longer.best["val_loss"] > first.best["val_loss"]
    display.warnings.clear()
    run(image_folder, *settings, "train.epochs=4", resume=first.folder, display=display)
    assert not [text for text in display.warnings if "validation images" in text]


def test_a_fork_compares_nothing_with_the_validation_images_before(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    for path in (image_folder / "val" / "red").glob("*[123].jpg"):
        path.unlink()
    forked = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", fork=folder)
    assert forked.best["epoch"] == 1
    assert forked.best["val_n"] == 9


def test_a_save_that_does_not_know_its_validation_images_says_so(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    saved = last_state(folder)
    del saved["validation"]
    save_state(folder / "last", saved, saved["epoch"] * 3, 1)
    display = Notebook()
    run(image_folder, "train.epochs=2", "schedule.warmup_epochs=0", resume=folder, display=display)
    assert any("so it is not known whether its validation images are the same" in note for note in display.notes)


def test_inputs_that_look_odd_are_told_once(image_folder: Path) -> None:
    settings = ("schedule.warmup_epochs=0",)
    display = Notebook()
    run(image_folder, *settings, "train.epochs=2", "output.name=usual", display=display)
    assert not [text for text in display.warnings if "normalised" in text]
    odd = (*settings, "preprocess.mean=[0,0,0]", f"preprocess.std={[1 / 255] * 3}", "output.name=odd")
    folder = run(image_folder, *odd, "train.epochs=1", display=display).folder
    told = [text for text in display.warnings if "normalised" in text]
    assert len(told) == 1
    assert told[0].startswith(
        "the first 24 images are far from mean 0 and standard deviation 1 once they are normalised"
    )
    display.warnings.clear()
    run(image_folder, *odd, "train.epochs=2", resume=folder, display=display)
    assert not [text for text in display.warnings if "normalised" in text]
