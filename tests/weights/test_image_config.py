"""What config.json says of images: taken where it can be had, and otherwise said, never a reason to refuse weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch

from support.weight_files import opened, tiny, tiny_options
from vitrail.weights.image_config import read_images, read_labels
from vitrail.weights.loading import load_model

WILD = Path(__file__).parents[3] / "shared" / "wild" / "26-timm-config-values"
OWN = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "crop": 0.9, "interpolation": "bicubic"}
IMAGENET = (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("said", "values", "notes", "doubts"),
    [
        ({}, {}, (), ()),
        (
            {"mean": [0.1, 0.2, 0.3], "std": [1, 1, 1], "crop_pct": 1, "interpolation": "bilinear", "url": "x"},
            {"mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "crop": 1.0, "interpolation": "bilinear"}, (), (),
        ),
        ({"mean": 0.25, "std": [0.2]}, {"mean": (0.25,) * 3, "std": (0.2,) * 3}, (), ()),
        (
            {"mean": [127.5, 127.5, 127.5], "std": [51, 51, 51]}, {"mean": (0.5,) * 3, "std": (0.2,) * 3},
            (
                "has mean for pixels from 0 to 255, which is [0.5, 0.5, 0.5] for pixels from 0 to 1",
                "has std for pixels from 0 to 255, which is [0.2, 0.2, 0.2] for pixels from 0 to 1",
            ),
            (),
        ),
        (
            {"mean": 0, "std": 255}, {"mean": (0.0,) * 3, "std": (1.0,) * 3},
            ("has std for pixels from 0 to 255, which is [1, 1, 1] for pixels from 0 to 1",), (),
        ),
        (  # (255 x - 51) / 1, as Caffe's weights have it
            {"mean": 51, "std": 1}, {"mean": (0.2,) * 3, "std": (1 / 255,) * 3},
            (
                "has mean for pixels from 0 to 255, which is [0.2, 0.2, 0.2] for pixels from 0 to 1",
                "has std for pixels from 0 to 255, which is [0.003922, 0.003922, 0.003922] for pixels from 0 to 1",
            ),
            (),
        ),
        (  # of two scales at once
            {"mean": 127.5, "std": 0.5}, {"mean": (0.5,) * 3, "std": (0.5,) * 3},
            ("has mean for pixels from 0 to 255, which is [0.5, 0.5, 0.5] for pixels from 0 to 1",),
            ("has mean for pixels from 0 to 255, and std [0.5, 0.5, 0.5] for pixels from 0 to 1",),
        ),
        (
            {"mean": 32767.5, "std": 13107}, {"mean": (0.5,) * 3, "std": (0.2,) * 3},
            (
                "has mean for pixels from 0 to 65535, which is [0.5, 0.5, 0.5] for pixels from 0 to 1",
                "has std for pixels from 0 to 65535, which is [0.2, 0.2, 0.2] for pixels from 0 to 1",
            ),
            (),
        ),
        (
            {"crop_pct": None}, {}, (),
            (
                "has crop_pct null, which cannot be had here; the model's own 0.9 is taken, and preprocess.crop sets "
                "another; timm itself takes 0.875",
            ),
        ),
        (
            {"crop_pct": 1.15}, {}, (),
            (
                "has crop_pct 1.15, which cannot be had here; the model's own 0.9 is taken, and preprocess.crop sets "
                "another",
            ),
        ),
        (
            {"interpolation": "lanczos", "crop_mode": "zoom"}, {}, (),
            (
                "has interpolation lanczos, which cannot be had here; the model's own bicubic is taken, and "
                "preprocess.interpolation sets another",
                "asks for crop_mode zoom; the centre is cut instead, and preprocess.resize sets another",
            ),
        ),
        ({"crop_mode": None}, {}, (), ()),
        ({"crop_mode": "center", "crop_pct": 0.8}, {"crop": 0.8, "resize": "crop"}, (), ()),
        ({"crop_mode": "squash", "crop_pct": 1.0}, {"crop": 1.0, "resize": "squash"}, (), ()),
        (
            {"crop_mode": "border", "crop_pct": 0.9}, {"crop": 0.9, "resize": "letterbox"}, (),
            (
                "has crop_mode border with crop_pct 0.9, which cuts off the edges; all of an image is taken instead",
            ),
        ),
        (
            {"crop_mode": ["border"]}, {}, (),
            ("asks for crop_mode [border]; the centre is cut instead, and preprocess.resize sets another",),
        ),
        (
            {"interpolation": "random"}, {}, (),
            (
                "has interpolation random, which is for training; the model's own bicubic is taken, and "
                "preprocess.interpolation sets another",
            ),
        ),
        (
            {"mean": ["a", 1, 2], "std": [0.5, 0, 0.5]}, {}, (),
            (
                "has mean [a, 1, 2], which cannot be had here; the model's own [0.5, 0.5, 0.5] is taken, and "
                "preprocess.mean sets another",
                "has std [0.5, 0, 0.5], which cannot be had here; the model's own [0.5, 0.5, 0.5] is taken, and "
                "preprocess.std sets another",
            ),
        ),
    ],
)  # fmt: skip
def test_values_are_taken_or_said(
    said: dict[str, Any], values: dict[str, Any], notes: tuple[str, ...], doubts: tuple[str, ...]
) -> None:
    images = read_images(said, OWN, 3)
    assert (images.values, images.notes, images.doubts) == (values, notes, doubts)


@pytest.mark.parametrize(
    "value", [True, None, "0.5", [], [0.1, 0.2], [[0.1] * 3], {"a": 1}, float("nan"), 10**40, [None] * 3], ids=str
)
def test_no_value_stops_the_weights_from_opening(value: Any) -> None:
    for name in ("mean", "std", "crop_pct", "interpolation"):
        images = read_images({name: value}, OWN, 3)
        assert not images.values
        assert len(images.doubts) == 1
        assert "the model's own" in images.doubts[0]


@pytest.mark.skipif(not WILD.is_dir(), reason="the files of wild lie beside the repository")
@pytest.mark.parametrize(
    ("file", "expected", "told"),
    [
        ("lanczos.json", {"interpolation": "bicubic"}, "has interpolation lanczos, which cannot be had here"),
        ("crop-null.json", {"crop": 0.9}, "has crop_pct null, which cannot be had here; the model's own 0.9 is taken"),
        ("mean-255.json", {"mean": IMAGENET}, "has mean for pixels from 0 to 255, which is [0.485, 0.456, 0.406]"),
        ("mean-number.json", {"mean": (0.5,) * 3}, ""),
    ],
)
def test_wild_values_open_the_weights(file: str, expected: dict[str, Any], told: str, tmp_path: Path) -> None:
    name = "tnt_s_patch16_224"
    safetensors.torch.save_file(tiny(name, num_classes=3, image_size=224).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes((WILD / file).read_bytes())
    found = opened(tmp_path, name)
    for key, value in expected.items():
        assert getattr(found.record.preprocess, key) == (pytest.approx(value) if key == "mean" else value)
    assert any(told in text for text in (*found.account.notes, *found.account.doubts))


def test_doubtful_values_are_warnings_in_python(tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny("twins_svt_small").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 5, 5], "crop_pct": 0}}))
    own = opened(tmp_path, "twins_svt_small")
    assert own.record.preprocess.crop == 0.875
    assert own.record.preprocess.size == (64, 64)
    assert any("the input_size of its config.json cannot be" in doubt for doubt in own.account.doubts)
    with pytest.warns(UserWarning, match=r"config\.json") as caught:
        load_model(tmp_path, model="twins_svt_small", **tiny_options("twins_svt_small"))
    assert [str(warning.message).removeprefix(f"{tmp_path}/model.safetensors: ")[:40] for warning in caught] == [
        "the input_size of its config.json cannot",
        "its config.json has crop_pct 0, which ca",
    ]


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({}, None),
        ({"label_names": ["a", "b"]}, ["a", "b"]),
        ({"label_names": "ab"}, []),
        ({"id2label": {"1": "b", "0": "a"}}, ["a", "b"]),
        ({"id2label": {0: "a", 2: "c"}}, []),
        ({"id2label": {"1": "a", "2": "b"}}, []),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({"id2label": ["a"]}, None),
        ({"label2id": {"b": 1, "a": 0}}, ["a", "b"]),
        ({"label2id": {"a": "0", "b": "1"}}, ["a", "b"]),
        ({"label2id": {"a": 0, "b": 0}}, []),
        ({"label2id": {"a": 1, "b": 2}}, []),
        ({"label2id": {"LABEL_0": 0, "LABEL_1": 1}}, None),
        ({"label2id": {"b": 1, "a": 0}, "id2label": {"0": "x", "1": "y"}}, ["x", "y"]),
    ],
)
def test_names_of_the_logits_are_found_in_both_places(config: dict[str, Any], labels: Any) -> None:
    assert read_labels(config) == labels


def test_names_of_the_hub_become_classes(tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny("twins_svt_small", num_classes=2).state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"id2label": {"0": "ant", "1": "bee"}}))
    assert opened(tmp_path, "twins_svt_small").record.classes == ("ant", "bee")
