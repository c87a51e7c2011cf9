"""Folders, named sets, order and loaders, on real files and real worker processes."""

from __future__ import annotations

import functools
import hashlib
import operator
import os
import re
import socket
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vitrail.config.sections import DataSection
from vitrail.data import opening as vitrail_data
from vitrail.data.loader import build_eval_loader, build_train_loader, choose_workers
from vitrail.data.sampling import (
    BatchSampler,
    ClassDraw,
    Shuffle,
    compute_class_shares,
    draw_by_class,
    shuffle_epoch,
)
from vitrail.errors import ConfigError, DataError
from vitrail.images.pixels import RGB
from vitrail.images.preprocess import Preprocess
from vitrail.images.train_view import TrainView, sample_key


def open_data(name, root, **settings):
    return vitrail_data.open_data(DataSection(name=name, root=None if root is None else str(root), **settings))


def open_split(name, root, split, **settings):
    return vitrail_data.open_split(DataSection(name=name, root=None if root is None else str(root), **settings), split)


SPLITS = {"train_split": "train", "val_split": "val"}


def write(root: Path, *paths: str) -> Path:
    """Write a small image of its own colour under each path."""
    for number, path in enumerate(paths):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        form = {".tif": "TIFF", ".jpg": "JPEG"}.get(Path(path).suffix.lower(), "PNG")
        Image.new("RGB", (12 + number % 5, 10), (number * 37 % 256, number * 11 % 256, 99)).save(root / path, form)
    return root


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a root with 3 classes, 8 training and 4 validation images each."""
    train = [f"train/{name}/{i}.jpg" for name in ("ant", "bee", "cat") for i in range(8)]
    return write(tmp_path / "set", *train, *[f"val/{name}/{i}.png" for name in ("ant", "bee", "cat") for i in range(4)])


def names(source) -> list[str]:
    return [source.name(i) for i in range(len(source))]


def opened(root: Path | None, **options):
    return open_data(None, root, **options)


def message(root: Path | None, name: str | None = None, **options) -> str:
    with pytest.raises((DataError, ConfigError)) as caught:
        open_data(name, root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Folders


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
    write(tmp_path, "training/a/x.PNG", "training/a/deep/er/y.Jpg", "training/b/z.tif", "test/a/1.png", "test/b/2.png")
    data = opened(tmp_path, train_split="training", val_split="test")
    assert names(data.train) == [f"{tmp_path}/training/{p}" for p in ("a/deep/er/y.Jpg", "a/x.PNG", "b/z.tif")]
    assert len(data.val) == 2


def test_what_is_ignored_is_said(folder):
    write(folder, "train/.ipynb_checkpoints/1.png", "train/ant/._0.jpg", "train/__MACOSX/ant/0.jpg", "train/stray.png")
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
        f"{folder}/train: ignored 1 images outside the class folders: stray.png",
    )


def test_file_names_of_any_bytes_are_read(tmp_path):
    root = write(tmp_path, *[f"{split}/{name}/1.png" for split in ("train", "val") for name in ("a", "b")])
    (root / "train/a/1.png").rename(os.fsdecode(os.fsencode(root / "train/a") + b"/\xff caf\xc3\xa9.png"))
    data = opened(root)
    assert data.train.name(0) == f"{root}/train/a/\\udcff caf\u00e9.png"
    assert data.train.image(0, RGB).shape == (3, 10, 12)


def test_links_are_followed_but_not_in_circles(folder, tmp_path):
    write(tmp_path / "elsewhere", "1.png", "2.png")
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
    write(folder, f"{name}/0.png", f"train/{name}/0.png", f"train/ant/{name}/0.jpg/thumb.png", f"val/ant/{name}/0.png")
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
    root = write(
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
        "1 classes have one image, which is trained on and not validated: d",
    )
    assert data.val.description == f"{root}, held-out part"
    # wherever the folder lies and whatever is added to other classes
    moved = root.rename(tmp_path / "other")
    write(moved, "e/1.png", "e/2.png")
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
    write(tmp_path / "alone", "val/ant/1.png", "val/bee/1.png")
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
    write(tmp_path / "alone", "val/ant/1.png", "val/bee/1.png")
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
    write(root, "ant/1.png")
    assert (
        message(root)
        == f"data.root {root}: 1 of 2 class folders have no images (bee); add images to them, or remove them"
    )


def test_a_flat_folder(tmp_path):
    write(tmp_path, "train/ant/1.png", "train/bee/1.png", *[f"val/{i}.png" for i in range(5)])
    assert message(tmp_path) == (
        f"data.root {tmp_path}/val: its 5 images lie in no class folder (0.png, 1.png, 2.png and 2 more); "
        f"move each into a "
        "folder with the name of its class"
    )


def test_splits_that_are_not_found_name_those_that_are(folder):
    (folder / "val").rename(folder / "valid")
    assert message(folder) == (
        f"data.root {folder}: has train/ but no val/, only valid; set data.val_split to one of them, or "
        f"data.val_split=null "
        "to hold out data.val_fraction of train/"
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
        f"data.root {folder}: has no train/, and Training, test look like splits rather than classes; set "
        f"them, such as "
        "data.train_split=Training data.val_split=test"
    )


def test_classes_must_agree(folder):
    (folder / "val/cat").rename(folder / "val/dog")
    assert message(folder) == (
        f"data.root {folder}: val/ has other classes than train/ (missing from val/: cat; only in val/: dog); "
        f"give both the "
        "same class folders, or set data.val_split=null to hold out a part of the training images"
    )
    (folder / "val/dog").rename(folder / "cat")
    assert "(missing from val/: cat);" in message(folder)


def test_one_class_is_too_few(tmp_path):
    write(tmp_path / "a", "train/ant/1.png", "val/ant/1.png")
    assert (
        message(tmp_path / "a")
        == f"data.root {tmp_path}/a/train: has only one class, 'ant'; a classifier needs at least two class folders"
    )
    assert message(tmp_path) == f"data.root {tmp_path}: holds only a/, which has the splits; set data.root={tmp_path}/a"
    assert len(open_split(None, tmp_path / "a", "val")[0]) == 1  # evaluating on one class is fine


def test_a_large_set_is_held_in_arrays(tmp_path):
    root = write(tmp_path, *[f"{name}/0.png" for name in ("a", "b")])
    for name in ("a", "b"):
        for i in range(1, 5000):
            (root / name / f"{i:08d}.png").touch()
    tracemalloc.start()
    source, _ = open_split(None, root, "all")
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 10000
    assert kept < 10000 * 30  # a path of 14 bytes, a label of 4


# Named sets


def test_digits_need_no_folder_and_are_divided(tmp_path):
    data = open_data("digits", None)
    assert (len(data.train), len(data.val)) == (1438, 359)
    assert data.classes == tuple("0123456789")
    assert data.val.description == "digits, held-out part"
    assert data.train.name(1) == "digits/00001"
    image = data.train.image(0, RGB)
    assert image.shape == (3, 8, 8)
    assert image.max() == 239
    assert torch.equal(image[0], image[2])
    source, notes = open_split("digits", None, "val")
    assert names(source) == names(data.val)
    assert notes == data.notes
    assert len(open_split("digits", None, "all")[0]) == 1797
    with Image.open(data.train.example(tmp_path)) as example:
        assert example.size == (8, 8)


def test_settings_of_named_sets():
    assert message(None) == "data.root is not set; give the folder with your images, or data.name=digits"
    assert message(None, "cifr10") == (
        "data.name 'cifr10': unknown; did you mean 'cifar10'?; known sets: digits, cifar10, cifar100, "
        "fashion-mnist, oxford-pets, flowers102, and hf:OWNER/NAME"
    )
    assert (
        message(Path("x"), "digits")
        == "data.root x: data.name is digits, which comes with scikit-learn and has no folder; for your own images add "
        "data.name=null, or name another recipe"
    )
    assert (
        message(None, "cifar10")
        == "data.root is not set; give the folder where cifar10 lies or, with data.download=true, will lie"
    )


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion-mnist", "oxford-pets", "flowers102"])
def test_a_set_that_is_not_there_names_the_setting_that_fetches_it(name, tmp_path, monkeypatch):
    text = message(tmp_path, name)
    assert text.startswith(f"data.root {tmp_path}: {name} is not there or not whole (")
    assert text.endswith("; pass data.download=true")
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens: no network, wherever this runs
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    text = message(tmp_path, name, download=True)
    assert text.startswith(f"data.download: {name} could not be fetched into {tmp_path} (")


def test_fashion_mnist_files_are_read(tmp_path):
    raw = tmp_path / "FashionMNIST/raw"
    raw.mkdir(parents=True)
    for part, n in (("train", 6), ("t10k", 3)):
        pixels = np.arange(n * 28 * 28, dtype=np.uint32).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, n, 28, 28) + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, n) + bytes(range(n)))
    data = open_data("fashion-mnist", tmp_path)
    assert (len(data.train), len(data.val)) == (6, 3)
    assert data.classes[0] == "T-shirt/top"
    assert data.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert data.val.name(2) == "fashion-mnist/test/00002"
    assert data.train.image(0, RGB)[:, 0, 5].tolist() == [5, 5, 5]
    with pytest.raises(
        ConfigError, match=r"^evaluate.split all: fashion-mnist has a training and a test part; choose train or val$"
    ):
        open_split("fashion-mnist", tmp_path, "all")


def test_oxford_pets_files_are_read(tmp_path):
    root = tmp_path / "oxford-iiit-pet"
    write(root / "images", "Abyssinian_1.jpg", "beagle_2.jpg", "beagle_3.jpg")
    (root / "annotations").mkdir()
    (root / "annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n")
    (root / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\nbeagle_3 2 2 1\n")
    data = open_data("oxford-pets", str(tmp_path))
    assert data.classes == ("Abyssinian", "Beagle")
    assert data.val.labels.tolist() == [0, 1]
    assert data.val.name(1) == f"{root}/images/beagle_3.jpg"
    assert data.val.image(1, RGB).shape == (3, 10, 14)


# Order


def test_an_epochs_order_is_the_same_for_ever():
    assert shuffle_epoch(8, 0, 0)[:, 0].tolist() == [0, 2, 1, 5, 4, 3, 6, 7]
    assert sorted(shuffle_epoch(1000, 3, 5)[:, 0].tolist()) == list(range(1000))
    orders = {tuple(shuffle_epoch(50, seed, epoch)[:, 0].tolist()) for seed in (-1, 0, 1) for epoch in range(5)}
    assert len(orders) == 15


def test_repeats_put_copies_in_a_row_and_keep_the_epochs_length():
    once, order = shuffle_epoch(10, 1, 2), shuffle_epoch(10, 1, 2, repeats=3)
    assert order[:, 0].tolist() == [i for i in once[:4, 0].tolist() for _ in range(3)][:10]
    assert order[:, 1].tolist() == [0, 1, 2] * 3 + [0]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("repeats", [1, 3])
def test_the_global_batch_does_not_depend_on_the_number_of_processes(accumulate, repeats):
    def steps(world: int) -> list[list[tuple[int, int, int]]]:
        ranks = [
            list(BatchSampler(Shuffle(50, 7, repeats), 12, rank=rank, world=world, accumulate=accumulate))
            for rank in range(world)
        ]
        micro = [sorted(functools.reduce(operator.iadd, parts, [])) for parts in zip(*ranks, strict=True)]
        return [
            sorted(functools.reduce(operator.iadd, micro[i : i + accumulate], []))
            for i in range(0, len(micro), accumulate)
        ]

    order = shuffle_epoch(50, 7, 0, repeats).tolist()
    whole = [sorted((0, *sample) for sample in order[i * 12 : (i + 1) * 12]) for i in range(4)]
    assert steps(1) == steps(2) == steps(3) == whole


def test_copies_of_an_image_part():
    for rank in range(3):
        for batch in BatchSampler(Shuffle(90, 1, 3), 30, rank=rank, world=3):
            images = [index for _, index, _ in batch]
            assert len(set(images)) == len(images) == 10


def drawn_by_class(counts, sampler, seed, epoch, repeats=1):
    """Return the labels, and the order of an epoch; the images of a class do not lie together."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts), dtype=np.int32), counts))
    return labels, draw_by_class(labels, compute_class_shares(np.array(counts), sampler), seed, epoch, repeats)


def test_an_epoch_of_fewer_images_draws_others_each_time_the_same_for_any_processes() -> None:
    sampler = BatchSampler(Shuffle(50, seed=7), 12, epoch_samples=25)
    assert sampler.steps == 2
    seen = []
    for epoch in (0, 1):
        sampler.epoch = epoch
        keys = [key for batch in sampler for key in batch]
        assert len({index for _, index, _ in keys}) == len(keys) == 24
        parts = [BatchSampler(Shuffle(50, seed=7), 12, epoch_samples=25, rank=rank, world=3) for rank in range(3)]
        for part in parts:
            part.epoch = epoch
        assert sorted(keys) == sorted(key for part in parts for batch in part for key in batch)
        seen.append({index for _, index, _ in keys})
    assert len(seen[0] & seen[1]) < 24
    for wrong in (11, 51):
        with pytest.raises(
            ConfigError, match=f"train.epoch_images is {wrong}; it must be from train.batch_size 12 to the 50"
        ):
            BatchSampler(Shuffle(50, seed=7), 12, epoch_samples=wrong)


@pytest.mark.parametrize(
    ("sampler", "digest"),
    [("balanced", "d2d7fed348662389"), ("sqrt", "9f424176ecc4ddaf")],
)
def test_the_order_of_drawn_classes_is_the_same_for_ever(sampler, digest):
    orders = [drawn_by_class((700, 90, 8, 1), sampler, seed, epoch, 2)[1] for seed in (0, -1) for epoch in (0, 1, 9)]
    assert hashlib.sha256(np.stack(orders).astype("<i8").tobytes()).hexdigest()[:16] == digest


@given(
    counts=st.lists(st.integers(1, 300), min_size=1, max_size=9),
    sampler=st.sampled_from(["balanced", "sqrt"]),
    epoch=st.integers(0, 10**6),
    repeats=st.integers(1, 3),
)
def test_classes_are_drawn_by_their_shares_and_no_draw_twice(counts, sampler, epoch, repeats):
    labels, order = drawn_by_class(counts, sampler, 5, epoch, repeats)
    assert order.shape == (len(labels), 2)
    assert len({tuple(draw) for draw in order.tolist()}) == len(order)
    draws = order[::repeats]
    shares = np.sqrt(counts) if sampler == "sqrt" else np.ones(len(counts))
    expected = len(draws) * shares / shares.sum()
    assert (np.abs(np.bincount(labels[draws[:, 0]], minlength=len(counts)) - expected) < 1 + 1e-3).all()
    for index, label in enumerate(labels.tolist()):  # within an epoch, a whole pass and the two parts at its ends
        seen = (draws[:, 0] == index).sum()
        passes = expected[label] / counts[label]
        assert passes - 2 < seen < passes + 2


def test_over_a_run_the_images_of_a_class_are_drawn_equally_often():
    counts = (61, 9, 5, 3, 2)  # 16 draws of each of the five classes, so that nothing is rounded
    seen = np.zeros(80, dtype=int)
    for epoch in range(23):
        labels, order = drawn_by_class(counts, "balanced", 1, epoch)
        seen += np.bincount(order[:, 0], minlength=80)
    for label in range(5):
        assert np.ptp(seen[labels == label]) <= 1


def test_how_a_share_is_rounded_is_left_to_chance():
    found = sum(
        np.bincount(labels[order[:, 0]], minlength=3)
        for labels, order in (drawn_by_class((7, 2, 1), "balanced", 1, epoch) for epoch in range(300))
    )
    np.testing.assert_allclose(found / 300, 10 / 3, atol=0.1)


def test_drawn_classes_are_dealt_out_and_taken_up_like_any_epoch():
    labels = np.repeat(np.arange(3, dtype=np.int32), (40, 8, 2))
    order = ClassDraw(labels, [1, 1, 1], seed=7, repeats=2)
    alone = BatchSampler(order, 12, accumulate=2)
    ranks = [list(BatchSampler(order, 12, rank=rank, world=3, accumulate=2)) for rank in range(3)]
    dealt = [sorted(key for part in parts for key in part) for parts in zip(*ranks, strict=True)]
    assert dealt == [sorted(batch) for batch in alone]
    rest = BatchSampler(order, 12, accumulate=2)
    rest.first_step = 2
    assert list(rest) == list(alone)[4:]
    rest.epoch, rest.first_step = 1, 0
    assert list(rest) != list(alone)
    rare = [key for batch in rest for key in batch if labels[key[1]] == 2]
    assert len(rare) == len(set(rare)) > 10


def test_an_epoch_goes_on_from_any_step():
    whole = BatchSampler(Shuffle(40, seed=1), 8, accumulate=2)
    whole.epoch = 4
    rest = BatchSampler(Shuffle(40, seed=1), 8, accumulate=2)
    rest.epoch, rest.first_step = 4, 3
    assert len(whole) == len(list(whole)) == 10
    assert len(rest) == 4
    assert whole.steps == rest.steps == 5
    assert list(rest) == list(whole)[6:]
    assert whole.epoch == next(iter(whole))[0][0]


def test_batch_sizes_that_do_not_fit():
    with pytest.raises(
        ConfigError,
        match=r"^train.batch_size 64 is more than the 37 training images; set train.batch_size to at most 36$",
    ):
        BatchSampler(Shuffle(37, seed=0), 64, world=2, accumulate=2)
    with pytest.raises(
        ConfigError, match=r"^train.batch_size 8 is more than the 3 training images, too few for 4 parts$"
    ):
        BatchSampler(Shuffle(3, seed=0), 8, world=4)
    with pytest.raises(
        ConfigError, match=r"^train.batch_size 10 cannot be split over 2 processes x 2 micro batches; nearest: 8 or 12$"
    ):
        BatchSampler(Shuffle(37, seed=0), 10, world=2, accumulate=2)
    with pytest.raises(ConfigError, match=r"nearest: 4$"):
        BatchSampler(Shuffle(37, seed=0), 0, world=4)


# Loading

VIEW = TrainView(size=(16, 16), auto_augment="rand-m9-mstd0.5-inc1")
PREPROCESS = Preprocess(size=(16, 16))


def train_batches(source, workers: int, epochs: int = 2, **options) -> list:
    sampler = BatchSampler(Shuffle(len(source), seed=3), 6, **options)
    loader = build_train_loader(source, VIEW, RGB, sampler, seed=3, workers=workers)
    batches = []
    for epoch in range(epochs):
        sampler.epoch = epoch
        batches += list(loader)
    return batches


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        a.bad == b.bad and all(torch.equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
        for a, b in zip(first, second, strict=True)
    )


def test_training_batches_are_the_same_for_any_number_of_workers(folder):
    source = opened(folder).train
    state = torch.get_rng_state()
    alone = train_batches(source, 0)
    assert len(alone) == 8
    first = alone[0]
    assert first.images.shape == (6, 3, 16, 16)
    assert first.images.dtype == torch.uint8
    assert first.bad == []
    assert [first.labels.dtype, first.indices.dtype, first.keys.dtype] == [torch.int64] * 3
    assert first.labels.tolist() == source.labels[first.indices].tolist()
    assert first.keys.tolist() == [sample_key(3, 0, index) for index in first.indices.tolist()]
    assert torch.equal(first.images[0], VIEW.view(source.image(int(first.indices[0]), RGB), int(first.keys[0])))
    for workers in (1, 2):
        assert same(train_batches(source, workers), alone)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_see_the_samples_of_one(folder):
    source = opened(folder).train
    alone = train_batches(source, 0)
    ranks = [train_batches(source, 0, rank=rank, world=2) for rank in range(2)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sorted(torch.cat([part.keys for part in parts]).tolist()) == sorted(whole.keys.tolist())


def test_a_stopped_epoch_can_be_taken_up_and_the_next_one_is_whole(folder):
    source = opened(folder).train
    alone = train_batches(source, 0)
    sampler = BatchSampler(Shuffle(len(source), seed=3), 6)
    loader = build_train_loader(source, VIEW, RGB, sampler, seed=3, workers=2)
    batches = iter(loader)
    begun = [next(batches), next(batches)]
    sampler.first_step = 2
    rest = list(loader)
    sampler.epoch, sampler.first_step = 1, 0
    assert same(begun + rest + list(loader), alone)


def test_evaluation_reads_every_image_once(folder):
    source = opened(folder).train
    for world in (1, 2, 5):
        for workers in (0, 2) if world == 2 else (0,):
            loaders = [
                build_eval_loader(source, PREPROCESS, batch_size=4, rank=r, world=world, workers=workers)
                for r in range(world)
            ]
            indices = [torch.cat([batch.indices for batch in loader]).tolist() for loader in loaders]
            batches = torch.arange(24).split(4)
            assert indices == [torch.cat(batches[rank::world]).tolist() for rank in range(world)]
    batch = next(iter(build_eval_loader(source, PREPROCESS, batch_size=24, workers=0)))
    assert torch.equal(batch.images[7], PREPROCESS.view(source.image(7, RGB)))
    assert batch.labels.tolist() == source.labels.tolist()
    assert batch.keys.sum() == 0


@pytest.fixture
def broken(folder: Path) -> Path:
    """Return the folder with a truncated file, an empty one and one that the system refuses to read."""
    whole = (folder / "train/ant/3.jpg").read_bytes()
    (folder / "train/ant/3.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "train/bee/1.jpg").write_bytes(b"")
    (folder / "train/cat/0.jpg").unlink()
    (folder / "train/cat/0.jpg").symlink_to("/proc/self/mem")
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_are_left_out_and_named(broken, workers):
    source = opened(broken).train
    batches = train_batches(source, workers, epochs=1)
    bad = dict(pair for batch in batches for pair in batch.bad)
    assert "truncated" in bad.pop(f"{broken}/train/ant/3.jpg").lower()
    assert bad == {
        f"{broken}/train/bee/1.jpg": "the file is empty",
        f"{broken}/train/cat/0.jpg": "Input/output error",
    }
    assert sum(len(batch.labels) for batch in batches) == 21
    assert all(len(batch.labels) + len(batch.bad) == 6 for batch in batches)
    assert same(batches, train_batches(source, 0, epochs=1))
    evaluated = list(build_eval_loader(source, PREPROCESS, batch_size=4, workers=workers))
    assert torch.cat([batch.indices for batch in evaluated]).tolist() == [i for i in range(24) if i not in (3, 9, 16)]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_files_can_stop_the_run_with_one_line(broken, workers):
    source = opened(broken).train
    sampler = BatchSampler(Shuffle(24, seed=0), 24)
    loaders = [
        build_train_loader(source, VIEW, RGB, sampler, seed=0, workers=workers, bad_files="error"),
        build_eval_loader(source, PREPROCESS, batch_size=24, workers=workers, bad_files="error"),
    ]
    line = (
        rf"^{re.escape(str(broken))}/train/[^\n]*: cannot be read, [^\n]* \(and 2 more in this batch\); repair "
        rf"or remove it, "
        r"or set data\.bad_files=skip to leave such images out$"
    )
    for loader in loaders:
        with pytest.raises(DataError, match=line):
            list(loader)


def test_a_batch_may_be_empty(tmp_path):
    root = write(tmp_path, "a/1.png", "b/1.png")
    for name in ("a", "b"):
        (root / name / "1.png").write_bytes(b"?")
    batch = next(iter(build_eval_loader(open_split(None, root, "all")[0], PREPROCESS, batch_size=2, workers=0)))
    assert batch.images.shape == (0, 3, 16, 16)
    assert batch.images.dtype == torch.uint8
    assert batch.labels.shape == batch.indices.shape == batch.keys.shape == (0,)
    assert len(batch.bad) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinning needs a CUDA device")
def test_batches_can_be_pinned(folder):
    loader = build_eval_loader(opened(folder).val, PREPROCESS, batch_size=4, workers=1, pin_memory=True)
    assert all(batch.images.is_pinned() and batch.keys.is_pinned() for batch in loader)


def test_small_sets_in_memory_are_read_without_workers_others_by_the_cores(folder, monkeypatch):
    assert choose_workers(open_data("digits", None).train) == 0
    source = opened(folder).train
    cores = len(os.sched_getaffinity(0))
    assert choose_workers(source) == max(1, min(8, cores))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert choose_workers(source) == max(1, cores // 64)
    assert build_eval_loader(source, PREPROCESS, batch_size=4).num_workers == max(1, cores // 64)
