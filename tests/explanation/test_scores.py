"""`vitrail explain --score` and its function: a table of methods on a data set or files, masks, and errors."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr

import vitrail
from support.commands import refused, run
from support.explained_models import build, random_images
from vitrail.errors import ConfigError, DataError
from vitrail.explanation.batches import draw_images
from vitrail.explanation.faithfulness import shuffle_weights
from vitrail.explanation.judge import Judge, compare_with_masks, fails
from vitrail.explanation.masks import read_boxes
from vitrail.explanation.methods import explain
from vitrail.explanation.scoring import CENTRE, RANDOM

MEASURES = ("saco", "insertion", "deletion", "shuffled", "occlusion", "pointing", "inside")


@pytest.fixture
def masks(image_folder: Path, tmp_path: Path) -> Path:
    """Return a folder with masks of the upper half of the green validation images."""
    folder = tmp_path / "masks"
    (folder / "green").mkdir(parents=True)
    mask = np.zeros((32, 40), np.uint8)
    mask[:16] = 1
    for image in (image_folder / "val" / "green").iterdir():
        Image.fromarray(mask).save(folder / "green" / f"{image.stem}.png")
    return folder


@pytest.mark.thorough
def test_a_data_set_has_a_table_of_methods_and_floors(
    image_folder: Path, tiny_checkpoint: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    numbers = tmp_path / "scores.json"
    data = f"data.root={image_folder}"
    words = ("--score", data, "--limit", "6", "--masks", masks, "--json", numbers)
    assert run("explain", tiny_checkpoint, *words) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{tiny_checkpoint} on 6 of 12 images of {image_folder / 'val'}, mean (std)" in printed
    assert "no like occlusion: is occlusion itself (occlusion)" in printed
    assert f"no shuffled weights: knows no weights ({RANDOM}, {CENTRE})" in printed
    written = json.loads(numbers.read_text())
    assert (written["images"], written["found"]) == (6, 12)
    assert [one["method"] for one in written["methods"]] == [
        "rollout", "gradient-attention", "grad-cam", "integrated-gradients", "occlusion", RANDOM, CENTRE,
    ]  # fmt: skip
    for one in written["methods"]:
        lacking = set(MEASURES) - one["measures"].keys()
        assert lacking == one["reasons"].keys()
        assert lacking == ({"shuffled"} if one["is_floor"] else {"occlusion"} & {one["method"]})
        assert one["measures"]["inside"]["images"] == written["masked"]
        assert one["measures"]["saco"]["images"] == 6
    assert 0 < written["masked"] < 6


def test_the_numbers_are_those_of_each_image_alone(image_folder: Path, tiny_checkpoint: Path, masks: Path) -> None:
    images = sorted((image_folder / "val" / "green").iterdir())[:2]
    scores = vitrail.score_explanations(
        tiny_checkpoint, images, methods=["gradient-attention"], masks=masks, class_name="green", progress=False
    )
    found = scores.methods[0].measures
    model = vitrail.load_model(tiny_checkpoint)
    assert model.preprocess is not None
    judge, shuffled = Judge(model, is_multi_label=False), shuffle_weights(model)
    label, inside = torch.tensor([1]), torch.zeros(1, 32, 32, dtype=torch.bool)
    inside[:, :16] = True
    expected: dict[str, list[float]] = {}
    for path in images:
        image = model.preprocess(path)[None]
        words = explain("gradient-attention", model, image, label)["words"]
        of_shuffled = explain("gradient-attention", shuffled, image, label)["words"]
        measures = {**judge.measure(image, label, words), **compare_with_masks(words, inside)}
        correlation, _ = spearmanr(words.flatten(), of_shuffled.flatten())
        for name, value in {**measures, "shuffled": correlation}.items():
            expected.setdefault(name, []).append(float(value))
    for name, values in expected.items():
        assert found[name].mean == pytest.approx(np.mean(values), abs=1e-4), name
        assert found[name].std == pytest.approx(np.std(values, ddof=1), abs=1e-4), name
    assert scores.records()[0]["saco"] == found["saco"].mean
    assert "occlusion" in found


@pytest.mark.thorough
def test_two_calls_give_the_same_numbers_and_another_seed_others(image_folder: Path, tiny_checkpoint: Path) -> None:
    def ask(seed: int) -> dict:
        scores = vitrail.score_explanations(
            tiny_checkpoint,
            settings={"data.root": image_folder},
            methods=["rollout"],
            limit=3,
            seed=seed,
            progress=False,
        )
        return scores.to_dict()

    assert ask(0) == ask(0)
    assert ask(0) != ask(1)


@pytest.mark.thorough
def test_without_settings_the_images_of_the_weights_are_taken(image_folder: Path, tmp_path: Path) -> None:
    settings = {"data.root": image_folder, "output.root": tmp_path, "output.name": "run"}
    recipe = Path(__file__).parents[1] / "support" / "tiny.yaml"
    weights = vitrail.train(recipe, settings, progress=False).weights
    scores = vitrail.score_explanations(weights, methods=["rollout"], limit=2, progress=False)
    assert (scores.images, scores.found, scores.data) == (2, 12, str(image_folder / "val"))


def test_images_are_drawn_evenly_and_none_twice() -> None:
    assert draw_images(5, 9, 0) == [0, 1, 2, 3, 4]
    drawn = [draw_images(100, 30, seed) for seed in range(40)]
    assert all(len(set(one)) == 30 and one == sorted(one) for one in drawn)
    assert 45 < np.mean(drawn) < 54


def test_an_exported_file_and_unreadable_images_say_what_is_lacking(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    exported = tmp_path / "best.torchscript"
    vitrail.export(tiny_checkpoint, format="torchscript", output=exported, progress=False)
    images = image_folder / "val" / "red"
    (images / "broken.jpg").write_bytes(b"no image")
    assert run("explain", exported, images, "--score") == 1
    printed = capsys.readouterr()
    assert "broken.jpg: not an image of a known format" in printed.err
    assert "; not counted" in printed.err
    assert "no shuffled weights: an exported file has no weights (occlusion)" in printed.out
    assert "on 4 of 5 images" in " ".join(printed.out.split())
    with pytest.warns(UserWarning, match="not counted"), pytest.raises(DataError, match="none of the 1 images"):
        vitrail.score_explanations(exported, images / "broken.jpg", progress=False)


def test_without_captum_what_needs_it_is_left_out(
    image_folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.explanation.perturbation.find_spec", lambda name: None)
    scores = vitrail.score_explanations(tiny_checkpoint, image_folder / "val" / "red", limit=1, progress=False)
    assert [one.method for one in scores.methods] == ["rollout", "gradient-attention", "grad-cam", RANDOM, CENTRE]
    assert set(scores.left_out) == {"integrated-gradients", "occlusion"}
    assert "pip install 'vitrail[explain]'" in scores.left_out["occlusion"]
    assert scores.methods[0].reasons["occlusion"] == scores.left_out["occlusion"]
    assert "occlusion is left out: " in str(scores)


def test_what_cannot_be_scored_is_one_line(
    image_folder: Path, tiny_checkpoint: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    image = image_folder / "val" / "red" / "red_0.jpg"

    def told(*words: object) -> str:
        return refused(capsys, "explain", tiny_checkpoint, image, *words)

    assert told("--limit", 3) == "error: --limit 3: is for --score and --by-layer; add that, or leave it out"
    assert told("--masks", masks) == f"error: --masks {masks}: is for --score; add that, or leave it out"
    assert told("--score", "--topk", 2) == "error: --topk 2: does not go with --score; leave one of them out"
    assert told("--score", "--maps-alone") == "error: --maps-alone: does not go with --score; leave one of them out"
    assert told("--score", "--by-layer") == "error: --score and --by-layer are two things; give one of them"
    assert told("--score", "--limit", 0) == "error: --limit is 0; it must be at least 1"
    assert told("--score", "--masks", tmp_path / "gone") == (
        f"error: --masks {tmp_path / 'gone'}: is no folder; give the folder that the masks or boxes are in"
    )
    assert told("--score", "--masks", masks) == (
        f"error: --masks {masks}: has no mask of any of the 1 images; that of {image} would be {masks / 'red_0.png'} "
        "or red_0.xml with boxes"
    )
    assert told("--score", "--json", tiny_checkpoint).startswith(f"error: --json {tiny_checkpoint}: ")
    Image.new("L", (30, 20)).save(masks / "red_0.png")
    assert told("--score", "--masks", masks) == (
        f"error: {masks / 'red_0.png'}: the mask is 30x20 and its image 40x32; give masks of the size of their images"
    )
    (masks / "red_0.png").write_bytes(b"no image")
    assert told("--score", "--masks", masks).startswith(f"error: {masks / 'red_0.png'}: the mask cannot be read (")
    with pytest.raises(ConfigError, match=r"^methods is empty; name some, or leave it out for all that suit"):
        vitrail.score_explanations(tiny_checkpoint, image, methods=[])
    with pytest.raises(ConfigError, match=r"^score_explanations: methods is \['rolout'\]; it must be one of rollout"):
        vitrail.score_explanations(tiny_checkpoint, image, methods=["rolout"])  # pyright: ignore[reportArgumentType]


def test_masks_are_cut_as_their_images_are(image_folder: Path, tiny_checkpoint: Path, masks: Path) -> None:
    images = image_folder / "val" / "green"
    scores = vitrail.score_explanations(tiny_checkpoint, images, methods=["rollout"], masks=masks, progress=False)
    floors = {one.method: one for one in scores.methods if one.is_floor}
    assert scores.masked == 4
    # the upper half stays the upper half of the square that is cut out
    assert floors[CENTRE].measures["inside"].mean == pytest.approx(0.5, abs=1e-4)
    assert floors[RANDOM].measures["inside"].mean == pytest.approx(0.5, abs=0.05)


def test_a_mask_of_nothing_is_named_and_not_counted(image_folder: Path, tiny_checkpoint: Path, masks: Path) -> None:
    images = image_folder / "val" / "green"
    emptied = sorted((masks / "green").iterdir())[0]
    Image.new("L", (40, 32)).save(emptied)
    with pytest.warns(
        UserWarning, match=rf"{emptied.stem}\.jpg: its mask has nothing inside of what the model sees; not"
    ):
        scores = vitrail.score_explanations(tiny_checkpoint, images, methods=["rollout"], masks=masks, progress=False)
    assert scores.masked == 3
    assert {one.measures["pointing"].images for one in scores.methods} == {3}
    assert {one.measures["saco"].images for one in scores.methods} == {4}


def test_images_without_a_mask_are_counted_and_one_is_named(
    image_folder: Path, tiny_checkpoint: Path, masks: Path
) -> None:
    images = image_folder / "val" / "green"
    removed = sorted((masks / "green").iterdir())[1]
    removed.unlink()
    reason = rf"^1 of 4 images have no mask, such as .*{removed.stem}\.jpg; not counted for pointing game and inside"
    with pytest.warns(UserWarning, match=reason):
        scores = vitrail.score_explanations(tiny_checkpoint, images, methods=["rollout"], masks=masks, progress=False)
    assert scores.masked == 3
    assert {one.measures["inside"].images for one in scores.methods} == {3}


def test_the_spread_of_one_image_is_unknown(image_folder: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    image, numbers = image_folder / "val" / "red" / "red_0.jpg", tmp_path / "numbers.json"
    scores = vitrail.score_explanations(tiny_checkpoint, image, methods=["rollout"], json=numbers, progress=False)
    assert scores.methods[0].measures["saco"].std is None
    assert f"{scores.methods[0].measures['saco'].mean:.2f} (-)" in str(scores)
    assert json.loads(numbers.read_text())["methods"][0]["measures"]["saco"]["std"] is None


def test_an_image_of_one_colour_has_no_numbers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (40, 32), (90, 40, 200)).save(tmp_path / "plain.png")
    (plain,) = vitrail.explain(tiny_checkpoint, tmp_path / "plain.png", output=tmp_path / "maps", progress=False)
    assert all(np.isnan([one.saco, one.insertion, one.deletion]).all() for one in plain.faithfulness)
    (named,) = vitrail.explain(tiny_checkpoint, tmp_path / "plain.png", class_name=1, maps_alone=True, progress=False)
    assert "green" in [one.name for one in named.classes if one.index == 1]
    assert str(plain.faithfulness[0]).startswith("one colour, of which nothing can be taken away")
    scores = vitrail.score_explanations(tiny_checkpoint, tmp_path / "plain.png", methods=["grad-cam"], progress=False)
    for one in scores.methods:
        assert "saco" not in one.measures
        assert one.reasons["saco"] == "its maps are even, or the images are"


def test_a_picture_has_the_same_numbers_wherever_it_stands(
    image_folder: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    first, second, *_ = sorted((image_folder / "val" / "green").iterdir())
    method = "rollout"  # whose map has equal values, as the sentences have few places
    items = vitrail.explain(
        tiny_checkpoint, [first, second, first], method=method, output=tmp_path / "maps", progress=False
    )
    assert items[0].faithfulness == items[2].faithfulness != items[1].faithfulness


BOXES = """<annotation><size><width>40</width><height>32</height></size>
<object><name>green</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>40</xmax><ymax>10</ymax></bndbox></object>
<object><name>green</name><bndbox><xmin>1</xmin><ymin>9</ymin><xmax>40</xmax><ymax>16</ymax></bndbox></object>
</annotation>"""


def test_boxes_stand_for_masks(image_folder: Path, tiny_checkpoint: Path, masks: Path) -> None:
    images = image_folder / "val" / "green"
    by_masks = vitrail.score_explanations(tiny_checkpoint, images, methods=["rollout"], masks=masks, progress=False)
    for mask in sorted((masks / "green").iterdir()):
        mask.with_suffix(".xml").write_text(BOXES)
        mask.unlink()
    by_boxes = vitrail.score_explanations(tiny_checkpoint, images, methods=["rollout"], masks=masks, progress=False)
    assert by_boxes.masked == by_masks.masked == 4
    for mask, box in zip(by_masks.methods, by_boxes.methods, strict=True):
        assert {name: box.measures[name] for name in ("pointing", "inside")} == {
            name: mask.measures[name] for name in ("pointing", "inside")
        }


def test_a_box_has_its_last_pixels(tmp_path: Path) -> None:
    path = tmp_path / "one.xml"
    corners = "<xmin>2</xmin><ymin>3</ymin><xmax>2.0</xmax><ymax>4</ymax>"
    path.write_text(f"<annotation><!-- of a tool --><object><bndbox>{corners}</bndbox></object></annotation>")
    assert read_boxes(path, 5, 3).nonzero().tolist() == [[0, 2, 1], [0, 3, 1]]


def unread(reason: str) -> str:
    return f"the boxes cannot be read ({reason}); give an XML file of PASCAL VOC"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<annotation>", unread("no element found: line 1, column 12")),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>", unread("it declares a document type or entities")),
        (" " * 2**20 + "<a/>", unread("has 1,048,580 bytes, and 1,048,576 are the most")),
        ("<annotation/>", "has no box, which PASCAL VOC writes as object/bndbox; give one, or remove it"),
        (BOXES.replace("<xmax>40</xmax>", ""), unread("could not convert string to float: ''")),
        (BOXES.replace("<xmax>40", "<xmax>inf"), unread("cannot convert float infinity to integer")),
        (
            BOXES.replace("<width>40", "<width>50"),
            "the boxes are of an image of 50x32 and it has 40x32; give boxes for the images as they are",
        ),
        (
            BOXES.replace("<xmax>40", "<xmax>41"),
            "a box from 1,1 to 41,10 does not lie in its image of 40x32; count pixels from 1",
        ),
    ],
)
def test_boxes_that_cannot_be_used_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "one.xml"
    path.write_text(text)
    with pytest.raises(DataError) as error:
        read_boxes(path, 32, 40)
    assert str(error.value) == f"{path}: {message}"


def test_masks_need_files(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "masks").mkdir()
    shutil.copy(tiny_checkpoint, tmp_path / "copy.safetensors")
    with pytest.raises(ConfigError, match="has no files that masks could be called as"):
        vitrail.score_explanations(
            tiny_checkpoint, settings={"data.name": "digits"}, masks=tmp_path / "masks", limit=2, progress=False
        )


def test_a_map_that_knows_nothing_of_the_weights_fails() -> None:
    assert fails(0.97)
    assert not fails(0.1)
    assert not fails(None)
    model = build("tnt_ti_patch16_224")
    images, classes = random_images(model), torch.tensor([0, 1])
    judge = Judge(model, is_multi_label=False)
    words = explain("gradient-attention", model, images, classes)["words"]
    assert (judge.measure_change("gradient-attention", images, classes, words) < 0.5).all()
    shuffled = explain("gradient-attention", shuffle_weights(model), images, classes)["words"]
    torch.testing.assert_close(
        judge.measure_change("gradient-attention", images, classes, shuffled), torch.ones(2, dtype=torch.float64)
    )
