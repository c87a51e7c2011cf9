"""Labels that look wrong: found by features out of fold, shown on the page of check-data, and in a file."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

import vitrail
from support.commands import refused, run
from support.pages import check_page
from vitrail.embedding.suspects import group_copies


@pytest.fixture
def mislabelled(image_folder: Path) -> list[str]:
    """Return two images of a folder that were moved to another class."""
    train = image_folder / "train"
    (train / "red/red_0.jpg").rename(train / "blue/=red_0.jpg")
    (train / "blue/blue_5.jpg").rename(train / "green/blue_5.jpg")
    return ["train/blue/=red_0.jpg", "train/green/blue_5.jpg"]


def test_images_in_the_wrong_class_are_named_first(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, mislabelled: list[str], capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / "check"
    words = (f"data.root={image_folder}", "--output", output, "--suspects", tiny_checkpoint)
    assert run("check-data", *words) == 0
    assert (
        "a linear layer that has not seen them agrees with 94.4 % of 36 labels\n"
        f"2 differ from what it says, to be looked at, not to be believed: {output / 'suspects.csv'}\n"
        f"page: {output / 'check.html'}\n"
        f"next: vitrail finetune {image_folder} --weights {tiny_checkpoint}\n"
    ) in capsys.readouterr().out
    with (output / "suspects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["path"] for row in rows) == sorted(mislabelled)
    by_path = {row["path"]: (row["class"], row["likelier"]) for row in rows}
    assert by_path[mislabelled[0]] == ("blue", "red")
    assert by_path[mislabelled[1]] == ("green", "blue")
    assert float(rows[0]["loss"]) >= float(rows[1]["loss"]) > 0.5
    page = (output / "check.html").read_text()
    check_page(page)
    assert page.count("; likelier ") == 2
    assert "2 of 36 images look more like another class" in page
    assert "It agrees with 94.4 % of the labels, and the lower that is, the less its doubt means." in page
    # and an earlier report, with its file, is replaced
    assert run("check-data", *words) == 0


def test_a_copy_does_not_vouch_for_the_label_of_another(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, mislabelled: list[str]
) -> None:
    for number in range(4):
        shutil.copy(image_folder / mislabelled[1], image_folder / f"train/green/copy_{number}.jpg")
    found = vitrail.check_data(
        {"data.root": str(image_folder)}, output=tmp_path / "check", suspects=tiny_checkpoint
    ).suspects
    assert found is not None
    named = {one.path for one in found}
    assert {*mislabelled, *(f"train/green/copy_{number}.jpg" for number in range(4))} <= named


def test_copies_form_one_group_by_their_bytes_or_their_pictures() -> None:
    contents = np.array([[1, 1], [2, 2], [1, 1], [3, 3], [4, 4]], np.uint64)
    pictures = np.random.default_rng(0).integers(1, 2**64, 5, np.uint64)
    pictures[4] = pictures[2] ^ np.uint64(1)
    groups = group_copies(contents, pictures)
    assert groups[0] == groups[2] == groups[4]
    assert len({*groups.tolist()}) == 3


def test_images_are_judged_by_the_size_of_the_weights(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    data = {"data.root": str(image_folder)}
    alone = vitrail.check_data(data, output=tmp_path / "alone")
    assert any("smaller than the model's 224 x 224 pixels" in one.what for one in alone.problems)
    by_weights = vitrail.check_data(data, output=tmp_path / "check", suspects=tiny_checkpoint)
    assert not any("smaller than the model's" in one.what for one in by_weights.problems)


def test_without_wrong_labels_none_is_named(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    check = vitrail.check_data({"data.root": str(image_folder)}, output=tmp_path / "check", suspects=tiny_checkpoint)
    assert check.suspects == ()
    assert "No label looks wrong." in check.page.read_text()
    without = vitrail.check_data({"data.root": str(image_folder)}, output=tmp_path / "other")
    assert without.suspects is None
    assert not (tmp_path / "other/suspects.csv").exists()


def test_what_has_no_suspects_is_one_line(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    output = ("--output", tmp_path / "check")
    listed = tmp_path / "labels.csv"
    rows = [f"train/{name}/{name}_{number}.jpg,{name}|seen" for name in ("red", "blue") for number in range(8)]
    listed.write_text("\n".join(["path,labels", *rows]) + "\n")
    line = refused(
        capsys, "check-data", f"data.list={listed}", f"data.root={image_folder}", *output, "--suspects", tiny_checkpoint
    )
    assert "is for one class an image, and these have any number; leave it out for them" in line
    one = tmp_path / "one"
    shutil.copytree(image_folder / "train/red", one / "red")
    line = refused(capsys, "check-data", f"data.root={one}", *output, "--suspects", tiny_checkpoint)
    assert "all 8 images have the same class, so no label can look wrong; leave it out" in line
    line = refused(capsys, "check-data", f"data.root={image_folder}", *output, "--suspects", tmp_path / "no.ckpt")
    assert str(tmp_path / "no.ckpt") in line
