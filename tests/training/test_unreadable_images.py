"""Images that cannot be read in a training: left out and named, or the end of the run."""

import math
from pathlib import Path

import pytest

from support.runs import (
    Notebook,
    run,
)
from vitrail.errors import DataError, TrainingError


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
