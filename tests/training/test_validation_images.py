"""What a run knows of its images: checked before it, and compared when it goes on."""

import shutil
from pathlib import Path

import pytest

from support.runs import (
    Notebook,
    assert_same_run,
    last_state,
    run,
)
from vitrail.errors import DataError
from vitrail.training.run.state import save_state
from vitrail.weights.loading import open_model


def test_images_are_looked_at_once_before_the_first_training(image_folder: Path) -> None:
    victim = image_folder / "train" / "red" / "red_3.jpg"
    assert victim.exists()
    victim.write_bytes(victim.read_bytes()[:90])
    (image_folder / "val" / "red" / "copy.jpg").write_bytes((image_folder / "train" / "red" / "red_1.jpg").read_bytes())
    settings = ("train.epochs=1", "schedule.warmup_epochs=0", "data.check=true")
    first = Notebook()
    run(image_folder, *settings, display=first)
    said = [text for text in first.warnings if "image" in text]
    assert any(text.startswith("1 image cannot be read: ") for text in said)
    assert "1 group of images on both sides of training and validation are the same file, byte for byte" in said[1]
    assert f"to see them: vitrail check-data data.root={image_folder}" in first.notes
    result = run(image_folder, *settings, "data.bad_files=quarantine", display=(second := Notebook()))
    assert any("left out 1 image that cannot be read" in text for text in second.notes)
    assert result.rows[-1]["n_bad"] == 0
    weights = open_model(result.folder / "best.safetensors")
    assert len(weights.record.provenance["manifest"]) == 16
    with pytest.raises(
        DataError, match=r"red/red_3\.jpg: cannot be read, .*; so it is with 1 image in all; repair or remove"
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
    again = f"; put them back as they were, or begin a new run from its weights with vitrail.train(fork='{folder}')"

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
