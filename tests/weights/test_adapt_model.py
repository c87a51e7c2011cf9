"""Weights for other classes, image sizes and channels than their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch.testing import assert_close

from support.tiny_model import save_tiny
from support.weight_files import EXAMPLES, opened, save, theirs, tiny, tiny_options
from vitrail.errors import CheckpointError, ConfigError, DataError
from vitrail.imagenet import index_by_name, list_wordnet_ids
from vitrail.weights.adapt import shared_rows
from vitrail.weights.checkpoint import save_model
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.request import LoadRequest


def test_rows_of_shared_classes_are_kept(tmp_path: Path) -> None:
    from vitrail.images.preprocess import Preprocess
    from vitrail.weights.checkpoint import Record, model_options

    model = tiny("twins_svt_small", num_classes=3)
    path = tmp_path / "a.safetensors"
    record = Record(
        model="twins_svt_small", options=model_options(model), classes=("ant", "bee", "Wasp Nest"),
        preprocess=Preprocess(size=model.config.size),
    )  # fmt: skip
    save_model(path, model.state_dict(), record)
    found = open_model(path, LoadRequest(classes=["fly", "wasp_nest", "ant", "moth"]))
    assert found.record.classes == ("fly", "wasp_nest", "ant", "moth")
    for new, old in ((1, 2), (2, 0)):
        assert torch.equal(found.weights["head.weight"][new], model.state_dict()["head.weight"][old])
        assert torch.equal(found.weights["head.bias"][new], model.state_dict()["head.bias"][old])
    assert found.weights["head.bias"][0] == 0
    (entry,) = [entry for entry in found.account.entries if entry.what == "new"]
    assert entry.note == "2 of 4 rows kept, by class name; the others are fresh"
    assert found.build().classes == ("fly", "wasp_nest", "ant", "moth")
    headless = load_model(path, num_classes=0)
    assert headless(torch.randn(1, 3, 32, 32)).shape == (1, headless.num_features)
    with pytest.warns(
        UserWarning, match="head is dropped, and that of 5 classes is fresh: it has 3 classes, and 5 are"
    ):
        assert load_model(path, num_classes=5).classes == ()


def test_rows_go_by_no_name_that_two_classes_share(tmp_path: Path) -> None:
    pairs = shared_rows(["C++", "c#", "\u0915\u093f", "cafe", "cat", "Dog"], ["c", "C#", "\u0915\u093e", "CAT", "dog"])
    assert pairs == [(3, 4), (4, 5)]  # neither C++ nor another vowel sign
    assert shared_rows(["caf\u00e9", "cafe"], ["cafe", "cafe\u0301"]) == [(0, 1), (1, 0)]
    assert shared_rows(["Cat", "dog"], ["Cat", "cat"]) == [(0, 0)]


@pytest.mark.parametrize("name", ["twins_svt_small", "t2t_vit_7"])
def test_a_head_without_names_is_kept_where_as_many_classes_are_wanted_and_otherwise_said_to_be_dropped(
    name: str, tmp_path: Path
) -> None:
    model = tiny(name, num_classes=3)
    path = save(tmp_path / "a.pth", model.state_dict())
    kept = opened(path, name, classes=["x", "y", "z"])
    assert torch.equal(kept.weights["head.weight"], model.state_dict()["head.weight"])
    assert kept.order_is_assumed
    assert kept.record.classes == ("x", "y", "z")
    (doubt,) = kept.account.doubts
    assert doubt.startswith(f"{path}: names no classes; its head is kept, and the order of its 3 outputs is taken for")
    images = torch.randn(2, 3, *model.config.size)
    with pytest.warns(UserWarning, match="its head is kept"):
        loaded = load_model(path, model=name, classes=["x", "y", "z"], **tiny_options(name))
    assert torch.equal(loaded(images), model(images))

    dropped = opened(path, name, classes=["x", "y"])
    assert dropped.account.doubts == (
        f"{path}: its head is dropped, and that of 2 classes is fresh: it has 3 classes without names, and 2 are "
        "wanted",
    )
    assert not dropped.weights["head.bias"].any()

    save_model(tmp_path / "b.safetensors", kept.weights, kept.record)
    other = open_model(tmp_path / "b.safetensors", LoadRequest(classes=["u", "v", "w"]))
    assert other.account.doubts == (
        f"{tmp_path / 'b.safetensors'}: its head is dropped, and that of 3 classes is fresh: none of its 3 classes is "
        "among the 3 wanted",
    )
    some = open_model(tmp_path / "b.safetensors", LoadRequest(classes=["u", "x", "w"]))
    assert some.account.doubts == ()
    assert some.account.notes == (
        f"{tmp_path / 'b.safetensors'}: 1 of 3 rows of the head are kept, by class name; the others are fresh",
    )


def test_a_file_without_a_head_is_given_one(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", tiny("twins_svt_small", num_classes=0).state_dict())
    found = opened(path, "twins_svt_small", classes=["x", "y"])
    assert found.account.doubts == ()
    assert f"{path}: has no head; that of 2 classes is fresh" in found.account.notes
    assert found.build()(torch.randn(1, 3, 32, 32)).shape == (1, 2)


def test_order_decides_where_it_is_asked_to(tmp_path: Path) -> None:
    model = tiny("twins_svt_small", num_classes=3)
    path = save(tmp_path / "a.pth", model.state_dict())
    named = opened(path, "twins_svt_small", classes=["x", "y", "z"])
    save_model(path.with_suffix(".safetensors"), named.weights, named.record)
    kept = open_model(
        path.with_suffix(".safetensors"), LoadRequest(classes=["class1", "class2", "class3"], by_order=True)
    )
    assert torch.equal(kept.weights["head.weight"], model.state_dict()["head.weight"])
    assert "0 is x there and class1 here, 1 is y there and class2 here" in kept.account.doubts[0]
    assert kept.order_is_assumed
    assert "by their order" in opened(path, "twins_svt_small", classes=["u", "v", "w"], by_order=True).account.doubts[0]
    with pytest.raises(DataError, match=r"by-order: .* has 3 classes and the data 2; give as many"):
        opened(path, "twins_svt_small", classes=["u", "v"], by_order=True)


def test_a_file_names_the_classes_of_weights_without_names(tmp_path: Path) -> None:
    model = tiny("twins_svt_small", num_classes=3)
    path = save(tmp_path / "a.pth", model.state_dict())
    (tmp_path / "names.txt").write_text("x\ny\nz\n")
    found = opened(path, "twins_svt_small", names=str(tmp_path / "names.txt"))
    assert found.record.classes == ("x", "y", "z")
    assert not any("go by number" in note for note in found.account.notes)
    rows = opened(path, "twins_svt_small", names=str(tmp_path / "names.txt"), classes=["z", "new"])
    assert torch.equal(rows.weights["head.weight"][0], model.state_dict()["head.weight"][2])
    save_model(tmp_path / "b.safetensors", found.weights, found.record)
    assert (
        open_model(tmp_path / "b.safetensors", LoadRequest(names=str(tmp_path / "names.txt"))).record.classes[0] == "x"
    )
    (tmp_path / "names.txt").write_text("x\ny\nother\n")
    with pytest.raises(ConfigError, match="names its classes itself, and otherwise: index 2 is z there and other here"):
        open_model(tmp_path / "b.safetensors", LoadRequest(names=str(tmp_path / "names.txt")))
    (tmp_path / "names.txt").write_text("x\ny\n")
    with pytest.raises(ConfigError, match=r"names 2 classes, and .*a\.pth has 3 outputs"):
        opened(path, "twins_svt_small", names=str(tmp_path / "names.txt"))


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "t2t_vit_7", "t2t_vit_t_14", "twins_svt_small"])
def test_one_logit_becomes_two_whose_softmax_is_its_sigmoid(name: str, tmp_path: Path) -> None:
    model = tiny(name, num_classes=1)
    path = save(tmp_path / "a.pth", model.state_dict())
    found = opened(path, name)
    assert found.record.options["num_classes"] == 2
    assert any("has one output z, so two classes" in note for note in found.account.notes)
    images = torch.randn(4, 3, *model.config.size)
    with torch.inference_mode():
        logit, two = model(images), found.build()(images)
    assert torch.allclose(two.softmax(1)[:, 1:], logit.sigmoid(), atol=1e-6)
    assert not two[:, 0].any()
    assert found.account.counts()["resized"] == 2
    assert opened(path, name, classes=["no", "yes"]).record.classes == ("no", "yes")
    assert opened(path, name, options={"num_classes": 1}).record.options["num_classes"] == 1
    assert load_model(path, model=name, **tiny_options(name))(images).shape == (4, 1)  # the module as it is


def test_an_output_of_a_model_of_many_labels_stays_one(tmp_path: Path) -> None:
    path = save_tiny(tmp_path, thresholds=(0.5, 0.5, 0.5))
    one = open_model(path, LoadRequest(classes=["red"]))
    save_model(tmp_path / "one.safetensors", one.weights, one.record)
    assert open_model(tmp_path / "one.safetensors").record.options["num_classes"] == 1


def test_classes_of_imagenet_are_known_by_id_and_by_name(tmp_path: Path) -> None:
    model = tiny("twins_svt_small", num_classes=1000)
    path = save(tmp_path / "a.pth", model.state_dict())
    found = opened(path, "twins_svt_small", classes=["goldfish", "crane", "n01440764", "Golden_Retriever", "my cat"])
    assert opened(path, "twins_svt_small").record.classes == list_wordnet_ids()
    head = model.state_dict()["head.weight"]
    for new, old in ((0, 1), (2, 0), (3, 207)):
        assert torch.equal(found.weights["head.weight"][new], head[old])
    assert "crane" not in index_by_name()  # a bird and a machine
    assert index_by_name()["tench"] == 0


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (48, 80)])
@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "t2t_vit_7"])
def test_positions_are_resized_to_other_image_sizes(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = tiny(name, image_size=64)
    path = save(tmp_path / "a.pth", model.state_dict())
    found = opened(path, name, options={"image_size": size})
    key = "outer_pos" if name.startswith("tnt") else "pos_embed"
    grid = [n // 16 for n in size]
    expected = resample_abs_pos_embed(model.state_dict()[key], grid, [4, 4], num_prefix_tokens=1)
    assert torch.equal(found.weights[key], expected)
    assert torch.equal(found.weights[key][:, 0], model.state_dict()[key][:, 0])
    built = found.build()
    assert built(torch.randn(1, 3, *size)).shape == (1, 7)
    assert built.preprocess.size == size
    assert found.account.counts().get("resized", 0) == (size != (64, 64))


def test_fixed_positions_can_be_computed_anew(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", tiny("t2t_vit_7", image_size=32).state_dict())
    found = opened(path, "t2t_vit_7", options={"image_size": 64}, positions="fresh")
    assert torch.equal(found.weights["pos_embed"], tiny("t2t_vit_7", image_size=64).state_dict()["pos_embed"])


@pytest.mark.thorough
@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize("channels", [1, 2, 4, 6])
def test_stem_is_adapted_to_other_channels_by_a_rule(name: str, channels: int, tmp_path: Path) -> None:
    model = tiny(name)
    project = EXAMPLES[name][0]
    path = save(tmp_path / "a.pth", theirs(model.state_dict(), project, name))
    found = opened(path, name, options={"in_channels": channels})
    read, usual = found.build().preprocess, opened(path, name).record.preprocess
    assert read.channels == channels == len(read.mean) == len(read.std)
    assert read.mean == ((sum(usual.mean) / 3,) if channels == 1 else (0.5,) * channels)
    assert f"for {channels} channel{'s' * (channels > 1)}, pixels are normalised by mean" in found.account.notes[-1]
    gray = torch.randn(2, 1, 32, 32)
    logits = found.build()(gray.expand(-1, channels, -1, -1))
    assert logits.shape == (2, 7)
    if channels in (1, 6) and not name.startswith("t2t"):  # whose first layer is a norm over all channels
        expected = opened(path, name).build()(gray.expand(-1, 3, -1, -1))
        assert_close(logits, expected, atol=1e-4, rtol=0)
    rules = {entry.note for entry in found.account.entries if entry.what == "resized"}
    assert ("summed over the three" if channels == 1 else f"repeated, times 3/{channels}") in rules


def test_other_channels_than_three_are_not_adapted_again(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", tiny("twins_svt_small", in_channels=4).state_dict())
    with pytest.raises(CheckpointError, match="was made for 4 channels, and only weights for 3 can be adapted"):
        opened(path, "twins_svt_small", options={"in_channels": 1})
