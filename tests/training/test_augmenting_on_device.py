"""Runs whose policy is computed by the device, for whole batches."""

import math
from pathlib import Path

import pytest

from support.forked import python
from support.runs import EVERYTHING, Signals, assert_same_run, command, rows, run, settle, torchrun
from vitrail.display import Quiet
from vitrail.errors import ConfigError, Stopped
from vitrail.training.preview import preview
from vitrail.training.start import begin

POLICY = ("augment.auto_augment=rand-m9-mstd0.5-inc1", "augment.device=true")


@pytest.mark.thorough
def test_a_run_stopped_after_an_update_goes_on_to_the_last_bit_with_any_number_of_workers(image_folder: Path) -> None:
    settings = (*EVERYTHING, *POLICY, "train.epochs=3")
    whole = run(image_folder, *settings, "output.name=whole").folder
    stopped = whole.with_name("stopped")
    with pytest.raises(Stopped):
        run(image_folder, *settings, "output.name=stopped", display=Signals(2))
    with pytest.raises(Stopped):
        run(image_folder, *settings, "data.workers=2", resume=stopped, display=Signals(2))
    run(image_folder, *settings, resume=stopped)
    assert_same_run(stopped, whole)
    plain = run(image_folder, *settings, "augment.device=false", "output.name=plain").folder
    assert rows(plain) != rows(whole)


@pytest.mark.thorough
def test_micro_batches_and_processes_see_the_same_views(image_folder: Path) -> None:
    settings = (*POLICY, "train.epochs=2", "schedule.warmup_epochs=0", "optim.lr=1e-3")
    whole = run(image_folder, *settings, "output.name=whole")
    parts = run(image_folder, *settings, "train.accumulate=4", "output.name=parts")
    done = python(*torchrun(2, *command(image_folder, *settings, "output.name=pair")))
    assert done.returncode == 0, done.stderr
    for one, other, pair in zip(
        rows(whole.folder), rows(parts.folder), rows(whole.folder.with_name("pair")), strict=True
    ):
        assert math.isclose(one["train_loss"], other["train_loss"], rel_tol=1e-4)
        assert math.isclose(one["train_loss"], pair["train_loss"], rel_tol=1e-4)
        assert one["val_top1"] == other["val_top1"] == pair["val_top1"]


def test_another_policy_is_refused_and_none_is_told(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^augment\.device=true computes RandAugment alone, and .* 'augmix-m3-w3'"):
        run(image_folder, "augment.auto_augment=augmix-m3-w3", "augment.device=true")
    start = begin(None, ["data.name=digits", "augment.auto_augment=null", "augment.device=true"])
    assert [text for _, text in start.remarks if text.startswith("augment.device")] == [
        "augment.device=true: does nothing, since augment.auto_augment is null"
    ]


def test_a_preview_shows_what_the_device_makes_of_the_images(image_folder: Path, tmp_path: Path) -> None:
    pages = []
    for number, settings in enumerate(((), POLICY)):
        output = tmp_path / f"{number}.html"
        preview(settle(image_folder, *settings), output, Quiet(), images=2, views=2)
        pages.append(output.read_text())
    assert pages[0] != pages[1]
