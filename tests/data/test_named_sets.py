"""Named sets of images: read from the files that they are downloaded as."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from support.image_folders import message, names, open_data, open_split, write_fashion_mnist, write_images
from vitrail.errors import ConfigError
from vitrail.images.pixels import RGB


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


@pytest.mark.parametrize(
    ("root", "name", "said"),
    [
        (None, None, "data.root is not set; give the folder with your images, or data.name=digits"),
        (
            None,
            "cifr10",
            "data.name 'cifr10': unknown; did you mean 'cifar10'?; for a folder of images, data.name=null "
            "data.root=FOLDER; known sets: digits, cifar10, cifar100, fashion-mnist, oxford-pets, flowers102, and "
            "hf:OWNER/NAME",
        ),
        (
            Path("x"),
            "digits",
            "data.root x: data.name is digits, which comes with scikit-learn and has no folder; for your own images "
            "add data.name=null, or train by another recipe",
        ),
        (
            None,
            "cifar10",
            "data.root is not set; give the folder where cifar10 lies or, with data.download=true, will lie",
        ),
    ],
)
def test_settings_of_named_sets(root, name, said):
    assert message(root, name) == said


TORONTO, OXFORD = "https://www.cs.toronto.edu/~kriz/", "https://www.robots.ox.ac.uk/~vgg/data/"
FETCHED = {
    "cifar10": (f"cifar-10-python.tar.gz from {TORONTO}", "it", ""),
    "cifar100": (f"cifar-100-python.tar.gz from {TORONTO}", "it", ""),
    "fashion-mnist": (
        "train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
        "t10k-labels-idx1-ubyte.gz from http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "them",
        "FashionMNIST/raw",
    ),
    "oxford-pets": (f"images.tar.gz and annotations.tar.gz from {OXFORD}pets/data/", "them", "oxford-iiit-pet"),
    "flowers102": (
        f"102flowers.tgz, imagelabels.mat and setid.mat from {OXFORD}flowers/102/",
        "them",
        "flowers-102",
    ),
}


@pytest.mark.parametrize("name", FETCHED)
def test_a_set_that_is_not_there_names_the_setting_and_the_files_that_bring_it(name, tmp_path, monkeypatch):
    root = tmp_path / "new" / "data"
    assert message(root, name) == f"data.root {root}: {name} is not there or not whole; pass data.download=true"
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens: no network, wherever this runs
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    text = message(root, name, download=True)
    files, them, folder = FETCHED[name]
    assert text.startswith(f"data.download: {name} could not be fetched into {root} (")
    assert "Connection refused); without a network" in text
    assert f"; without a network, fetch {files} elsewhere, put {them} into {root / folder} as " in text
    assert text.endswith(", and run this again, which unpacks")
    assert not any(said in text for said in ("<", "Errno", "download=True"))
    assert list(tmp_path.iterdir()) == [], "no empty folders are left"
    (root / folder).mkdir(parents=True)
    (root / folder / "part").write_text("")
    message(root, name, download=True)
    assert (root / folder / "part").exists()


def test_a_folder_that_cannot_be_written_is_no_matter_of_the_network(tmp_path):
    (tmp_path / "data").write_text("a file")
    text = message(tmp_path / "data", "oxford-pets", download=True)
    assert text.startswith(f"data.download: oxford-pets could not be fetched into {tmp_path / 'data'} (Not a directory")
    assert "network" not in text


def test_without_a_validation_split_the_test_split_is_left_alone(tmp_path):
    write_fashion_mnist(tmp_path, 40, 10)
    divided = open_data("fashion-mnist", tmp_path, val_split=None)
    assert divided.is_divided
    assert len(divided.train) + len(divided.val) == 40
    assert all("/train/" in name for name in (*names(divided.train), *names(divided.val)))
    source, _ = open_split("fashion-mnist", tmp_path, "val", val_split=None)
    assert names(source) == names(divided.val)


def test_fashion_mnist_files_are_read(tmp_path):
    write_fashion_mnist(tmp_path, 6, 3)
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
    write_images(root / "images", "Abyssinian_1.jpg", "beagle_2.jpg", "beagle_3.jpg")
    (root / "annotations").mkdir()
    (root / "annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\nbeagle_2 2 2 1\n")
    (root / "annotations/test.txt").write_text("Abyssinian_1 1 1 1\nbeagle_3 2 2 1\n")
    data = open_data("oxford-pets", str(tmp_path))
    assert data.classes == ("Abyssinian", "Beagle")
    assert data.val.labels.tolist() == [0, 1]
    assert data.val.name(1) == f"{root}/images/beagle_3.jpg"
    assert data.val.image(1, RGB).shape == (3, 10, 14)
