"""`vitrail check-data`: numbers, a page and a status, and ImageNet's validation images brought into folders."""

from __future__ import annotations

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from support.tiny_model import CLASSES
from vitrail.cli.app import main
from vitrail.data.imagenet_val import prepare_imagenet_val
from vitrail.data.manifest import load_manifest
from vitrail.errors import DataError


def run(*tokens: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["check-data", *map(str, tokens)])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def test_a_page_numbers_and_a_status_say_what_is_wrong(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = image_folder / "train" / "red" / "red_3.jpg"
    victim.write_bytes(victim.read_bytes()[:90])
    (image_folder / "val" / "red" / "copy.jpg").write_bytes((image_folder / "train" / "red" / "red_1.jpg").read_bytes())
    output = tmp_path / "out"
    assert run(f"data.root={image_folder}", "--output", output) == 1
    printed = capsys.readouterr().out
    assert "37 images of 3 classes, 24 to train on, 13 to validate with" in printed
    assert re.search(r"error\s+1 image cannot be read", printed)
    assert f"page: {output / 'check.html'}\nmend what is wrong first" in printed
    found = json.loads((output / "check.json").read_text())
    assert found["statistics"]["unreadable"] == 1
    assert found["problems"][0]["images"] == [["train/red/red_3.jpg"]]
    leak = next(problem for problem in found["problems"] if "on both sides" in problem["what"])
    assert sorted(leak["images"][0]) == ["train/red/red_1.jpg", "val/red/copy.jpg"]
    page = (output / "check.html").read_text()
    assert all(name in page for name in (*CLASSES, "train/red/red_3.jpg", "cannot be read", "val/red/copy.jpg"))
    assert page.count("data:image/") >= 2
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    victim.unlink()
    (image_folder / "val" / "red" / "copy.jpg").unlink()
    assert run(f"data.root={image_folder}", "--output", output) == 0
    assert f"page: {output / 'check.html'} (replaced)\nnext: vitrail train" in capsys.readouterr().out


def test_what_evaluation_cuts_away_follows_from_how_images_are_resized(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in image_folder.rglob("*.jpg"):
        with Image.open(path) as image:
            wide = image.resize((320, 64))
        wide.save(path)
    assert run(f"data.root={image_folder}", "--output", tmp_path / "cut") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "36 images lose over 60% of their area to the evaluation's centre crop" in said
    advice = "preprocess.crop=1 cuts less, and preprocess.resize=letterbox or squash nothing"
    page = (tmp_path / "cut" / "check.html").read_text()
    assert advice in page
    assert 'class="crop"' in page
    assert run(f"data.root={image_folder}", "preprocess.resize=letterbox", "--output", tmp_path / "whole") == 0
    page = (tmp_path / "whole" / "check.html").read_text()
    assert "nothing (evaluation at 224 x 224, resize letterbox)" in page
    assert advice not in page
    assert 'class="crop"' not in page
    assert json.loads((tmp_path / "whole" / "check.json").read_text())["statistics"]["cut_away_by_centre_crop"] == {
        "least": 0.0, "median": 0.0, "most": 0.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            ["data.name=digits"],
            "data.name is digits: check-data looks at image files, by data.root or data.list; of such a",
        ),
        (
            ["data.root={}", "--output", "{}"],
            "{}: holds other files, such as images, and is not replaced; choose another",
        ),
        (["data.manifest={}/m", "--imagenet-devkit", "kit"], "--imagenet-devkit needs data.root, the folder with val/"),
    ],
    ids=str,
)
def test_what_cannot_be_checked_is_one_line(
    tokens: list[str], message: str, image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*(token.format(image_folder.parent) for token in tokens)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message.format(image_folder.parent)}")


def devkit(folder: Path, truth: str = "2\n1\n2\n") -> Path:
    """Write a development kit of two classes and three images."""
    rows = [(1, "n00000011", 0), (2, "n00000007", 0), (1001, "n00000099", 2)]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    inner = folder / "ILSVRC2012_devkit_t12" / "data"
    inner.mkdir(parents=True)
    savemat(inner / "meta.mat", {"synsets": np.array([row for row in rows], dtype=kind)})
    (inner / "ILSVRC2012_validation_ground_truth.txt").write_text(truth)
    return inner.parent


def flat_val(folder: Path, n: int = 3) -> Path:
    folder.mkdir()
    for number in range(1, n + 1):
        (folder / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(bytes([number]))
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_imagenets_validation_images_come_into_folders(packed: bool, tmp_path: Path) -> None:
    kit, val = devkit(tmp_path), flat_val(tmp_path / "val")
    if packed:
        with tarfile.open(tmp_path / "kit.tar.gz", "w:gz") as archive:
            archive.add(kit, kit.name)
        kit = tmp_path / "kit.tar.gz"
    (val / "n00000007").mkdir()
    (val / "ILSVRC2012_val_00000001.JPEG").rename(val / "n00000007" / "ILSVRC2012_val_00000001.JPEG")
    (val / "ILSVRC2012_val_00000003.JPEG").unlink()
    done = prepare_imagenet_val(val, kit)
    assert (done.moved, done.there, done.absent) == (1, 1, 1)
    assert sorted(str(path.relative_to(val)) for path in val.rglob("*.JPEG")) == [
        "n00000007/ILSVRC2012_val_00000001.JPEG", "n00000011/ILSVRC2012_val_00000002.JPEG",
    ]  # fmt: skip
    assert prepare_imagenet_val(val, kit).moved == 0


def test_what_is_no_devkit_or_no_validation_folder_is_refused(tmp_path: Path) -> None:
    kit, val = devkit(tmp_path, "3\n"), flat_val(tmp_path / "val")
    (tmp_path / "text").write_text("x")
    empty = io.BytesIO()
    tarfile.open(fileobj=empty, mode="w:gz").close()
    (tmp_path / "empty.tar.gz").write_bytes(empty.getvalue())
    for other, reason in (
        (kit, "its two files disagree about [3]"),
        (tmp_path / "text", "file could not be opened successfully"),
        (tmp_path / "absent", "No such file or directory"),
        (tmp_path / "empty.tar.gz", "there is no data/ILSVRC2012_validation_ground_truth.txt"),
    ):
        with pytest.raises(DataError) as caught:
            prepare_imagenet_val(val, other)
        assert str(caught.value).startswith(f"{other}: is not ImageNet's development kit (")
        assert reason in str(caught.value)
    (tmp_path / "kit").mkdir()
    kit = devkit(tmp_path / "kit")
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match=r"other: holds no ILSVRC2012_val_00000001\.JPEG and so on, neither flat"):
        prepare_imagenet_val(tmp_path / "other", kit)
    with pytest.raises(DataError, match="gone: no such folder"):
        prepare_imagenet_val(tmp_path / "gone", kit)
    assert len(list(val.iterdir())) == 3


def test_a_manifest_that_is_read_is_not_replaced_by_the_page(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    manifest = tmp_path / "out" / "check.json"
    words = (f"data.root={image_folder}", f"data.manifest={manifest}", "data.workers=0", "--output")
    assert run(*words, tmp_path / "first") == 0
    assert run(*words, tmp_path / "out") == 2
    assert f"--output {manifest}: is read, and would be replaced; choose another" in capsys.readouterr().err
    assert len(load_manifest(manifest)) == 36
