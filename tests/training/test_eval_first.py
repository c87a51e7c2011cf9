"""The weights that a run begins with, evaluated before the first update and kept until an epoch is better."""

from pathlib import Path

import pytest

from support.runs import Signals, assert_same_run, assert_same_weights, rows, run
from vitrail.errors import Stopped


def test_a_run_from_good_weights_never_ends_with_worse_ones(image_folder: Path) -> None:
    good = run(image_folder, "train.epochs=12", "optim.lr=1e-2", "output.name=good")
    assert good.best["val_top1"] == 100.0
    ruinous = ("train.epochs=1", "optim.lr=10", "schedule.warmup_epochs=0")
    begin_with = (f"model.weights={good.folder / 'best.safetensors'}", "train.eval_first=true", "output.name=worse")
    worse = run(image_folder, *ruinous, *begin_with)
    first, last = rows(worse.folder)
    assert (first["epoch"], first["updates"], first["train_loss"]) == (0, 0, None)
    assert first["val_top1"] == 100.0
    assert last["val_top1"] < 100.0
    assert worse.best["epoch"] == 0
    assert_same_weights(worse.folder / "best.safetensors", good.folder / "best.safetensors")
    assert (worse.folder / "curves.png").exists()
    assert worse.report is not None
    assert "1 epochs in" in worse.report.read_text()


def test_initial_weights_are_evaluated_once_though_the_run_is_stopped(image_folder: Path) -> None:
    settings = ("train.epochs=2", "train.eval_first=true")
    whole = run(image_folder, *settings, "output.name=whole")
    assert [row["epoch"] for row in rows(whole.folder)] == [0, 1, 2]
    with pytest.raises(Stopped):
        run(image_folder, *settings, "output.name=stopped", display=Signals(1))
    stopped = image_folder.parent / "runs" / "stopped"
    run(image_folder, *settings, "output.name=stopped", resume=stopped)
    assert rows(stopped) == rows(whole.folder)
    assert_same_run(stopped, whole.folder)


def test_initial_weights_are_not_evaluated_unless_asked(image_folder: Path) -> None:
    assert [row["epoch"] for row in rows(run(image_folder, "train.epochs=1").folder)] == [1]
