"""Folders of images: splits, classes, what is passed over, and what is refused, on real files."""

from __future__ import annotations

import os
import socket
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from support.image_folders import message, names, open_data, open_split, opened, write_images
from vitrail.errors import ConfigError, DataError
from vitrail.images.pixels import RGB

SPLITS = {"train_split": "train", "val_split": "val"}


def test_a_root_with_splits_is_read_in_order(folder):
    data = opened(folder)
    assert data.classes == ("ant", "bee", "cat")
    assert data.notes == ()
    assert names(data.train) == [f"{folder}/train/{name}/{i}.jpg" for name in data.classes for i in range(8)]
    assert data.train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8
    assert len(data.val) == 12
    assert data.val.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.train.description == f"{folder}/train"
    assert data.train.example(folder) == f"{folder}/train/ant/0.jpg"
    assert data.train.image(9, RGB).shape == (3, 10, 16)


def test_other_split_names_deep_folders_and_upper_case_suffixes(tmp_path):
    write_images(
        tmp_path, "training/a/x.PNG", "training/a/deep/er/y.Jpg", "training/b/z.tif", "test/a/1.png", "test/b/2.png"
    )
    data = opened(tmp_path, train_split="training", val_split="test")
    assert names(data.train) == [f"{tmp_path}/training/{p}" for p in ("a/deep/er/y.Jpg", "a/x.PNG", "b/z.tif")]
    assert len(data.val) == 2


def test_what_is_ignored_is_said(folder):
    write_images(
        folder, "train/.ipynb_checkpoints/1.png", "train/ant/._0.jpg", "train/__MACOSX/ant/0.jpg", "train/stray.png"
    )
    (folder / "train/bee/.DS_Store").write_text("")
    (folder / "train/bee/labels.txt").write_text("")
    (folder / "train/README").write_text("")
    data = opened(folder)
    assert len(data.train) == 24
    assert data.classes == ("ant", "bee", "cat")
    hidden = ".ipynb_checkpoints, __MACOSX, ant/._0.jpg, bee/.DS_Store"
    assert data.notes == (
        f"{folder}/train: ignored 4 hidden or system files or folders: {hidden}",
        f"{folder}/train: ignored 2 files that are not images: README, bee/labels.txt",
        f"{folder}/train: ignored 1 image outside the class folders: stray.png",
    )


def test_file_names_of_any_bytes_are_read(tmp_path):
    root = write_images(tmp_path, *[f"{split}/{name}/1.png" for split in ("train", "val") for name in ("a", "b")])
    (root / "train/a/1.png").rename(os.fsdecode(os.fsencode(root / "train/a") + b"/\xff caf\xc3\xa9.png"))
    data = opened(root)
    assert data.train.name(0) == f"{root}/train/a/\\udcff caf\u00e9.png"
    assert data.train.image(0, RGB).shape == (3, 10, 12)


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    write_images(tmp_path / "elsewhere", "1.png", "2.png")
    (folder / "train/ant/more").symlink_to(tmp_path / "elsewhere")
    assert len(opened(folder).train) == 26
    (folder / "train/ant/loop").symlink_to(folder / "train/ant")
    (folder / "train/dog").symlink_to(folder)  # would be a class of all images
    data = opened(folder)
    assert (len(data.train), data.classes) == (26, ("ant", "bee", "cat"))
    circle = "a link to a folder that contains it"
    note = f"{folder}/train: ignored 2 that are no regular files: ant/loop ({circle}), dog ({circle})"
    assert data.notes == (note,)


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir", "#recycle", ".@__thumb", "@Recycle", "lost+found", "$RECYCLE.BIN", "$Recycle.Bin", "__MACOSX",
        "System Volume Information", ".AppleDouble", ".Spotlight-V100", ".Trash-1000", "FOUND.000", "__pycache__",
    ],
)  # fmt: skip
def test_folders_of_systems_are_no_classes_and_hold_no_images(folder, name):
    write_images(
        folder, f"{name}/0.png", f"train/{name}/0.png", f"train/ant/{name}/0.jpg/thumb.png", f"val/ant/{name}/0.png"
    )
    data = opened(folder)
    assert (len(data.train), data.classes) == (24, ("ant", "bee", "cat"))
    assert data.notes == (
        f"{folder}: ignored 1 hidden or system files or folders: {name}",
        f"{folder}/train: ignored 2 hidden or system files or folders: {', '.join(sorted((name, f'ant/{name}')))}",
        f"{folder}/val: ignored 1 hidden or system files or folders: ant/{name}",
    )


def test_files_of_systems_are_passed_over(folder):
    for name in ("Thumbs.db", "ehthumbs.db", "desktop.ini", "Desktop.ini", "._0.jpg", "Icon\r"):
        (folder / "train/ant" / name).write_bytes(b"")
    (note,) = opened(folder).notes
    assert note.startswith(f"{folder}/train: ignored 6 hidden or system files or folders: ant/._0.jpg, ant/Desktop.ini")


def test_what_is_no_regular_file_is_never_opened(folder, monkeypatch):
    os.mkfifo(folder / "train/ant/x.png")
    os.mkfifo(folder / "train/pipe")
    os.mkfifo(folder / "beside")
    (folder / "train/ant/null.png").symlink_to("/dev/null")
    (folder / "train/ant/gone.png").symlink_to("nowhere")
    (folder / "train/ant/self.png").symlink_to("self.png")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder / "train/bee")  # a longer address would be none
        listener.bind("y.png")
    data = opened(folder)
    assert (len(data.train), data.classes) == (24, ("ant", "bee", "cat"))
    assert data.notes == (
        f"{folder}: ignored 1 that are no regular files: beside (a pipe)",
        f"{folder}/train: ignored 6 that are no regular files: ant/gone.png (a broken link), ant/null.png (a device), "
        "ant/self.png (a broken link), ant/x.png (a pipe), bee/y.png (a socket), pipe (a pipe)",
    )


def test_class_folders_directly_are_divided_by_name(tmp_path):
    root = write_images(
        tmp_path / "one",
        *[f"{name}/{i}.png" for name in ("a", "b") for i in range(20)],
        "c/1.png",
        "c/2.png",
        "d/1.png",
    )
    data = opened(root, val_fraction=0.2)
    assert np.bincount(data.train.labels).tolist() == [16, 16, 1, 1]
    assert np.bincount(data.val.labels).tolist() == [4, 4, 1]
    assert not set(names(data.train)) & set(names(data.val))
    assert data.notes == (
        "held out 9 of 43 images, 20% of each class, for validation",
        "1 class has one image, which is trained on and not validated: d",
    )
    assert data.val.description == f"{root}, held-out part"
    # wherever the folder lies and whatever is added to other classes
    moved = root.rename(tmp_path / "other")
    write_images(moved, "e/1.png", "e/2.png")
    again = opened(moved, val_fraction=0.2)
    old = {name.removeprefix(str(root)) for name in names(data.val)}
    assert {n.removeprefix(str(moved)) for n in names(again.val) if "/e/" not in n} == old


def test_no_validation_split_holds_out_of_the_training_folder(folder):
    data = opened(folder, val_split=None, val_fraction=0.25)
    assert (len(data.train), len(data.val)) == (18, 6)
    assert all("/train/" in name for name in names(data.val))


def test_one_split_opens_without_the_other(folder, tmp_path):
    for split, images in (("train", 24), ("val", 12)):
        source, notes = open_split(None, folder, split, **SPLITS)
        assert len(source) == images
        assert notes == ()
    write_images(tmp_path / "alone", "val/ant/1.png", "val/bee/1.png")
    assert names(open_split(None, tmp_path / "alone", "val", **SPLITS)[0]) == [
        f"{tmp_path}/alone/val/{c}/1.png" for c in ("ant", "bee")
    ]
    both = {split: names(open_split(None, folder / "train", split, **SPLITS)[0]) for split in ("train", "val", "all")}
    assert sorted(both["train"] + both["val"]) == both["all"]
    assert len(both["all"]) == 24
    data = opened(folder / "train")
    assert (names(data.train), names(data.val)) == (both["train"], both["val"])
    held = open_split(None, folder, "val", train_split="train", val_split=None)
    assert len(held[0]) == 6
    assert held[1] == ("held out 6 of 24 images, 20% of each class, for validation",)


def test_split_errors(folder, tmp_path):
    def split_message(root: Path, split: str, **options) -> str:
        with pytest.raises((DataError, ConfigError)) as caught:
            open_split(None, root, split, **options)
        return str(caught.value)

    assert split_message(folder, "all") == f"evaluate.split all: {folder} is divided into splits; choose train or val"
    write_images(tmp_path / "alone", "val/ant/1.png", "val/bee/1.png")
    assert split_message(tmp_path / "alone", "train") == f"data.root {tmp_path}/alone: has no train/; its folders: val"
    assert "has train/ but no dev/" in split_message(folder, "val", val_split="dev")


def test_roots_that_cannot_be_read(folder, tmp_path):
    assert message(tmp_path / "sett") == f"data.root {tmp_path}/sett: no such folder; did you mean 'set'?"
    assert (
        message(tmp_path / "zzz/sett")
        == f"data.root {tmp_path}/zzz/sett: no such folder; set it to the folder with your images"
    )
    assert message(tmp_path / "imagenet").endswith("no such folder; set it to the folder with your images")
    file = folder / "train/ant/0.jpg"
    assert (
        message(file)
        == f"data.root {file}: is a file; give a folder with train/<class>/ and val/<class>/, unpacked if it is "
        f"an archive"
    )
    long = tmp_path / ("x" * 300)
    assert message(long) == f"data.root {long}: cannot be read (File name too long)"


def test_one_image_a_class_leaves_nothing_to_validate_on(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    assert "2 images of 2 classes are too few to hold some out for validation" in message(tmp_path)


def test_a_folder_that_may_not_be_listed(unprivileged):
    assert message(unprivileged) == f"data.root {unprivileged}: cannot be read (Permission denied)"


def test_what_is_hidden_beside_the_splits_is_listed(folder):
    (folder / ".cache").mkdir()
    note = f"{folder}: ignored 1 hidden or system files or folders: .cache"
    assert note in open_data(None, folder).notes
    assert note in open_split(None, folder, "val")[1]


def test_folders_without_images(tmp_path):
    root = tmp_path / "r"
    root.mkdir()
    assert message(root) == f"data.root {root}: is empty; it should hold a folder of images for each class"
    (root / ".DS_Store").write_text("")
    (root / "a.csv").write_text("")
    what = "only hidden or system files or files that are no images (.DS_Store, a.csv)"
    assert message(root) == f"data.root {root}: has no class folders, {what}"
    (root / "ant").mkdir()
    (root / "bee").mkdir()
    assert message(root).startswith(
        f"data.root {root}: none of its 2 folders has images (ant, bee); known are .apng, .avif, .bmp, "
    )
    write_images(root, "ant/1.png")
    assert (
        message(root)
        == f"data.root {root}: 1 of 2 class folders have no images (bee); add images to them, or remove them"
    )


def test_a_flat_folder(tmp_path):
    write_images(tmp_path, "train/ant/1.png", "train/bee/1.png", *[f"val/{i}.png" for i in range(5)])
    assert message(tmp_path) == (
        f"data.root {tmp_path}/val: its 5 images lie in no class folder (0.png, 1.png, 2.png and 2 more); move each "
        "into a folder with the name of its class"
    )


def test_splits_that_are_not_found_name_those_that_are(folder):
    (folder / "val").rename(folder / "valid")
    assert message(folder) == (
        f"data.root {folder}: has train/ but no val/, only valid; set data.val_split to one of them, or "
        "data.val_split=null to hold out data.val_fraction of train/"
    )
    (folder / "valid").rename(folder / ".valid")
    assert message(folder) == (
        f"data.root {folder}: has train/ but no val/; set data.val_split=null to hold out data.val_fraction of train/"
    )
    (folder / ".valid").rename(folder / "val")
    (folder / "train").rename(folder / "Training")
    assert (
        message(folder)
        == f"data.root {folder}: has val/ but no train/ to train on; set data.train_split to one of its folders: "
        f"Training, val"
    )
    (folder / "val").rename(folder / "test")
    assert message(folder) == (
        f"data.root {folder}: has no train/, and Training, test look like splits rather than classes; set them, such "
        "as data.train_split=Training data.val_split=test"
    )


def test_classes_must_agree(folder):
    (folder / "val/cat").rename(folder / "val/dog")
    assert message(folder) == (
        f"data.root {folder}: val/ has other classes than train/ (missing from val/: cat; only in val/: dog); give "
        "both the same class folders, or set data.val_split=null to hold out a part of the training images"
    )
    (folder / "val/dog").rename(folder / "cat")
    assert "(missing from val/: cat);" in message(folder)


def test_one_class_is_too_few(tmp_path):
    write_images(tmp_path / "a", "train/ant/1.png", "val/ant/1.png")
    assert (
        message(tmp_path / "a")
        == f"data.root {tmp_path}/a/train: has only one class, 'ant'; a classifier needs at least two class folders"
    )
    assert message(tmp_path) == f"data.root {tmp_path}: holds only a/, which has the splits; set data.root={tmp_path}/a"
    assert len(open_split(None, tmp_path / "a", "val")[0]) == 1  # evaluating on one class is fine


@pytest.mark.thorough
def test_a_large_set_is_held_in_arrays(tmp_path):
    root = write_images(tmp_path, *[f"{name}/0.png" for name in ("a", "b")])
    for name in ("a", "b"):
        for i in range(1, 5000):
            (root / name / f"{i:08d}.png").touch()
    tracemalloc.start()
    source, _ = open_split(None, root, "all")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 10000
    assert kept < 10000 * 30  # a path of 14 bytes, a label of 4
