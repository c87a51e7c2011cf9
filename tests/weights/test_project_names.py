"""The names of weights in every project, read and written."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from support.weight_files import EXAMPLES, SHARED, dialect_of, opened, save, theirs, tiny
from vitrail.errors import CheckpointError
from vitrail.models.registry import create_model
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt
from vitrail.weights.loading import open_model
from vitrail.weights.recognise import recognise
from vitrail.weights.request import LoadRequest

every_way = pytest.mark.parametrize(
    ("name", "project"), [(name, project) for name, projects in EXAMPLES.items() for project in projects]
)


@pytest.mark.thorough
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


@pytest.mark.thorough
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
