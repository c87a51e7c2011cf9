"""`vitrail explain` and its function: sheets, raw values and a page of images, and errors of one line."""

from __future__ import annotations

import html
import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitrail
from support.chromium import CHROMIUM, Page
from support.commands import refused, run
from support.pages import Addresses
from support.tiny_model import fill_head, save_tiny
from vitrail.choices import ExplanationMethod
from vitrail.display import Quiet
from vitrail.errors import ConfigError, DataError
from vitrail.explanation.explainer import NOT_FINITE, open_explainer
from vitrail.explanation.judge import Judged
from vitrail.explanation.methods import METHODS
from vitrail.explanation.sheet import CAUTION, RISING, SIGNED, TILE, Row, colour, draw_sheet
from vitrail.inference.predictor import open_predictor


def test_a_folder_of_images_has_sheets_values_and_a_page(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images = image_folder / "val" / "red"
    (images / "broken.jpg").write_bytes(b"no image")
    output = tmp_path / "maps"
    assert run("explain", tiny_checkpoint, images, "--output", output, "--topk", 2) == 1
    printed = capsys.readouterr()
    assert "broken.jpg: not an image of a known format" in printed.err
    assert f"page: {output / 'index.html'}" in printed.out
    names = sorted(path.name for path in output.iterdir())
    assert names[:3] == ["0002_red_0.npy", "0002_red_0.png", "0002_red_0.sentences.npy"]
    assert len(names) == 4 * 3 + 1
    words = np.load(output / "0002_red_0.npy")
    sentences = np.load(output / "0002_red_0.sentences.npy")
    assert (words.shape, words.dtype, sentences.shape) == ((2, 8, 8), np.float32, (2, 2, 2))
    np.testing.assert_allclose(words.reshape(2, 2, 4, 2, 4).sum((2, 4)), sentences, rtol=1e-4)
    with Image.open(output / "0002_red_0.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 3 * TILE
        assert sheet.height > 2 * TILE
    page = (output / "index.html").read_text()
    addresses = Addresses()
    addresses.feed(page)
    assert addresses.opened == []
    assert addresses.found == [name for name in names if name.endswith(".png")]
    assert html.escape(f"{images}/broken.jpg") in page
    assert 'href="0002_red_0.sentences.npy"' in page
    assert "http" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.thorough
def test_the_page_shows_every_sheet(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    vitrail.explain(tiny_checkpoint, image_folder / "val" / "red", output=tmp_path / "maps", progress=False)
    with Page() as page:
        page.resize(390, 800, is_phone=True)
        page.open((tmp_path / "maps" / "index.html").as_uri())
        page.until("[...document.images].slice(0, 1).every(one => one.complete && one.naturalWidth > 0)")
        assert page.ask("document.documentElement.scrollWidth <= innerWidth")
        # a sheet keeps its size on a phone, where its texts would be too small to read, and is moved sideways
        assert page.ask("document.images[0].width === document.images[0].naturalWidth")
        assert page.complaints == []
        page.resize(1200, 800)
        page.until("document.images[0].width <= innerWidth")


def test_without_a_folder_nothing_is_written_and_the_maps_are_in_the_result(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    image = image_folder / "val" / "red" / "red_0.jpg"
    (one,) = vitrail.explain(tiny_checkpoint, image, class_name="green", progress=False)
    assert (one.method, one.sheet, one.values, one.error) == ("gradient-attention", None, None, None)
    assert [(choice.index, choice.name) for choice in one.classes] == [(1, "green")]
    assert {level: maps.shape for level, maps in one.maps.items()} == {"sentences": (1, 2, 2), "words": (1, 8, 8)}
    (numbered,) = vitrail.explain(tiny_checkpoint, image, class_name="1", progress=False)
    assert numbered.classes == one.classes
    np.testing.assert_array_equal(numbered.maps["words"], one.maps["words"])
    rolled = vitrail.explain(tiny_checkpoint, image, method="rollout", topk=3, progress=False)
    assert len(rolled[0].classes) == 3
    assert rolled[0].maps["words"].shape == (1, 8, 8)
    assert [row["name"] for row in rolled.records()] == [choice.name for choice in rolled[0].classes]
    assert list(Path().iterdir()) == []


def test_several_classes_have_a_map_each_in_their_order(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = image_folder / "val" / "red" / "red_0.jpg"
    (both,) = vitrail.explain(tiny_checkpoint, image, class_name=["red", 1, "red"], progress=False)
    assert [choice.name for choice in both.classes] == ["red", "green"]
    assert len(both.faithfulness) == 2
    for place, name in enumerate(("red", "green")):
        (alone,) = vitrail.explain(tiny_checkpoint, image, class_name=name, maps_alone=True, progress=False)
        np.testing.assert_allclose(both.maps["words"][place], alone.maps["words"][0], rtol=1e-4, atol=1e-7)
    output = tmp_path / "maps"
    assert run("explain", tiny_checkpoint, image, "--class", "red", "--class", "green", "--output", output) == 0
    np.testing.assert_allclose(np.load(output / "0001_red_0.npy"), both.maps["words"], rtol=1e-4, atol=1e-7)
    assert "red, green" in capsys.readouterr().out
    several = ["--class", "red", "--class", "green", "--score"]
    assert refused(capsys, "explain", tiny_checkpoint, image, *several) == (
        "error: --class red --class green: --score explains one class of all images; leave one of them out"
    )
    several = ["--method", "rollout", "--method", "grad-cam"]
    assert refused(capsys, "explain", tiny_checkpoint, image, *several) == (
        "error: --method rollout --method grad-cam: a sheet has one; --score compares several; leave one of them out"
    )


def test_a_multi_label_image_without_a_class_has_its_nearest_explained(image_folder: Path, tmp_path: Path) -> None:
    checkpoint = save_tiny(tmp_path, thresholds=(0.999, 0.999, 0.999))
    image = image_folder / "val" / "red" / "red_0.jpg"
    (one,) = vitrail.explain(checkpoint, image, progress=False)
    assert len(one.classes) == 1
    assert one.classes[0].probability < 0.999


def test_what_cannot_be_explained_is_one_line(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = image_folder / "val" / "red" / "red_0.jpg"
    assert refused(capsys, "explain", tiny_checkpoint, image, "--class", "gren") == (
        f"error: --class gren: {tiny_checkpoint} has no such class; did you mean 'green'? It has blue, green, red"
    )
    assert refused(capsys, "explain", tiny_checkpoint, image, "--class", "3") == (
        f"error: --class 3: {tiny_checkpoint} has no such class; it has blue, green, red"
    )
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    line = refused(capsys, "explain", tiny_checkpoint, image, "--output", full)
    assert line == f"error: --output {full}: has files in it; give a new folder"
    line = refused(capsys, "explain", tiny_checkpoint, image, "--output", image)
    assert line == f"error: --output {image}: is a file; give a new folder"
    assert "rollout" in refused(capsys, "explain", tiny_checkpoint, image, "--method", "rolout")
    assert "explain needs images" in refused(capsys, "explain", tiny_checkpoint)
    assert refused(capsys, "explain", tiny_checkpoint, f"data.root={image_folder}") == (
        "error: explain needs images; data sets go with --score and --by-layer"
    )
    with pytest.raises(ConfigError, match=r"^class_name=9: .* has no such class; it has blue, green, red$"):
        vitrail.explain(tiny_checkpoint, image, class_name="9")


@pytest.mark.parametrize("method", ["gradient-attention", "rollout", "grad-cam"])
def test_a_map_of_attention_or_gradients_takes_one_pass_of_the_model(
    image_folder: Path, tiny_checkpoint: Path, method: ExplanationMethod
) -> None:
    explainer = open_explainer(tiny_checkpoint, method=method, device="cpu", display=Quiet())
    assert isinstance(explainer.answer, torch.nn.Module)
    passes = []
    explainer.answer.get_submodule("blocks.0").register_forward_hook(lambda *_: passes.append(1))
    image = image_folder / "val" / "red" / "red_0.jpg"
    explained = explainer.explain(image)
    assert len(passes) == 1
    assert explained.classes == (explained.answer,)
    # the logits of that pass are those of any other
    predictor = open_predictor(tiny_checkpoint, device="cpu")
    (prediction,) = predictor.predict([image])
    assert explained.classes == prediction.choices
    np.testing.assert_allclose(explained.probabilities, prediction.probabilities, rtol=1e-5)


def test_weights_that_are_not_finite_are_one_line(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint = save_tiny(tmp_path)
    fill_head(checkpoint, float("nan"))
    assert refused(capsys, "explain", checkpoint, image_folder / "val" / "red" / "red_0.jpg") == (
        f"error: {checkpoint}: head.weight has values that are not finite; use a save from before that happened"
    )


@pytest.mark.parametrize("method", METHODS)
def test_weights_whose_logits_overflow_are_one_line_an_image(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, method: ExplanationMethod
) -> None:
    checkpoint = save_tiny(tmp_path)
    fill_head(checkpoint, 3e38)
    image = image_folder / "val" / "red" / "red_0.jpg"
    output = tmp_path / "maps"
    assert run("explain", checkpoint, image, "--method", method, "--output", output) == 1
    printed = capsys.readouterr()
    assert f"{image}: {NOT_FINITE}" in printed.err
    assert [path.name for path in output.iterdir()] == ["index.html"]


def test_an_exported_file_is_explained_by_its_answers_alone(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = image_folder / "val" / "red" / "red_0.jpg"
    exported = tmp_path / "best.torchscript"
    vitrail.export(tiny_checkpoint, format="torchscript", output=exported, progress=False)
    (one,) = vitrail.explain(exported, image, class_name="red", progress=False)
    (plain,) = vitrail.explain(tiny_checkpoint, image, class_name="red", method="occlusion", progress=False)
    assert one.method == "occlusion"
    np.testing.assert_allclose(one.maps["pixels"], plain.maps["pixels"], atol=1e-4)
    assert "is an exported file, which has answers and neither" in refused(
        capsys, "explain", exported, image, "--method", "rollout"
    )


def test_attention_has_names_levels_and_shapes(image_folder: Path, tiny_checkpoint: Path) -> None:
    image = image_folder / "val" / "red" / "red_0.jpg"
    maps = vitrail.attention(tiny_checkpoint, image)
    assert [(one.name, one.level, one.layer, one.values.shape) for one in maps] == [
        ("blocks.0.inner_attn", "word", 0, (4, 2, 16, 16)),
        ("blocks.0.outer_attn", "sentence", 0, (3, 5, 5)),
        ("blocks.1.inner_attn", "word", 1, (4, 2, 16, 16)),
        ("blocks.1.outer_attn", "sentence", 1, (3, 5, 5)),
    ]
    model = vitrail.load_model(tiny_checkpoint)
    assert model.preprocess is not None
    (_, last) = vitrail.attention(model, model.preprocess(image), level="sentence")
    np.testing.assert_allclose(last.values, maps[3].values, atol=1e-6)
    assert "sentence" in str(maps)
    assert maps.records()[0]["shape"] == (4, 2, 16, 16)


def test_attention_that_cannot_be_had_is_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^level=window: this model has word, sentence$"):
        vitrail.attention(tiny_checkpoint, torch.zeros(3, 32, 32), level="window")
    with pytest.raises(ConfigError, match=r"^image: images are \(16, 16\) but this TNT was built for"):
        vitrail.attention(tiny_checkpoint, torch.zeros(3, 16, 16))
    with pytest.raises(ConfigError, match=r"^image is torch\.float32 of "):
        vitrail.attention(tiny_checkpoint, torch.zeros(32, 32))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.jpg: not an image of a known format"):
        vitrail.attention(tiny_checkpoint, tmp_path / "broken.jpg")
    fresh = vitrail.create_model("t2t_vit_7", image_size=32, depth=1)
    with pytest.raises(ConfigError, match=r"^model: does not know how images are read"):
        vitrail.attention(fresh, tmp_path / "broken.jpg")


def test_a_sheet_and_the_page_have_the_numbers_of_the_finest_map(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = image_folder / "val" / "red" / "red_0.jpg"
    plain, judged = (
        vitrail.explain(tiny_checkpoint, image, topk=2, maps_alone=alone, output=tmp_path / name, progress=False)
        for name, alone in (("plain", True), ("judged", False))
    )
    assert plain[0].faithfulness == ()
    first, second = judged[0].faithfulness
    assert first != second
    assert -1 <= first.saco <= 1
    assert 0 <= first.insertion <= 1
    assert 0 <= first.deletion <= 1
    assert first.shuffled is not None
    assert first.shuffled < 0.5
    assert [row["saco"] for row in judged.records()] == [first.saco, second.saco]
    assert f"{first.saco:.2f}, {second.saco:.2f}" in str(judged)
    pages = [(tmp_path / name / "index.html").read_text() for name in ("plain", "judged")]
    assert "SaCo" not in pages[0]
    assert f"{judged[0].classes[0].name}: SaCo {first.saco:.2f}, insertion {first.insertion:.2f}" in pages[1]
    assert "What the numbers say" in pages[1]
    assert "What the numbers say" not in pages[0]
    heights = []
    for one in (plain, judged):
        assert one[0].sheet is not None
        with Image.open(one[0].sheet) as sheet:
            heights.append(sheet.height)
    assert heights[0] < heights[1]
    assert run("explain", tiny_checkpoint, image, "--output", tmp_path / "shell", "--maps-alone") == 0
    assert "SaCo" not in (tmp_path / "shell" / "index.html").read_text()


def test_an_exported_file_has_no_weights_to_shuffle(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    exported = tmp_path / "best.torchscript"
    vitrail.export(tiny_checkpoint, format="torchscript", output=exported, progress=False)
    (one,) = vitrail.explain(exported, image_folder / "val" / "red" / "red_0.jpg", progress=False)
    (judged,) = one.faithfulness
    assert judged.shuffled is None
    assert "shuffled" not in str(judged)
    assert not judged.fails


def test_a_map_that_stays_with_the_weights_is_marked() -> None:
    failing = Judged(saco=0.1, insertion=0.5, deletion=math.nan, shuffled=0.83)
    text = (
        "SaCo 0.10, insertion 0.50, shuffled weights 0.83: FAILS, the map hardly changes where the weights are shuffled"
    )
    assert str(failing) == text
    view = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    drawn = []
    for is_caution in (False, True):
        row = Row("red 0.9", [("words", np.zeros((2, 2), np.float32))], text, is_caution)
        with Image.open(io.BytesIO(draw_sheet(view, "title", [row], is_signed=True))) as sheet:
            drawn.append(CAUTION in {colour for _, colour in sheet.getcolors(1 << 20) or []})
    assert drawn == [False, True]


def test_colours_run_from_least_to_largest_and_zero_is_white_where_there_is_a_sign() -> None:
    values = np.array([[0.0, 1.0], [2.0, 4.0]], np.float32)
    rising = colour(values, is_signed=False)
    assert tuple(rising[0, 0]) == RISING[0]
    assert tuple(rising[1, 1]) == RISING[-1]
    signed = colour(values - 2, is_signed=True)
    assert tuple(signed[0, 0]) == SIGNED[0]
    assert tuple(signed[1, 0]) == SIGNED[2]
    even = colour(np.zeros((2, 2), np.float32), is_signed=True)
    assert (even == even[0, 0]).all()


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, torch.uint8), (3, torch.uint8), (5, torch.uint8), (1, torch.uint16)]
)
def test_a_sheet_of_any_pixels_and_names_is_drawn(channels: int, dtype: torch.dtype, tmp_path: Path) -> None:
    view = torch.arange(channels * 32 * 48).reshape(channels, 32, 48).to(dtype)
    maps = [("words", np.eye(4, 6, dtype=np.float32))]
    data = draw_sheet(view, "\u65e5\u672c \x1b[0m" * 90, [Row("\u00e4" * 90, maps)], is_signed=False)
    (tmp_path / "sheet.png").write_bytes(data)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width >= 2 * TILE
