"""Weight files of every dialect: found, accounted for, computing what their project computes, and adapted by rules."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor
from torch.testing import assert_close

from support.formula import formula
from support.mindspore_values import COMMITTED, golden_values
from support.tiny_model import save_tiny
from support.weight_files import EXAMPLES, MINDSPORE_TINY, dialect_of, opened, save, theirs, tiny, tiny_options
from vitrail.errors import CheckpointError, ConfigError, DataError
from vitrail.imagenet import index_by_name, list_wordnet_ids
from vitrail.images.preprocess import Preprocess
from vitrail.models.dialects import read_names, write_names
from vitrail.models.registry import FAMILIES, create_model
from vitrail.weights.adapt import shared_rows
from vitrail.weights.checkpoint import Record, save_model
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.recognise import recognise
from vitrail.weights.request import LoadRequest

SHARED = Path(__file__).parents[3] / "shared" / "golden"
every_way = pytest.mark.parametrize(
    ("name", "project"), [(name, project) for name, projects in EXAMPLES.items() for project in projects]
)


# Names


@every_way
def test_every_name_of_a_project_is_found_again(name: str, project: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    readings = recognise(theirs(model.state_dict(), project, name), "file", dialect=None, model=None, options={})
    assert [(project in r.dialect.projects, r.model, r.is_whole, r.missing) for r in readings] == [
        (True, name, True, ())
    ]
    assert set(readings[0].zeros) <= {"outer_tokens"}


@every_way
def test_what_is_written_for_a_project_is_read_back_bit_for_bit(name: str, project: str, tmp_path: Path) -> None:
    model = tiny(name)
    path = save(tmp_path / "a.pth", theirs(model.state_dict(), project, name))
    found = opened(path, name)
    assert project in dialect_of(found.account.dialect, name).projects
    assert found.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, found.weights[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "name", ["tnt_s_patch16_224", "tnt_b_patch16_224", "tnt_s_legacy_patch16_224", "twins_svt_small"]
)
def test_names_of_timm_are_those_of_its_own_models(name: str) -> None:
    with torch.device("meta"):
        ours, of_timm = create_model(name).state_dict(), timm.create_model(name).state_dict()
    written = theirs(ours, "timm", name)
    assert {key: value.shape for key, value in written.items()} == {key: value.shape for key, value in of_timm.items()}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the names of mmpretrain lie beside the repository")
@pytest.mark.parametrize(
    ("theirs_is", "name"),
    [
        ("tnt-small-p16 (timm legacy architecture)", "tnt_s_legacy_patch16_224"),
        ("twins-pcpvt-small", "twins_pcpvt_small"),
        ("twins-svt-small", "twins_svt_small"),
        ("t2t-vit-t-14", "t2t_vit_t_14"),
    ],
)
def test_names_of_mmpretrain_are_those_of_its_own_models(theirs_is: str, name: str) -> None:
    with torch.device("meta"):
        written = theirs(create_model(name).state_dict(), "mmpretrain", name)
    expected = json.loads((SHARED / "mmpretrain-keys.json").read_text())[theirs_is]
    assert {key: list(tensor.shape) for key, tensor in written.items()} == expected


def test_stages_of_twins_in_mindspore_have_the_names_it_gives_them() -> None:
    with torch.device("meta"):
        written = theirs(create_model("twins_svt_small").state_dict(), "mindcv", "twins_svt_small")
    for key in ("0.0.norm1.gamma", "0.1.proj.0.weight", "0.2.norm1.gamma", "0.1.0.norm1.gamma", "0.3.4.mlp.fc2.bias"):
        assert key in written
    assert "blocks.0.0.norm1.weight" not in written


def test_twins_of_the_zoo_are_named_as_in_its_training_files() -> None:
    with torch.device("meta"):
        written = theirs(create_model("twins_svt_small").state_dict(), "zoo", "twins_svt_small")
    for key in (
        "model.patch_embeds.0.norm.gamma", "model.pos_block.3.proj.0.bias", "model.merge_blocks.0.0.norm1.gamma",
        "model.merge_blocks.3.4.mlp.fc2.bias", "model.merge_blocks.0.2.attn.norm.beta", "model.head.weight",
    ):  # fmt: skip
        assert key in written
    assert not [key for key in written if "merge_blocks.0.1." in key]


def in_training(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file of the zoo's training: moments and numbers stand beside the weights of the wrapped net."""
    model = {f"model.{name.removeprefix('model.')}": tensor for name, tensor in weights.items()}
    numbers = {"scale_sense": torch.tensor(1024.0), "global_step": torch.tensor([7], dtype=torch.int32)}
    counters = {name: torch.tensor(0) for name in ("current_iterator_step", "epoch_num", "step_num")}
    moments = {
        f"{kind}.{name}": tensor + 1 for kind in ("moments", "adam_m", "adam_v") for name, tensor in model.items()
    }
    return {**model, **numbers, "momentum": torch.tensor(0.9), **moments, **counters}


def at_first(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the names under which vitrail wrote Twins for the zoo at first, and others without the prefix."""
    bare = {name.removeprefix("model."): tensor for name, tensor in weights.items()}
    return {re.sub(r"pos_block\.(\d+)\.", r"merge_blocks.\1.1.", name): tensor for name, tensor in bare.items()}


@pytest.mark.parametrize("kind", [in_training, at_first])
@pytest.mark.parametrize("name", [name for name, projects in EXAMPLES.items() if "zoo" in projects])
def test_files_of_the_zoo_are_read_in_every_spelling(name: str, kind: Any, tmp_path: Path) -> None:
    weights = tiny(name).state_dict()
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"".join(encode_ckpt(kind(theirs(weights, "zoo", name)))))
    found = opened(path, name)
    assert (found.account.dialect, found.account.notes) == ("zoo", opened(path, name, dialect="zoo").account.notes)
    assert not [note for note in found.account.notes if "order and shape" in note]
    assert all(torch.equal(tensor, found.weights[key]) for key, tensor in weights.items())
    skipped = {entry.note for entry in found.account.entries if entry.what == "skipped"}
    assert skipped <= {"of the optimizer", "of the training", "a single number, and no weight is one"}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the names in MindSpore's files lie beside the repository")
def test_training_file_of_twins_of_the_zoo_is_read(tmp_path: Path) -> None:
    listed = json.loads((SHARED / "mindspore" / "twins_svt_small.train-names.json").read_text())
    values = {
        name: torch.full(shape, index / 100, dtype=getattr(torch, dtype))
        for index, (name, (shape, dtype)) in enumerate(listed.items())
    }
    path = tmp_path / "a.ckpt"
    path.write_bytes(b"".join(encode_ckpt(values)))
    found = open_model(path)
    assert (found.account.dialect, found.record.model) == ("zoo", "twins_svt_small")
    assert found.account.counts() == {"loaded": 18, "renamed": 272, "skipped": 298}
    for ours, name in (
        ("blocks.0.0.norm1.bias", "merge_blocks.0.0.norm1.beta"),
        ("blocks.2.9.attn.sr.weight", "merge_blocks.2.10.attn.sr.weight"),
        ("pos_block.3.proj.0.weight", "pos_block.3.proj.0.weight"),
        ("head.bias", "head.bias"),
    ):
        assert torch.equal(found.weights[ours], values[f"model.{name}"])


@pytest.mark.parametrize("first", ["blocks", "position encodings"])
@pytest.mark.parametrize("name", ["twins_svt_small", "twins_pcpvt_base"])
def test_stages_of_twins_are_found_by_order_and_shape_whatever_their_names(name: str, first: str) -> None:
    with torch.device("meta"):
        weights = theirs(create_model(name).state_dict(), "zoo", name)
    weights = {key.removeprefix("model."): tensor for key, tensor in weights.items()}
    if first == "position encodings":
        weights = dict(sorted(weights.items(), key=lambda item: not item[0].startswith("pos_block.")))

    def rename(key: str) -> str:
        key = re.sub(r"merge_blocks\.(\d+)\.(\d+)\.", r"layer\1_cells.cell_\2.", key)
        return re.sub(r"pos_block\.(\d+)\.", r"layer\1_peg.", key)

    renamed = {rename(key): value for key, value in weights.items()}
    (reading,) = recognise(renamed, "file", dialect=None, model=None, options={})
    assert (reading.dialect.name, reading.model, reading.is_whole) == ("zoo", name, True)
    by_name = {
        link.ours: link.theirs for link in recognise(weights, "file", dialect="zoo", model=None, options={})[0].links
    }
    for link in reading.links:
        assert link.theirs == (rename(by_name[link.ours][0]),)


def test_two_models_of_the_same_shapes_are_not_guessed_between(tmp_path: Path) -> None:
    with torch.device("meta"):
        weights = create_model("t2t_vit_14").state_dict()
    readings = recognise(weights, "file", dialect=None, model=None, options={})
    assert [reading.model for reading in readings] == ["t2t_vit_14", "t2t_vit_14_resnext"]
    path = save(tmp_path / "a.pth", {name: torch.zeros(tensor.shape) for name, tensor in weights.items()})
    with pytest.raises(CheckpointError) as caught:
        open_model(path)
    assert str(caught.value) == (
        f"{path}: fits official t2t_vit_14 or official t2t_vit_14_resnext equally; say which it is, such as "
        "weights.model=t2t_vit_14"
    )
    assert open_model(path, LoadRequest(model="t2t_vit_14_resnext")).record.options["num_heads"] == 32


def test_mindspore_has_no_resnext_so_its_t2t_vit_14_is_not_ambiguous() -> None:
    with torch.device("meta"):
        weights = theirs(create_model("t2t_vit_14").state_dict(), "zoo", "t2t_vit_14")
    (reading,) = recognise(weights, "file", dialect=None, model=None, options={})
    assert (reading.dialect.name, reading.model, reading.is_whole) == ("zoo", "t2t_vit_14", True)
    (named,) = recognise(weights, "file", dialect=None, model="t2t_vit_14_resnext", options={})
    assert (named.model, named.is_whole) == ("t2t_vit_14_resnext", True)


@pytest.mark.parametrize("arch", ["t2t_vit_14", "T2t_vit_14_resnext"])
def test_the_name_in_a_training_file_decides(arch: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        weights = create_model("t2t_vit_14").state_dict()
    state = {f"module.{name}": torch.zeros(tensor.shape, dtype=torch.float16) for name, tensor in weights.items()}
    found = open_model(save(tmp_path / "a.pth.tar", {"arch": arch, "epoch": 3, "state_dict": state}))
    assert found.record.model == arch.lower()
    assert any("holds torch.float16, which became torch.float32" in note for note in found.account.notes)


# Numbers


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


# Containers


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


# Every weight accounted for


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
        ({"dialect": "zoo"}, r"no TNT, T2T-ViT or Twins that zoo names; leave weights\.dialect out"),
        ({"dialect": "mmpretrain"}, r"no TNT, T2T-ViT or Twins that mmpretrain names"),
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


# Other classes, sizes and channels


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


# Nothing from a file is run


class Payload:
    """A pickle that makes a folder when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
def test_pickle_that_would_run_is_refused_by_name(old: bool, tmp_path: Path) -> None:
    content = {"state_dict": tiny("t2t_vit_7").state_dict(), "args": Payload(tmp_path / "made")}
    path = tmp_path / "a.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not old)
    with pytest.raises(CheckpointError, match=r"asks to run posix\.mkdir, which is no tensor or plain value"):
        open_model(path)
    assert not (tmp_path / "made").exists()


def test_archive_that_would_grow_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"norm.bias": torch.zeros(100_000_00)})
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in stored.infolist():
            packed.writestr(entry.filename, stored.read(entry))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(CheckpointError, match=r"is an archive that torch\.save did not write; give"):
        open_model(bomb)


def test_tensor_that_claims_a_terabyte_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"norm.bias": torch.ones(1).expand(2**40)})
    with pytest.raises(CheckpointError, match=r"norm\.bias claims 1,099,511,627,776 values and has fewer"):
        open_model(path)
    header = json.dumps({"w": {"dtype": "F32", "shape": [2**38], "data_offsets": [0, 2**40]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="is not a safetensors file, or is damaged"):
        open_model(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not weights by name"),
        ({"a": 1, "b": "text"}, "holds no weights; its entries are a, b"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w is a sparse, quantized or empty tensor"),
        ({"w": torch.empty(2, device="meta")}, "w is a sparse, quantized or empty tensor"),
    ],
)
def test_other_contents_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        open_model(save(tmp_path / "a.pth", content))


def test_every_dialect_reads_what_it_writes() -> None:
    for family in FAMILIES:
        with torch.device("meta"):
            weights = create_model(next(iter(family.variants))).state_dict()
        for dialect in family.dialects:
            links, dropped = write_names(weights, dialect)
            back, ignored, rest = read_names([key for link in links for key in link.theirs], dialect)
            assert {name for link in back for name in link.ours} == weights.keys() - set(dropped)
            assert not ignored
            assert not rest


def test_options_of_the_architecture_cannot_be_changed_afterwards(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="was made with depth=2, which its weights cannot change"):
        load_model(tiny_checkpoint, depth=3)
    model = load_model(tiny_checkpoint, drop_path_rate=0.2, gelu="tanh")
    assert replace(model.config, drop_path_rate=0.0, gelu="erf") == load_model(tiny_checkpoint).config
    assert math.isclose(model.config.drop_path_rate, 0.2)


# What fresh eyes found


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


def test_archive_with_a_second_directory_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"norm.bias": torch.zeros(10)})
    data = path.read_bytes()
    path.write_bytes(data[:-22] + bytes(64) + data[-22:])
    with pytest.raises(CheckpointError, match=r"is an archive that torch\.save did not write|cannot be read"):
        open_model(path)


def test_file_of_more_tensors_than_any_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safetensors.torch.save_file({f"w{number}": torch.zeros(1) for number in range(20_001)}, path)
    with pytest.raises(CheckpointError, match="holds more than 20,000 tensors, and no model here has so many"):
        open_model(path)


def test_what_is_no_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="/dev/null: is a device, no regular file"):
        open_model("/dev/null")
    with pytest.raises(CheckpointError, match="File name too long; choose another path"):
        open_model("a" * 5000)


def test_an_archive_over_several_disks_is_refused_in_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "a.pth", {"w": torch.zeros(2)})
    data = bytearray(path.read_bytes())
    locator = data.rindex(b"PK\x06\x07")
    data[locator + 16 : locator + 20] = (7).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.pth: cannot be read \(zipfiles that span multiple disks"):
        open_model(path)


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
