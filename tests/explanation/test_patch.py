"""A patch of a TNT magnified on its sheet, and options of `vitrail explain` that go ill together."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from support.commands import refused, run
from support.tiny_model import fill_head, save_tiny
from vitrail.choices import ExplanationMethod
from vitrail.errors import ConfigError
from vitrail.explanation.patch import Patch, magnify
from vitrail.explanation.sheet import GAP, TILE, Row, colour, draw_sheet
from vitrail.images.preprocess import Preprocess


@pytest.fixture
def image(image_folder: Path) -> Path:
    return image_folder / "val" / "red" / "red_0.jpg"


def test_a_patch_lies_where_its_row_and_column_say() -> None:
    patch = Patch(row=1, column=2, rows=2, columns=3)
    assert patch.box_in(48, 32) == (32, 16, 48, 32)
    words = np.arange(8 * 12, dtype=np.float32).reshape(8, 12)
    np.testing.assert_array_equal(patch.cut(words), words[4:, 8:])


def test_the_sheet_has_one_column_more_and_the_patchs_own_pixels(
    tiny_checkpoint: Path, image: Path, tmp_path: Path
) -> None:
    widths = []
    for number, options in enumerate(([], ["--patch", "1,0"])):
        folder = tmp_path / str(number)
        assert run("explain", tiny_checkpoint, image, "--output", folder, "--maps-alone", *options) == 0
        with Image.open(folder / "0001_red_0.png") as sheet:
            widths.append(sheet.width)
    assert widths[1] - widths[0] == TILE + GAP


def test_the_column_is_the_magnified_patch_of_a_rectangle_too(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    view = torch.from_numpy(generator.integers(0, 256, (3, 32, 48)).astype(np.uint8))
    words = generator.random((8, 12)).astype(np.float32)
    sentences = words.reshape(2, 4, 3, 4).sum((1, 3))
    patch = Patch(row=1, column=2, rows=2, columns=3)
    row = Row("red", [("sentences", sentences), ("words", words)])
    (tmp_path / "sheet.png").write_bytes(draw_sheet(view, "x", [row], is_signed=False, patch=patch))
    pixels = Image.fromarray(view[:, 16:, 32:].permute(1, 2, 0).numpy())
    side = round(TILE * 32 / 48)
    expected = magnify(pixels, words[4:, 8:], colour(words[4:, 8:], is_signed=False), side)
    with Image.open(tmp_path / "sheet.png") as sheet:
        left = GAP + 3 * (TILE + GAP)
        found = sheet.crop((left, 0, left + side, sheet.height))
    rows = np.asarray(found)
    wanted = np.asarray(expected)
    assert any(np.array_equal(rows[top : top + side], wanted) for top in range(len(rows) - side))


def test_what_cannot_be_magnified_is_one_line(
    tiny_checkpoint: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["explain", tiny_checkpoint, image]
    assert refused(capsys, *given, "--patch", "2,0") == (
        f"error: --patch 2,0: {tiny_checkpoint} has 2 rows of 2 patches; give one from 0,0 to 1,1"
    )
    assert refused(capsys, *given, "--patch", "0,0", "--method", "grad-cam") == (
        "error: --patch 0,0: grad-cam has no map of the words of a TNT; take rollout or gradient-attention"
    )
    assert "--patch is '-1,0'; it must be" in refused(capsys, *given, "--patch", "-1,0")
    for wrong in ("1", "a,b", "-1,0", "1,2,3"):
        line = refused(capsys, *given, f"--patch={wrong}")
        assert f"--patch is '{wrong}'; it must be a row and a column from 0, as 3,5" in line
    exported = tmp_path / "best.torchscript"
    vitrail.export(tiny_checkpoint, format="torchscript", output=exported, progress=False)
    assert refused(capsys, "explain", exported, image, "--patch", "0,0") == (
        f"error: --patch 0,0: {exported} is an exported file, which has answers and no words; give the weight file"
    )
    with pytest.raises(ConfigError, match=r"^explain: patch is '1,2'; it must be a list of whole numbers, or None"):
        vitrail.explain(tiny_checkpoint, image, patch="1,2", output=tmp_path / "x")  # pyright: ignore[reportArgumentType]
    with pytest.raises(
        ConfigError, match=r"^patch=0,1: a patch is magnified on sheets, which output writes; the words"
    ):
        vitrail.explain(tiny_checkpoint, image, patch=(0, 1), progress=False)
    with pytest.raises(ConfigError, match=r"^patch has 3 numbers; it must be a row and a column, as \(3, 5\)$"):
        vitrail.explain(tiny_checkpoint, image, patch=(0, 1, 2), output=tmp_path / "x", progress=False)
    assert refused(capsys, *given, "--score", "--patch", "0,0") == (
        "error: --patch 0,0: does not go with --score; leave one of them out"
    )


def test_options_of_which_one_would_do_nothing_are_refused(
    tiny_checkpoint: Path, image: Path, capsys: pytest.CaptureFixture
) -> None:
    assert refused(capsys, "explain", tiny_checkpoint, image, "--class", "red", "--topk", 2) == (
        "error: --topk 2: --class red says which class is explained; leave one of them out"
    )
    with pytest.raises(ConfigError, match=r"^topk=2: class_name=red says which class is explained; leave"):
        vitrail.explain(tiny_checkpoint, image, class_name="red", topk=2, progress=False)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(
    tiny_checkpoint: Path, image: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    # the weights are not looked at
    output = image / "maps"
    assert refused(capsys, "explain", tmp_path / "none.safetensors", image, "--output", output) == (
        f"error: --output {output}: {image} is a file; give a new folder"
    )
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write anywhere")
    output = closed / "maps"
    assert refused(capsys, "explain", tmp_path / "none.safetensors", image, "--output", output) == (
        f"error: --output {output}: {closed} cannot be written to; give another folder"
    )


def test_a_map_that_is_0_everywhere_is_told(image: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoint = save_tiny(tmp_path)
    fill_head(checkpoint, 0)
    assert run("explain", checkpoint, image, "--output", tmp_path / "maps", "--class", "red", "--maps-alone") == 0
    printed = capsys.readouterr()
    assert (
        f"{image}: the map of red is 0 everywhere: by gradient-attention nothing in the image speaks for it"
        in printed.err
    )


@pytest.mark.parametrize("method", ["gradient-attention", "grad-cam", "integrated-gradients", "occlusion"])
def test_both_classes_of_a_head_of_one_output_are_explained(
    image: Path, tmp_path: Path, method: ExplanationMethod
) -> None:
    checkpoint = save_tiny(tmp_path, classes=("cat",))
    maps = []
    for name in ("0", "1"):
        (one,) = vitrail.explain(
            checkpoint,
            image,
            class_name=name,
            method=method,
            maps_alone=True,
            device="cpu",
            progress=False,
        )
        maps.append(list(one.maps.values())[-1])
        assert maps[-1].any()
    if method != "gradient-attention":  # which keeps what is positive alone
        np.testing.assert_allclose(maps[0], -maps[1], atol=1e-6)


@pytest.mark.parametrize("method", ["gradient-attention", "rollout", "grad-cam", "integrated-gradients", "occlusion"])
def test_rectangles_and_channels_of_any_number_are_explained(
    image: Path, tmp_path: Path, method: ExplanationMethod
) -> None:
    gray = Preprocess(size=(32, 48), mean=(0.5,), std=(0.25,), channels=1)
    checkpoint = save_tiny(tmp_path, gray, image_size=(32, 48))
    (one,) = vitrail.explain(checkpoint, image, method=method, output=tmp_path / "maps", progress=False)
    assert one.error is None
    assert one.values is not None
    height, width = np.load(one.values).shape[1:]
    assert height * 3 == width * 2
