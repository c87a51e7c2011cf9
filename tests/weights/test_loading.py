"""Weight files of every project are loaded: their numbers, their wrappers, and an account of every weight."""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.testing import assert_close

from support.formula import formula
from support.mindspore_values import COMMITTED, golden_values
from support.weight_files import MINDSPORE_TINY, SHARED, opened, save, theirs, tiny, tiny_options
from vitrail.errors import CheckpointError, ConfigError
from vitrail.images.preprocess import Preprocess
from vitrail.models.registry import create_model
from vitrail.weights.checkpoint import Record, save_model
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.request import LoadRequest


def test_files_of_mindspore_compute_what_mindspore_computed(tmp_path: Path) -> None:
    images = torch.from_numpy(formula("image", (2, 3, 32, 32)).astype(np.float32))
    for kind in ("mindcv", "zoo"):
        path = tmp_path / f"{kind}.ckpt"
        path.write_bytes(b"".join(encode_ckpt(golden_values(kind))))
        found = open_model(path, LoadRequest(model="tnt_s_patch16_224", options=MINDSPORE_TINY))
        assert found.account.dialect == kind
        assert found.record.options["gelu"] == "tanh"
        assert_close(found.build()(images), torch.tensor(COMMITTED["logits"][kind]), atol=1e-5, rtol=0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the files of MindSpore lie beside the repository")
@pytest.mark.parametrize(
    "file", ["mindcv_tnt_tiny.safetensors", "mindcv_tnt_tiny.train.ckpt", "zoo_tnt_tiny.train.ckpt"]
)
def test_other_files_of_mindspore_compute_the_same(file: str) -> None:
    images = torch.from_numpy(formula("image", (2, 3, 32, 32)).astype(np.float32))
    found = open_model(SHARED / "mindspore" / file, LoadRequest(model="tnt_s_patch16_224", options=MINDSPORE_TINY))
    kind = file.split("_")[0]
    assert_close(found.build()(images), torch.tensor(COMMITTED["logits"][kind]), atol=1e-5, rtol=0)
    skipped = {entry.note for entry in found.account.entries if entry.what == "skipped"}
    assert skipped == ({"of the optimizer", "of the training"} if "train" in file else set())


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "tnt_s_legacy_patch16_224"])
def test_weights_of_timm_compute_what_timm_computes(name: str, tmp_path: Path) -> None:
    from timm.models.tnt import TNT

    torch.manual_seed(0)
    of_timm = TNT(
        img_size=32, patch_size=16, embed_dim=48, inner_dim=12, depth=2, num_heads_inner=2, num_heads_outer=3,
        num_classes=7, legacy="legacy" in name,
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in of_timm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    path = save(tmp_path / "a.pth", of_timm.state_dict())
    model = load_model(path, model=name, **MINDSPORE_TINY)
    images = torch.randn(2, 3, 32, 32)
    assert_close(model(images), of_timm(images), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("project", "name", "options", "preprocess"),
    [
        ("official", "tnt_s_patch16_224", {"gelu": "erf", "norm_eps": 1e-5}, {"mean": (0.5,) * 3, "crop": 0.9}),
        ("mindcv", "tnt_s_patch16_224", {"gelu": "tanh", "final_norm_eps": 1e-7}, {"mean": (0.485, 0.456, 0.406)}),
        ("zoo", "t2t_vit_7", {"gelu": "tanh", "norm_eps": 1e-7}, {"crop": 0.9}),
        ("mindcv", "twins_svt_small", {"gelu": "tanh", "embed_norm_eps": 1e-7, "norm_eps": 1e-6}, {"crop": 0.9}),
        ("zoo", "twins_svt_small", {"gelu": "tanh", "embed_norm_eps": 1e-7, "norm_eps": 1e-6}, {"crop": 0.875}),
        ("mmpretrain", "twins_svt_small", {"gelu": "erf", "norm_eps": 1e-5}, {"crop": 0.875}),
        ("mmpretrain", "twins_pcpvt_small", {"gelu": "erf", "norm_eps": 1e-6}, {"crop": 0.875}),
    ],
)
def test_numerics_and_preprocessing_come_with_the_dialect(
    project: str, name: str, options: dict[str, Any], preprocess: dict[str, Any], tmp_path: Path
) -> None:
    record = opened(save(tmp_path / "a.pth", theirs(tiny(name).state_dict(), project, name)), name).record
    assert {key: record.options[key] for key in options} == options
    assert {key: getattr(record.preprocess, key) for key in preprocess} == preprocess


def test_mindcv_file_says_what_its_pipeline_normalised_with(tmp_path: Path) -> None:
    name = "tnt_s_patch16_224"
    path = save(tmp_path / "a.pth", theirs(tiny(name).state_dict(), "mindcv", name))
    (doubt,) = opened(path, name).account.doubts
    assert "MindCV normalises with ImageNet's mean and std" in doubt
    assert "preprocess.mean=[0.5,0.5,0.5] preprocess.std=[0.5,0.5,0.5]" in doubt
    with pytest.warns(UserWarning, match="--sweep-preprocess"):
        load_model(path, model=name, **tiny_options(name))


def wrapped(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the files that training programs make of the same weights."""
    other = {name: tensor + 1 for name, tensor in weights.items()}
    numbers = {"metric": np.float64(81.5), "best": np.float32(3), "history": np.arange(3.0), "epoch": 5}
    args = argparse.Namespace(model="tnt_s_patch16_224", lr=0.1, clip=None)
    return {
        "flat": OrderedDict(weights),
        "ddp": {f"module.{name}": tensor for name, tensor in weights.items()},
        "compiled": {f"_orig_mod.module.{name}": tensor for name, tensor in weights.items()},
        "timm": {
            "state_dict": weights,
            "args": args,
            "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
            **numbers,
        },
        "twins": {"model": weights, "optimizer": {}, "lr_scheduler": {}, "scaler": {}, "args": args},
        "ema": {"state_dict": other, "state_dict_ema": weights, "epoch": 1},
        "only ema": {"state_dict_ema": weights},
        "mindspore ema": {**other, **{f"ema.{name}": tensor for name, tensor in weights.items()}},
        "t2t ema": {
            **{f"model.{name}": tensor for name, tensor in other.items()},
            **{f"_ema_weights.model.{name}": tensor for name, tensor in weights.items()},
            **{f"adam_m.model.{name}": tensor for name, tensor in other.items()},
        },
        "wrapped ema": {
            **{f"model.{name}": tensor for name, tensor in other.items()},
            **{f"model.ema_weights.{name}": tensor for name, tensor in weights.items()},
        },
        "only t2t ema": {f"_ema_weights.model.{name}": tensor for name, tensor in weights.items()},
        "detector": {"state_dict": {f"backbone.{name}": tensor for name, tensor in weights.items()}, "meta": {"a": 1}},
        "parameters": {name: torch.nn.Parameter(tensor) for name, tensor in weights.items()},
        "doubles": {name: tensor.double() for name, tensor in weights.items()},
    }


@pytest.mark.parametrize("kind", wrapped({}).keys())
@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_every_wrapper_is_taken_off(kind: str, old: bool, tmp_path: Path) -> None:
    weights = tiny("tnt_s_patch16_224").state_dict()
    path = tmp_path / "a.pth.tar"
    torch.save(wrapped(weights)[kind], path, _use_new_zipfile_serialization=not old)
    found = opened(path, "tnt_s_patch16_224")
    assert all(torch.equal(tensor, found.weights[name]) for name, tensor in weights.items())
    assert all(tensor.dtype == torch.float32 for tensor in found.weights.values())


@pytest.mark.parametrize("kind", ["ema", "mindspore ema", "t2t ema", "wrapped ema"])
def test_weights_themselves_are_taken_when_asked(kind: str, tmp_path: Path) -> None:
    weights = tiny("tnt_s_patch16_224").state_dict()
    path = save(tmp_path / "a.pth", wrapped(weights)[kind])
    found = opened(path, "tnt_s_patch16_224", average=False)
    assert torch.equal(found.weights["norm.bias"], weights["norm.bias"] + 1)
    (note,) = [note for note in opened(path, "tnt_s_patch16_224").account.notes if "moving average" in note]
    assert "weights.average=false" in note


def test_several_averages_are_not_chosen_between(tmp_path: Path) -> None:
    weights = tiny("t2t_vit_7").state_dict()
    averages = {
        f"{kind}.{name}": tensor + number
        for number, kind in enumerate(("ema", "_ema_weights"))
        for name, tensor in weights.items()
    }
    with pytest.raises(CheckpointError, match=r"ema"):
        opened(save(tmp_path / "a.pth", {**weights, **averages}), "t2t_vit_7")


def test_transfer_to_cifar_brings_its_preprocessing(tmp_path: Path) -> None:
    weights = {f"module.{name}": tensor for name, tensor in tiny("t2t_vit_7", num_classes=10).state_dict().items()}
    found = opened(save(tmp_path / "a.t7", {"net": weights, "acc": 98.3, "epoch": 59}), "t2t_vit_7")
    preprocess = found.record.preprocess
    assert (preprocess.crop, preprocess.interpolation) == (1.0, "bilinear")
    assert (preprocess.mean, preprocess.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))


def test_folder_of_timm_brings_its_preprocessing_and_class_names(tmp_path: Path) -> None:
    model = tiny("twins_svt_small", num_classes=3)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    config = {
        "architecture": "twins_svt_small", "num_classes": 3, "label_names": ["ant", "bee", "wasp"],
        "pretrained_cfg": {
            "crop_pct": 0.9, "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear",
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    record = opened(tmp_path, "twins_svt_small").record
    assert record.classes == ("ant", "bee", "wasp")
    assert (record.preprocess.crop, record.preprocess.mean) == (0.9, (0.1, 0.2, 0.3))
    assert record.preprocess.interpolation == "bilinear"
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json: is not JSON"):
        open_model(tmp_path)


def test_safetensors_file_that_begins_like_a_pickle_is_read(tmp_path: Path) -> None:
    weights, path = tiny("twins_svt_small").state_dict(), tmp_path / "a.safetensors"
    for padding in range(0, 264, 8):
        safetensors.torch.save_file(weights, path, {"padding": "x" * padding})
        if path.read_bytes()[0] == 0x80:
            break
    else:
        raise AssertionError("no header has that size")
    assert opened(path, "twins_svt_small").weights.keys() == weights.keys()


def test_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"hf-hub:timm/gone: cannot be downloaded") as caught:
        open_model("hf-hub:timm/gone")
    assert "\n" not in str(caught.value)


def test_account_names_every_weight_and_what_was_done(tmp_path: Path) -> None:
    name = "tnt_s_patch16_224"
    weights = {f"module.{key}": tensor for key, tensor in theirs(tiny(name).state_dict(), "timm", name).items()}
    weights["step_num"] = torch.tensor(3)
    account = opened(save(tmp_path / "a.pth", weights), name).account
    assert account.counts()["reshaped"] == 1
    assert account.counts()["zero-filled"] == 1
    seen = [key for entry in account.entries for key in entry.theirs]
    assert sorted(seen) == sorted(weights)
    assert account.summary().endswith("1 zero-filled, 1 skipped")
    reshaped = next(entry for entry in account.entries if entry.what == "reshaped")
    assert str(reshaped) == "module.pixel_pos -> inner_pos"


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_file_with_other_weights_is_refused_unless_told(change: str, tmp_path: Path) -> None:
    name, weights = "twins_svt_small", tiny("twins_svt_small").state_dict()
    if change == "missing":
        del weights["norm.bias"]
    elif change == "unexpected":
        weights["norm_list.0.weight"] = torch.ones(64)
    else:
        weights["norm.bias"] = torch.ones(5)
    path = save(tmp_path / "a.pth", weights)
    with pytest.raises(CheckpointError, match=r"does not fit the model: . weights missing, . unexpected") as caught:
        opened(path, name)
    assert "To take what fits, weights.partial=true" in str(caught.value)
    found = opened(path, name, partial=True)
    assert found.account.doubts
    assert found.build()(torch.randn(1, 3, 32, 32)).shape == (1, 7)
    assert {"missing": "new", "unexpected": "skipped", "shape": "new"}[change] in found.account.counts()


def test_file_of_another_architecture_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"conv1.weight": torch.ones(3), "fc.bias": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"holds weights \(conv1\.weight, fc\.bias, \.\.\.\) of no TNT"):
        open_model(path)


def test_size_that_was_never_published_is_named(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", tiny("tnt_s_patch16_224").state_dict())
    with pytest.raises(
        CheckpointError, match=r"no published model \(embed_dim 48, inner_dim 8, depth 2.*weights\.options"
    ):
        open_model(path)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"dialect": "zoo"}, r"no TNT, T2T-ViT, Twins or PyramidTNT that zoo names; leave weights\.dialect out"),
        ({"dialect": "mmpretrain"}, r"no TNT, T2T-ViT, Twins or PyramidTNT that mmpretrain names"),
        ({"dialect": "vitrail"}, r"was not written by vitrail; leave weights\.dialect out"),
        ({"options": {"depths": (1, 1, 1, 1)}}, "does not fit the model"),
        ({"classes": ["a", "b"], "options": {"num_classes": 3}}, "num_classes is 3, but 2 classes are named"),
    ],
)
def test_wishes_that_do_not_fit_the_file_are_refused(wanted: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", tiny("twins_svt_small").state_dict())
    with pytest.raises((CheckpointError, ConfigError), match=message):
        opened(path, "twins_svt_small", **wanted)


def test_the_same_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    weights = tiny("twins_svt_small").state_dict()
    path = save(tmp_path / "a.pth", {**weights, "blocks.0._orig_mod.0.norm1.weight": torch.ones(16)})
    with pytest.raises(CheckpointError, match="the same weight twice; keep one of them"):
        opened(path, "twins_svt_small")


def test_partial_does_not_guess_between_two_models(tmp_path: Path) -> None:
    with torch.device("meta"):
        expected = create_model("t2t_vit_14").state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in expected.items() if name != "head.bias"}
    with pytest.raises(CheckpointError, match=r"fits official t2t_vit_14 or official t2t_vit_14_resnext equally"):
        open_model(save(tmp_path / "a.pth", state), LoadRequest(partial=True))
    named = save(tmp_path / "a.pth", {"arch": "T2t_vit_14_resnext", "state_dict": state})
    assert open_model(named, LoadRequest(partial=True)).record.options["num_heads"] == 32
    chosen = open_model(named, LoadRequest(partial=True, options={"num_heads": 32}))
    assert chosen.record.options["num_heads"] == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"norm.bias": torch.tensor([math.nan] * 32)},
            "norm.bias has values that are not finite; use a save",
        ),
        ({"norm.bias": torch.ones(32, dtype=torch.complex64)}, "norm.bias is torch.complex64, and no weight here is"),
        ({"norm.bias": torch.ones(32, dtype=torch.int8)}, "1 weights missing"),
    ],
)
def test_values_that_are_no_weights_are_refused(change: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {**tiny("twins_svt_small").state_dict(), **change})
    with pytest.raises(CheckpointError, match=re.escape(message)):
        opened(path, "twins_svt_small")


def test_numbers_that_training_adds_are_skipped(tmp_path: Path) -> None:
    weights = tiny("tnt_s_patch16_224").state_dict()
    added = {"lr": torch.tensor(0.1), "loss_scale": torch.tensor(8.0), "accu_grads.norm.bias": torch.ones(3)}
    found = opened(save(tmp_path / "a.pth", {**weights, **added, "flag": torch.tensor(True)}), "tnt_s_patch16_224")
    assert found.account.counts()["skipped"] == 4


def test_average_without_a_head_is_left(tmp_path: Path) -> None:
    weights = tiny("tnt_s_patch16_224").state_dict()
    average = {name: tensor + 1 for name, tensor in weights.items() if not name.startswith("head")}
    path = save(tmp_path / "a.pth", {"state_dict": weights, "state_dict_ema": average})
    found = opened(path, "tnt_s_patch16_224")
    assert torch.equal(found.weights["norm.bias"], weights["norm.bias"])
    assert any(entry.note == "lacks head.weight, head.bias" for entry in found.account.entries)


def test_what_the_file_says_it_is_must_be_so(tmp_path: Path) -> None:
    with torch.device("meta"):
        expected = create_model("t2t_vit_7").state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in expected.items()}
    path = save(tmp_path / "a.pth", {"arch": "tnt_b_patch16_224", "state_dict": state})
    with pytest.raises(CheckpointError, match="says that it is tnt_b_patch16_224, and its weights are those of"):
        open_model(path)
    found = open_model(path, LoadRequest(model="t2t_vit_7"))
    assert found.record.model == "t2t_vit_7"
    said = f"{path}: says that it is tnt_b_patch16_224, and it is read as t2t_vit_7, which its weights fit"
    assert found.account.doubts[0] == said


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ("twins_pcpvt_small", "its config.json says that it is twins_pcpvt_small, and it is read as twins_svt_small, "
         "which its weights fit"),
        ("resnet50.a1_in1k", "its config.json says that it is resnet50, which is no model here, and it is read as "
         "twins_svt_small, which its weights fit"),
        ("twins_svt_small.in1k", None), ("vitrail_twins_svt_small", None), ("alt_gvt_small", None), (None, None),
    ],
)  # fmt: skip
def test_a_folder_that_says_it_is_another_model_is_told(architecture: str | None, said: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny("twins_svt_small").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architecture": architecture}))
    doubts = opened(tmp_path, "twins_svt_small").account.doubts
    assert [doubt.removeprefix(f"{tmp_path}/model.safetensors: ") for doubt in doubts] == ([said] if said else [])


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"label_names": ["a"]}, "class names of its config.json are not 7 different names, and left out"),
        ({"label_names": ["a"] * 7}, "class names of its config.json are not 7 different names"),
        ({"id2label": {"0": "a", "1": "b"}}, "class names of its config.json are not 7 different names"),
    ],
)
def test_what_a_folder_says_and_is_not_had_is_told(config: dict[str, Any], told: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny("twins_svt_small").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert any(told in note for note in opened(tmp_path, "twins_svt_small").account.notes)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"pretrained_cfg": [1]}', "the pretrained_cfg of its config.json is no mapping"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_folder_whose_description_is_broken_is_refused(config: str, message: str, tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny("twins_svt_small").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path, "twins_svt_small")


def test_folder_of_twins_says_its_image_size(tmp_path: Path) -> None:
    safetensors.torch.save_file(tiny("twins_svt_small").state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"input_size": [3, 96, 64]}}))
    options = {name: value for name, value in tiny_options("twins_svt_small").items() if name != "image_size"}
    assert open_model(tmp_path, LoadRequest(model="twins_svt_small", options=options)).record.preprocess.size == (
        96,
        64,
    )


def test_table_of_positions_that_is_no_square_asks_for_the_size(tmp_path: Path) -> None:
    weights = create_model("t2t_vit_7", image_size=(256, 192)).state_dict()
    path = save(tmp_path / "a.pth", weights)
    with pytest.raises(CheckpointError, match=r"a table of 192 positions, which is no square; say the image size"):
        open_model(path)
    assert open_model(path, LoadRequest(options={"image_size": (256, 192)})).record.preprocess.size == (256, 192)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positions": "frsh"}, "positions is 'frsh'; it must be one of resized, fresh"),
        ({"positions": "fresh"}, "positions=fresh is for T2T-ViT"),
        ({"classes": "cat"}, "classes must be a list of names"),
        ({"classes": ["a", "a"]}, "classes has 'a' twice"),
        ({"dialect": "tim"}, "dialect is 'tim'; did you mean 'timm'?"),
        ({"image_size": 33}, "image_size"),
        ({"image_size": "256"}, "image_size"),
        ({"image_size": 256.0}, "image_size"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    name = "tnt_s_patch16_224"
    path = save(tmp_path / "a.pth", tiny(name).state_dict())
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_model(path, model=name, **{**tiny_options(name), **arguments})


def test_what_nothing_reads_goes_with_the_head_and_comes_with_one(tmp_path: Path) -> None:
    name = "tnt_s_patch16_224"
    whole = tiny(name)
    path = save(tmp_path / "a.pth", whole.state_dict())
    found = opened(path, name, options={"num_classes": 0})
    assert found.weights.keys() == create_model(name, **tiny_options(name), num_classes=0).state_dict().keys()
    assert ("outer_tokens",) in [entry.theirs for entry in found.account.entries if entry.what == "skipped"]
    images = torch.randn(2, 3, 32, 32)
    features = whole.forward_head(whole.forward_features(images), pre_logits=True)
    assert torch.equal(found.build()(images), features)

    # files without a head, as vitrail wrote them with these zeros and as it writes them now, and others
    headless = {key: value for key, value in whole.state_dict().items() if not key.startswith("head.")}
    options = {**asdict(whole.config), "num_classes": 0}
    record = Record(model=name, options=options, classes=(), preprocess=Preprocess(size=(32, 32)))
    save_model(tmp_path / "old.safetensors", headless, record)
    save_model(tmp_path / "new.safetensors", found.weights, record)
    save(tmp_path / "b.pth", headless)
    for file in ("old.safetensors", "new.safetensors"):
        assert torch.equal(load_model(tmp_path / file)(images), features)
        again = load_model(tmp_path / file, num_classes=3)
        assert again(images).shape == (2, 3)
        assert again.state_dict()["outer_tokens"].shape == (1, 4, 48)
    assert torch.equal(opened(tmp_path / "b.pth", name).build()(images), features)
