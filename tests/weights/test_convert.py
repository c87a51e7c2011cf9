"""Conversion between dialects: bit-exact both ways, compared by a forward pass, or refused with the reason."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from timm.optim._optim_factory import create_optimizer_v2
from torch.testing import assert_close

from support.mindspore_values import golden_values
from support.weight_files import EXAMPLES, MINDSPORE_TINY, theirs, tiny, tiny_options
from vitrail import timm as registered
from vitrail.cli.app import main
from vitrail.config.resolve import parse_command_line
from vitrail.errors import CheckpointError, ConfigError
from vitrail.images.preprocess import Preprocess
from vitrail.images.synthetic import draw_photo
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model, find_variant
from vitrail.weights.checkpoint import Record, model_options, save_model
from vitrail.weights.convert import convert
from vitrail.weights.formats.mindspore_ckpt import encode_ckpt, read_ckpt
from vitrail.weights.hub import model_card, push_to_hub, save_folder, save_pretrained
from vitrail.weights.image_config import read_images
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.request import LoadRequest, resolve_request

SHARED = Path(__file__).parents[3] / "shared" / "golden" / "mindspore"
MINDSPORE = os.environ.get("VITRAIL_MINDSPORE_PYTHON") or (
    sys.executable if importlib.util.find_spec("mindspore") else None
)
ENDINGS = {"official": "pth", "timm": "safetensors", "mmpretrain": "pth", "mindcv": "ckpt", "zoo": "ckpt"}


def official(tmp_path: Path, name: str, **overrides: Any) -> tuple[Path, LoadRequest]:
    """Return a file of a tiny model, and how it is to be read."""
    path = tmp_path / "from.pth"
    project = EXAMPLES.get(name, ("official",))[0]
    weights = tiny(name, **overrides).state_dict()
    torch.save(weights, path)
    if project != "official":  # which has no such model, so it comes from another
        torch.save(theirs(weights, project, name), path)
    return path, LoadRequest(model=name, options={**tiny_options(name), "image_size": 32, **overrides})


ZOO = ("tnt_s_patch16_224", "t2t_vit_7", "t2t_vit_t_14", "twins_svt_small", "twins_pcpvt_small")
"""Architectures of the zoo."""
PAIRS = [(name, project, ENDINGS[project]) for name, projects in EXAMPLES.items() for project in projects]


@pytest.mark.parametrize(("name", "project", "ending"), [*PAIRS, ("twins_svt_small", "zoo", "safetensors")])
def test_round_trip_is_bit_exact(name: str, project: str, ending: str, tmp_path: Path) -> None:
    source, wanted = official(tmp_path, name)
    target = tmp_path / f"to.{ending}"
    done = convert(source, target, project, wanted)
    assert done.written == (str(target),)
    back = convert(target, tmp_path / "back.safetensors", "vitrail", LoadRequest(dialect=project, **own(wanted)))
    before, after = open_model(source, wanted), open_model(tmp_path / "back.safetensors")
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(tensor, after.weights[key]) for key, tensor in before.weights.items())
    assert done.scale > 0.01
    assert done.difference < 0.01 * done.scale
    assert (done.difference == 0) is not any("computes with" in doubt for doubt in done.doubts)
    assert back.difference == 0


def own(wanted: LoadRequest) -> dict[str, Any]:
    return {"model": wanted.model, "options": wanted.options}


@pytest.mark.parametrize(
    ("name", "to", "file", "reason"),
    [
        ("t2t_vit_7", "timm", "a.pth", "timm has no T2T-ViT; convert it to official"),
        ("t2t_vit_7", "mindcv", "a.ckpt", "mindcv has no T2T-ViT; known for it are official, mmpretrain, zoo"),
        ("t2t_vit_7", "mmpretrain", "a.pth", "its T2T-ViT has tokens_type=transformer, and t2t_vit_7 has not"),
        (
            "tnt_s_patch16_224",
            "mmpretrain",
            "a.pth",
            "its TNT has fold=word and stem=image, and tnt_s_patch16_224 has not",
        ),
        ("tnt_s_legacy_patch16_224", "mindcv", "a.ckpt", "its TNT has fold=sentence and stem=patch"),
        (
            "tnt_s_patch16_224",
            "zoo",
            "a.ckpt",
            r"zoo has no place for 11 of its weights \(patch_embed\.proj\.bias, .*not zero; .* another model; a model "
            r"trained with model\.options\.biases=zoo has none of them",
        ),
        ("twins_svt_small", "mind", "a.ckpt", "to=mind: is no project that is known here"),
        (
            "twins_svt_small",
            "mindspore",
            "a.ckpt",
            "to=mindspore: mindspore has no Twins; known for it are official, timm, mmpretrain, mindcv, zoo",
        ),
        ("twins_svt_small", "mindcv", "a.pth", r"to=mindcv writes files that end in \.ckpt, \.safetensors"),
        ("twins_svt_small", "official", "a.ckpt", r"to=official writes files that end in \.pth"),
        ("twins_svt_small", "vitrail", "a.pth", r"to=vitrail writes files that end in \.safetensors"),
    ],
)
def test_what_a_project_cannot_hold_is_refused(name: str, to: str, file: str, reason: str, tmp_path: Path) -> None:
    source, wanted = official(tmp_path, name)
    with pytest.raises(CheckpointError, match=reason):
        convert(source, tmp_path / file, to, wanted)
    assert not (tmp_path / file).exists()


def test_source_is_not_overwritten(tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "t2t_vit_7")
    before = source.read_bytes()
    (tmp_path / "link.pth").symlink_to(source)
    for given, target in ((source, source), (source, tmp_path / "link.pth"), (tmp_path / "link.pth", source)):
        with pytest.raises(ConfigError, match="is read, and would be replaced; choose another file"):
            convert(given, target, "official", wanted)
    assert source.read_bytes() == before
    with pytest.raises(ConfigError, match=r"there is no folder .*; create or choose another"):
        convert(source, tmp_path / "no" / "a.pth", "official", wanted)


def test_the_account_replaces_neither_the_source_nor_the_target(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = official(tmp_path, "t2t_vit_7")
    before = source.read_bytes()
    for target, report, message in (
        (tmp_path / "a.ckpt", source, f"--report {source}: is read, and would be replaced"),
        (tmp_path / "a.ckpt", tmp_path / "a.ckpt", "is the file that the weights are written to; choose another"),
        (tmp_path / "a.ckpt", tmp_path / "no" / "a.json", "there is no folder"),
    ):
        assert run("convert", source, target, "--to", "zoo", "--report", report) == 2
        assert message in capsys.readouterr().err
    assert source.read_bytes() == before
    assert not (tmp_path / "a.ckpt").exists()


def test_a_folder_that_is_read_is_not_written_over(tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "twins_svt_small")
    convert(source, tmp_path / "folder", "timm", wanted)
    before = (tmp_path / "folder" / "model.safetensors").read_bytes()
    for given in (tmp_path / "folder", tmp_path / "folder" / "model.safetensors"):
        with pytest.raises(ConfigError, match=r"model\.safetensors: .*would be replaced; choose another file"):
            convert(given, tmp_path / "folder", "timm", wanted)
        with pytest.raises(ConfigError, match="would be replaced; choose another file"):
            save_pretrained(given, tmp_path / "folder")
    assert (tmp_path / "folder" / "model.safetensors").read_bytes() == before


def test_folder_says_which_numerics_timm_does_not_have(tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "twins_svt_small")
    convert(source, tmp_path / "a.ckpt", "mindcv", wanted)
    convert(tmp_path / "a.ckpt", tmp_path / "a.safetensors", "vitrail", wanted)
    with pytest.warns(UserWarning, match=r"compute with gelu tanh, embed_norm_eps 1e-07; vitrail reads that"):
        save_pretrained(tmp_path / "a.safetensors", tmp_path / "hub")
    assert "These weights compute with gelu tanh" in (tmp_path / "hub" / "README.md").read_text()


def without_biases(name: str) -> VisionModel:
    """Return a tiny TNT with zeros where the zoo's has no biases."""
    model = tiny(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") and "norm" not in key and "fc1" not in key:
                parameter.zero_()
    return model


@pytest.mark.parametrize("project", ["mindcv", "zoo"])
def test_files_for_mindspore_are_the_bytes_that_its_programs_write(project: str, tmp_path: Path) -> None:
    values = golden_values(project)
    source = tmp_path / "a.ckpt"
    source.write_bytes(b"".join(encode_ckpt(values)))
    convert(source, tmp_path / "b.ckpt", project, LoadRequest(model="tnt_s_patch16_224", options=MINDSPORE_TINY))
    prefix = {"mindcv": "", "zoo": "model."}[project]  # the zoo's programs load and save the net within another cell
    expected = b"".join(encode_ckpt({prefix + name: tensor for name, tensor in values.items()}))
    assert (tmp_path / "b.ckpt").read_bytes() == expected
    if SHARED.is_dir():
        trained = read_ckpt(SHARED / f"{project}_tnt_tiny.train.ckpt")
        assert list(read_ckpt(tmp_path / "b.ckpt")) == list(trained)[: len(values)]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the names in MindSpore's files lie beside the repository")
def test_names_for_the_zoo_are_those_of_its_training_files(tmp_path: Path) -> None:
    listed = json.loads((SHARED / "twins_svt_small.train-names.json").read_text())
    expected = {name: shape for name, (shape, _) in listed.items() if name.startswith("model.")}
    torch.save({name: torch.zeros(shape) for name, shape in shapes("twins_svt_small").items()}, tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "b.ckpt", "zoo", LoadRequest(options={"image_size": 64}))
    assert {name: list(value.shape) for name, value in read_ckpt(tmp_path / "b.ckpt").items()} == expected


def shapes(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in create_model(name).state_dict().items()}


@pytest.mark.skipif(
    MINDSPORE is None,
    reason="needs MindSpore: pip install mindspore==2.10.0 'numpy<2' in an environment of its own, and give the path "
    "of its python in VITRAIL_MINDSPORE_PYTHON",
)
@pytest.mark.parametrize(
    ("name", "project", "how"),
    [
        *((name, "zoo", "wrapped") for name in ZOO),
        *((name, "mindcv" if name.startswith("twins") else "zoo", "bare") for name in ZOO),
    ],
)
def test_mindspore_loads_every_parameter_from_our_files(name: str, project: str, how: str, tmp_path: Path) -> None:
    model = without_biases(name) if name.startswith("tnt") else tiny(name)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "a.ckpt", project, LoadRequest(model=name, options=tiny_options(name)))
    assert MINDSPORE is not None
    script = Path(__file__).parents[1] / "support" / "mindspore_nets.py"
    done = subprocess.run(
        [MINDSPORE, script, name, tmp_path / "a.ckpt", how], env={**os.environ, "GLOG_v": "3"}, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["count"] > 50
    assert (found["missing"], found["differing"]) == ([], [])
    # MindSpore takes a surplus prefix off, and lists such names as unused all the same
    assert (found["unused"] == []) is not (how == "bare" and project == "zoo")


def zoo_net(tmp_path: Path, classes: int = 7) -> tuple[Path, VisionModel]:
    """Return the weight file of a TNT without the biases that the zoo does not have, as training writes it."""
    name = "tnt_s_patch16_224"
    options = {"biases": "zoo", "gelu": "tanh", "norm_eps": 1e-7, "num_classes": classes}
    model = tiny(name, **options)
    record = Record(model=name, options=model_options(model), classes=(), preprocess=Preprocess(size=(32, 32)))
    save_model(tmp_path / "best.safetensors", model.state_dict(), record)
    return tmp_path / "best.safetensors", model


def test_net_of_the_zoo_goes_back_to_the_zoo(tmp_path: Path) -> None:
    source, model = zoo_net(tmp_path)
    done = convert(source, tmp_path / "a.ckpt", "zoo")
    assert done.difference == 0
    assert not [doubt for doubt in done.doubts if "computes with" in doubt]
    written = read_ckpt(tmp_path / "a.ckpt")
    assert not [name for name in written if name.endswith(("proj.bias", "fc2.bias", "head.bias"))]
    name, sizes = "tnt_s_patch16_224", tiny_options("tnt_s_patch16_224")
    again = open_model(tmp_path / "a.ckpt", LoadRequest(model=name, options={**sizes, "biases": "zoo"}))
    assert again.record.options["biases"] == "zoo"
    assert again.weights.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, again.weights[key]) for key, tensor in model.state_dict().items())
    assert again.account.counts()["zero-filled"] == 1  # outer_tokens
    whole = open_model(
        tmp_path / "a.ckpt", LoadRequest(model="tnt_s_patch16_224", options=tiny_options("tnt_s_patch16_224"))
    )
    assert whole.record.options["biases"] == "all"
    assert whole.account.counts()["zero-filled"] == 12


@pytest.mark.parametrize("project", ["official", "timm", "mindcv"])
def test_net_of_the_zoo_goes_to_other_projects_with_zeros_for_biases(project: str, tmp_path: Path) -> None:
    source, model = zoo_net(tmp_path)
    target = tmp_path / f"a.{ENDINGS[project]}"
    done = convert(source, target, project)
    assert 0 < done.difference < 1e-2
    assert done.read.counts()["zero-filled"] == 11
    images = torch.randn(2, 3, 32, 32)
    numerics = {"gelu": "tanh", "norm_eps": 1e-7, "final_norm_eps": 1e-7}
    sizes = tiny_options("tnt_s_patch16_224")
    wanted = LoadRequest(model="tnt_s_patch16_224", dialect=project, options={**sizes, **numerics})
    assert_close(open_model(target, wanted).build()(images), model(images), atol=1e-6, rtol=0)


def test_biases_are_added_for_other_classes_too_but_not_taken_away(tmp_path: Path) -> None:
    source, model = zoo_net(tmp_path)
    with pytest.warns(UserWarning, match="its head is dropped"):
        whole = load_model(source, biases="all", num_classes=3)
    assert [name for name, _ in whole.head.named_parameters()] == ["weight", "bias"]
    with pytest.warns(UserWarning, match="its head is dropped"):
        assert load_model(source, num_classes=3).head.bias is None
    features = model.forward_head(model.forward_features(images := torch.randn(2, 3, 32, 32)), pre_logits=True)
    assert_close(whole.forward_head(whole.forward_features(images), pre_logits=True), features, atol=1e-6, rtol=0)
    torch.save(tiny("tnt_s_patch16_224").state_dict(), tmp_path / "a.pth")
    wanted = LoadRequest(model="tnt_s_patch16_224", options=tiny_options("tnt_s_patch16_224"))
    convert(tmp_path / "a.pth", tmp_path / "a.safetensors", "vitrail", wanted)
    with pytest.raises(ConfigError, match="was made with biases=all, which its weights cannot change"):
        load_model(tmp_path / "a.safetensors", biases="zoo")


def test_zoo_takes_weights_whose_biases_are_zero(tmp_path: Path) -> None:
    name = "tnt_s_patch16_224"
    model = without_biases(name)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    wanted = LoadRequest(model=name, options=tiny_options(name))
    done = convert(tmp_path / "a.pth", tmp_path / "a.ckpt", "zoo", wanted)
    assert done.difference < 1e-2
    found = open_model(tmp_path / "a.ckpt", wanted)
    assert found.account.counts()["joined"] == 4
    assert all(torch.equal(tensor, found.weights[key]) for key, tensor in model.state_dict().items())


COMPUTES = {
    ("official", "tnt"): ("erf", 1e-5, 1e-5),
    ("timm", "tnt"): ("erf", 1e-5, 1e-5),
    ("mmpretrain", "tnt"): ("erf", 1e-5, 1e-5),
    ("mindcv", "tnt"): ("tanh", 1e-5, 1e-7),
    ("zoo", "tnt"): ("tanh", 1e-7, 1e-7),
    ("official", "t2t"): ("erf", 1e-5, 1e-5),
    ("mmpretrain", "t2t"): ("erf", 1e-5, 1e-5),
    ("zoo", "t2t"): ("tanh", 1e-7, 1e-7),
    ("official", "twins"): ("erf", 1e-6, 1e-6, 1e-5),
    ("timm", "twins"): ("erf", 1e-6, 1e-6, 1e-5),
    ("mmpretrain", "twins_pcpvt"): ("erf", 1e-6, 1e-6, 1e-5),
    ("mmpretrain", "twins_svt"): ("erf", 1e-5, 1e-5, 1e-5),
    ("mindcv", "twins"): ("tanh", 1e-6, 1e-6, 1e-7),
    ("zoo", "twins"): ("tanh", 1e-6, 1e-6, 1e-7),
}
"""GELU and epsilons (of blocks, of the last norm, of Twins' patch embeddings) of each project's own programs."""


def computes(project: str, name: str) -> dict[str, Any]:
    values = next(values for (of, start), values in COMPUTES.items() if of == project and name.startswith(start))
    return dict(zip(("gelu", "norm_eps", "final_norm_eps", "embed_norm_eps"), values, strict=False))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["tnt_s_patch16_224", *[name for name in EXAMPLES if name != "tnt_s_patch16_224"]])
def test_between_all_pairs_of_projects_the_difference_is_what_their_programs_compute(name: str, tmp_path: Path) -> None:
    projects = [project for project, start in COMPUTES if name.startswith(start)]
    if "legacy" in name:
        projects = ["timm", "mmpretrain"]
    elif name.startswith("tnt") or name == "t2t_vit_7":
        projects.remove("mmpretrain")
    model, options = without_biases(name) if name.startswith("tnt") else tiny(name), tiny_options(name)
    first, files = tmp_path / "a.pth", {}
    torch.save(theirs(model.state_dict(), projects[0], name), first)
    for project in projects:
        files[project] = tmp_path / f"{project}.{ENDINGS[project]}"
        convert(first, files[project], project, LoadRequest(dialect=projects[0], model=name, options=options))
    images = torch.rand(2, 3, *model.config.size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    logits = {}
    for project in projects:
        built = create_model(name, **{**find_variant(name)[0].tiny, **computes(project, name)}).eval()
        built.load_state_dict(model.state_dict())
        with torch.inference_mode():
            logits[project] = built(images)
    for source in projects:
        for target in projects:
            wanted = LoadRequest(dialect=source, model=name, options=options)
            done = convert(files[source], tmp_path / f"to.{ENDINGS[target]}", target, wanted)
            assert done.difference == (logits[source] - logits[target]).abs().max().item()
            differ = computes(source, name) != computes(target, name)
            assert (done.difference > 1e-7) is differ
            assert any(f"differ by {done.difference:.1e} at most" in doubt for doubt in done.doubts) is differ
    assert len(projects) > 1


def test_command_warns_where_the_target_computes_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, wanted = official(tmp_path, "t2t_vit_7")
    words = [f"weights.options.{key}={value}" for key, value in wanted.options.items()]
    settings = ["weights.model=t2t_vit_7", *words]
    assert run("convert", source, tmp_path / "a.ckpt", "--to", "zoo", *settings) == 0
    assert "with `disable_approximate_gelu: True` in their YAML its programs compute with erf GELU" in one_line(capsys)
    assert run("convert", tmp_path / "a.ckpt", tmp_path / "b.pth", "--to", "official", *settings) == 0
    told = one_line(capsys)
    assert "official computes with gelu erf instead of tanh, norm_eps 1e-05 instead of 1e-07" in told
    difference = re.search(r"logits differ by (\S+) at most, of a standard deviation", told)
    assert difference
    assert float(difference[1]) > 1e-6


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join("".join(capsys.readouterr()).split())


@pytest.mark.thorough
def test_timm_computes_as_the_weights_expect_where_it_can_be_told(tmp_path: Path) -> None:
    name, images = "tnt_ti_patch16_224", torch.randn(2, 3, 32, 32)
    weights = create_model(name, image_size=32).state_dict()
    torch.save(theirs(weights, "mindcv", name), tmp_path / "a.pth")
    source = LoadRequest(dialect="mindcv", model=name, options={"image_size": 32})
    done = convert(tmp_path / "a.pth", tmp_path / "timm", "timm", source)  # a model that timm has from us alone
    assert done.difference == 0
    assert not [doubt for doubt in done.doubts if "computes with" in doubt]
    assert json.loads((tmp_path / "timm" / "config.json").read_text())["model_args"]["gelu"] == "tanh"
    expected = open_model(tmp_path / "a.pth", source).build()(images)
    for model in (
        timm.create_model(f"local-dir:{tmp_path / 'timm'}", pretrained=True).eval(),
        load_model(tmp_path / "timm"),
    ):
        assert_close(model(images), expected, atol=1e-6, rtol=0)
    done = convert(tmp_path / "a.pth", tmp_path / "b.safetensors", "timm", source)
    written = tmp_path / "b.safetensors"
    told = (
        f"timm.create_model('{name}', pretrained=True, pretrained_cfg_overlay={{'file': '{written}'}}, gelu='tanh', "
        "final_norm_eps=1e-07) computes as these weights expect"
    )
    assert any(told in doubt for doubt in done.doubts)
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay={"file": str(written)}, gelu="tanh", final_norm_eps=1e-07,
        img_size=32,
    ).eval()  # fmt: skip
    assert_close(model(images), expected, atol=1e-6, rtol=0)
    overlay = {"file": str(tmp_path / "a.pth")}
    with pytest.warns(UserWarning, match=r"of mindcv, were trained with gelu='tanh', final_norm_eps=1e-07; give that"):
        timm.create_model(name, img_size=32, pretrained=True, pretrained_cfg_overlay=overlay)


@pytest.mark.parametrize(
    ("said", "message"),
    [([1], "the model_args of its config.json are no mapping"), ({"gelu": "relu"}, "gelu is 'relu'")],
)
def test_numerics_of_a_folder_that_cannot_be_are_refused(said: Any, message: str, tmp_path: Path) -> None:
    torch.save(create_model("tnt_ti_patch16_224", image_size=32).state_dict(), tmp_path / "a.pth")
    convert(tmp_path / "a.pth", tmp_path / "timm", "timm")
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    (tmp_path / "timm" / "config.json").write_text(json.dumps({**config, "model_args": said}))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        open_model(tmp_path / "timm")


def test_doubts_name_what_the_other_project_does_otherwise(tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "tnt_s_patch16_224")
    done = convert(source, tmp_path / "a.ckpt", "mindcv", wanted)
    assert done.doubts[0].startswith("nothing in the file tells its model: ")
    assert done.doubts[1:] == (
        f"mindcv computes with gelu tanh instead of erf, final_norm_eps 1e-07 instead of 1e-05: logits differ by "
        f"{done.difference:.1e} at most",
        "mindcv reads images with mean [0.485, 0.456, 0.406] instead of [0.5, 0.5, 0.5], "
        "std [0.229, 0.224, 0.225] instead of [0.5, 0.5, 0.5], unless told otherwise",
    )


@pytest.mark.parametrize(
    ("name", "to", "target", "untold"),
    [
        ("twins_svt_small", "zoo", "a.ckpt", True),
        ("twins_svt_small", "official", "a.pth", True),
        ("t2t_vit_14", "zoo", "a.ckpt", False),
        ("tnt_s_patch16_224", "timm", "folder", False),
    ],
)
def test_a_size_that_nothing_in_the_file_tells_is_named(
    name: str, to: str, target: str, untold: bool, tmp_path: Path
) -> None:
    source, wanted = official(tmp_path, name)
    size = open_model(source, wanted).record.options["image_size"]
    done = convert(source, tmp_path / target, to, wanted)
    if to == "timm":  # whose config.json tells all
        assert done.settings == ()
        return
    # the model is of no published size
    assert done.settings[0] == f"weights.model={name}"
    assert (done.settings[-1] == f"weights.options.image_size={size}") is untold
    told = f"nothing in the file tells its model: `vitrail` reads it with {' '.join(done.settings)}"
    assert [doubt for doubt in done.doubts if "nothing in the file" in doubt] == [told]
    again = open_model(tmp_path / target, resolve_request([parse_command_line(done.settings)]))
    assert again.record.options["image_size"] == size
    with pytest.raises(CheckpointError, match=r"of no published model|that any dialect here names"):
        open_model(tmp_path / target)


def test_only_the_size_is_named_of_a_published_model(tmp_path: Path) -> None:
    model = create_model("twins_svt_small", image_size=64)
    torch.save(model.state_dict(), tmp_path / "small.pth")
    done = convert(tmp_path / "small.pth", tmp_path / "a.ckpt", "zoo", LoadRequest(options={"image_size": 64}))
    assert done.settings == ("weights.options.image_size=64",)
    assert (
        "nothing in the file tells the size of its images: `vitrail` reads it with weights.options.image_size=64"
        in done.doubts
    )


def test_names_of_classes_that_have_no_place_are_told(tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "twins_svt_small")
    (tmp_path / "names.txt").write_text("".join(f"class {number}\n" for number in range(7)))
    wanted = replace(wanted, names=str(tmp_path / "names.txt"))
    told = "official has no place for the names of the 7 classes; weights.classes=FILE, with a name a line, gives them "
    assert any(told in doubt for doubt in convert(source, tmp_path / "a.pth", "official", wanted).doubts)
    assert not any("no place" in doubt for doubt in convert(source, tmp_path / "hub", "timm", wanted).doubts)


def test_files_have_the_shape_that_the_projects_programs_look_for(tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "twins_svt_small")
    convert(source, tmp_path / "a.pth", "official", wanted)
    assert list(torch.load(tmp_path / "a.pth", weights_only=True)) == ["model"]
    convert(source, tmp_path / "b.pth", "mmpretrain", wanted)
    content = torch.load(tmp_path / "b.pth", weights_only=True)
    assert list(content) == ["state_dict"]
    assert {"backbone.stages.0.0.norm1.weight", "head.fc.weight"} <= content["state_dict"].keys()
    convert(source, tmp_path / "c.safetensors", "mindcv", wanted)
    with safetensors.safe_open(tmp_path / "c.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "ms"}


@pytest.mark.thorough
def test_folder_for_timm_is_loaded_by_timm(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("twins_svt_small", num_classes=3).eval()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    done = convert(tmp_path / "a.pth", tmp_path / "folder", "timm", LoadRequest(options={"image_size": 64}))
    assert sorted(Path(name).name for name in done.written) == ["README.md", "config.json", "model.safetensors"]
    loaded = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    images = torch.randn(1, 3, 64, 64)
    assert_close(loaded(images), model(images), atol=0, rtol=0)
    assert loaded.pretrained_cfg["crop_pct"] == 0.875
    assert_close(load_model(tmp_path / "folder")(images), model(images), atol=1e-5, rtol=0)


def test_saved_folder_brings_everything_back(tiny_checkpoint: Path, tmp_path: Path) -> None:
    save_pretrained(tiny_checkpoint, tmp_path / "hub")
    before, after = load_model(tiny_checkpoint), load_model(tmp_path / "hub")
    assert (after.config, after.classes, after.preprocess) == (before.config, before.classes, before.preprocess)
    assert all(torch.equal(tensor, after.state_dict()[key]) for key, tensor in before.state_dict().items())
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| top-1, % | 73.9 | not measured |" in card
    assert "| | published for the architecture on ImageNet-1k | reproduced with these weights" in card


@pytest.mark.parametrize(
    ("resize", "crop_mode", "said"),
    [
        ("squash", "squash", "An image is resized to 32x32 pixels, whatever its proportions (bicubic), and it is"),
        (
            "letterbox",
            "border",
            "An image is resized to fit into 32x32 pixels as a whole (bicubic), the rest is filled",
        ),
    ],
)
def test_a_folder_tells_timm_how_images_are_fitted(
    resize: str, crop_mode: str, said: str, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    opened = open_model(tiny_checkpoint)
    record = replace(opened.record, preprocess=replace(opened.record.preprocess, resize=resize))
    save_folder(tmp_path / "hub", opened.weights, record)
    config = json.loads((tmp_path / "hub" / "config.json").read_text())["pretrained_cfg"]
    assert (config["crop_mode"], config["crop_pct"]) == (crop_mode, 1.0)
    assert said in (tmp_path / "hub" / "README.md").read_text()
    own = record.preprocess.to_dict()
    assert read_images(config, own, 3).values["resize"] == resize

    data = resolve_data_config(pretrained_cfg=config)
    picture = draw_photo(1)
    theirs = create_transform(**data)(Image.fromarray(picture))
    ours = record.preprocess(torch.from_numpy(picture).permute(2, 0, 1))
    assert_close(ours, theirs, rtol=0, atol=2.1 / 255 / 0.224)


def test_card_keeps_published_and_reproduced_figures_apart(tiny_checkpoint: Path) -> None:
    record = open_model(tiny_checkpoint).record
    card = model_card(replace(record, metrics={"val_top1": 12.34, "val_top5": 56.78}))
    assert "| top-1, % | 73.9 | 12.3 |" in card
    assert "| top-5, % | 91.9 | 56.8 |" in card


def test_hub_that_refuses_leaves_the_files(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"me/mine: cannot be uploaded .*; the files are in .*hub") as caught:
        push_to_hub(tiny_checkpoint, "me/mine", tmp_path / "hub")
    assert "\n" not in str(caught.value)
    assert load_model(tmp_path / "hub").classes


def run(*words: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main([str(word) for word in words])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_command_shows_the_account_and_what_to_type_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, wanted = official(tmp_path, "tnt_s_patch16_224")
    options = [f"weights.options.{key}={value}" for key, value in wanted.options.items()]
    target, report = tmp_path / "a.ckpt", tmp_path / "report.json"
    words = ["convert", source, target, "--to", "mindcv", "weights.model=tnt_s_patch16_224", *options]
    assert run(*words, "--report", report) == 0
    out, err = capsys.readouterr()
    assert "official" in out
    assert "loaded" in out
    assert "logits differ by" in out
    assert f"written and read back, every weight equal: {target}" in out
    assert f"next: vitrail evaluate {target} data.root=FOLDER" in out
    assert "mindcv computes with gelu tanh instead of erf" in err
    content = json.loads(report.read_text())
    assert content["read"]["dialect"] == "official"
    assert {name for entry in content["read"]["entries"] for name in entry["ours"]} == tiny(
        wanted.model or ""
    ).state_dict().keys()
    assert run(*words) == 0
    assert "(replaced)" in capsys.readouterr().out


def test_command_says_in_one_line_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone.pth"
    assert run("convert", gone, tmp_path / "a.ckpt", "--to", "mindcv") == 2
    advice = "give one such as runs/digits/best.safetensors"
    assert capsys.readouterr().err == f"error: {gone}: is missing, not a weight file; {advice}\n"
    assert run("convert", gone, tmp_path / "a.ckpt", "--to", "mindcv", "weights.dialekt=x") == 2
    assert "did you mean 'dialect'?" in capsys.readouterr().err


def test_timm_knows_our_models() -> None:
    assert registered.default_cfgs
    assert timm.is_model("t2t_vit_14")
    assert timm.is_model("tnt_ti_patch16_224")
    model = timm.create_model("t2t_vit_7", num_classes=10, img_size=32, in_chans=1, drop_path_rate=0.1)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    assert (model.num_classes, model.get_classifier()) == (10, model.head)
    assert resolve_data_config(model=model)["crop_pct"] == 0.9
    model.reset_classifier(3)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 3)
    groups = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5).param_groups
    assert len({group["lr_scale"] for group in groups}) == 9, "7 blocks, what is before and what is behind them"
    maps = timm.create_model("vitrail_twins_svt_small", features_only=True)
    assert maps.feature_info.channels() == [64, 128, 256, 512]
    assert [tuple(m.shape[2:]) for m in maps(torch.randn(1, 3, 64, 64))] == [(16, 16), (8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize(
    ("name", "count"), [("vitrail_tnt_s_patch16_224", 12), ("t2t_vit_7", 7), ("vitrail_twins_svt_small", 4)]
)
def test_timm_gets_features_and_maps_of_one_pass(name: str, count: int) -> None:
    size = 64 if "twins" in name else 32
    model = timm.create_model(name, img_size=size).eval()
    blocks = [model.get_submodule(info["module"]) for info in model.feature_info]
    assert len(blocks) == count
    seen: list[int] = []
    for index, block in enumerate(blocks):
        block.register_forward_hook(lambda *args, index=index: seen.append(index))
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        whole, maps = model.forward_intermediates(images, [1])
        assert seen == list(range(count))
        assert torch.equal(whole, model.forward_features(images))
        seen.clear()
        early, stopped = model.forward_intermediates(images, [1], stop_early=True)
        assert torch.equal(stopped[0], maps[0])
        assert seen == [0, 1]
        seen.clear()
        assert torch.equal(model.forward_intermediates(images, [1], intermediates_only=True)[0], maps[0])
        assert seen == [0, 1]
    assert early.shape[-1] == maps[0].shape[1]


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["vitrail_tnt_s_patch16_224", "t2t_vit_7", "vitrail_twins_svt_small"])
def test_maps_come_with_the_class_token_where_timm_asks_for_it(name: str, norm: bool) -> None:
    size = 64 if "twins" in name else 32
    model = timm.create_model(name, img_size=size).eval()
    images = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        tokens, pairs = model.forward_intermediates(images, [0, -1], norm=norm, return_prefix_tokens=True)
        maps = model.forward_intermediates(images, [0, -1], norm=norm, intermediates_only=True)
    if "twins" in name:
        assert all(torch.equal(found, one) for found, one in zip(pairs, maps, strict=True))
        return
    assert [(one.shape, prefix.shape) for one, prefix in pairs] == [(one.shape, (2, 1, one.shape[1])) for one in maps]
    assert all(torch.equal(found, one) for (found, _), one in zip(pairs, maps, strict=True))
    assert torch.equal(pairs[-1][1][:, 0], tokens[:, 0]) is norm


def test_maps_and_class_tokens_are_those_of_timm() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("tnt_s_legacy_patch16_224", img_size=32, depth=2).eval()
    ours = timm.create_model("vitrail_tnt_s_legacy_patch16_224", img_size=32, depth=2).eval()
    ours.load_state_dict(registered._filter("tnt_s_legacy_patch16_224", theirs.state_dict(), ours))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        expected, found = (
            model.forward_intermediates(images, [0, 1], norm=True, return_prefix_tokens=True, intermediates_only=True)
            for model in (theirs, ours)
        )
    for (one, prefix), (their_one, their_prefix) in zip(found, expected, strict=True):
        torch.testing.assert_close(one, their_one, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(prefix, their_prefix, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("out_indices", [None, (0, 2), (-1,)])
@pytest.mark.parametrize("name", ["vitrail_tnt_s_patch16_224", "t2t_vit_7", "vitrail_twins_svt_small"])
def test_features_for_timm_keep_no_unused_parameter(name: str, out_indices: Any) -> None:
    size = 64 if "twins" in name else 32
    given = {} if out_indices is None else {"out_indices": out_indices}
    model = timm.create_model(name, img_size=size, features_only=True, **given)
    maps = model(torch.randn(2, 3, size, size))
    assert len(maps) == len(out_indices or range(4 if "twins" in name else 3))
    assert [m.shape[1] for m in maps] == model.feature_info.channels()
    sum(m.square().sum() for m in maps).backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("name", ["vitrail_tnt_s_patch16_224", "t2t_vit_7", "vitrail_twins_svt_small"])
def test_pruned_model_gives_the_same_maps(name: str, norm: bool) -> None:
    size = 64 if "twins" in name else 32
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=size).eval()
    images = torch.randn(1, 3, size, size)
    with torch.inference_mode():
        expected = model.forward_intermediates(images, [1, 2], norm=norm, intermediates_only=True)
        before = sum(p.numel() for p in model.parameters())
        assert model.prune_intermediate_layers([2, 1], prune_norm=not norm) == [1, 2]
        found = model.forward_intermediates(images, [1, 2], norm=norm, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert sum(p.numel() for p in model.parameters()) < before / 2
    assert model.num_classes == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"global_pool": "avg"}, "global_pool is 'avg'; these models pool as their papers do"),
        ({"attn_drop_rate": 0.1}, "t2t_vit_7 has no attn_drop_rate; leave it at 0"),
        ({"depht": 3}, "t2t_vit_7 has no setting 'depht'"),
    ],
)
def test_what_timm_asks_and_our_models_lack_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timm.create_model("t2t_vit_7", **arguments)


@pytest.mark.parametrize("channels", [1, 4])
def test_timm_adapts_our_files_to_other_channels(channels: int, tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "tnt_ti_patch16_224", depth=1)
    convert(source, tmp_path / "a.safetensors", "vitrail", wanted)
    save_pretrained(tmp_path / "a.safetensors", tmp_path / "hub")
    model = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True, in_chans=channels).eval()
    images = torch.randn(2, channels, 32, 32)
    assert_close(model(images), load_model(tmp_path / "hub", in_channels=channels)(images), atol=1e-6, rtol=0)


def test_timm_builds_our_models_of_any_size(tmp_path: Path) -> None:
    name = "tnt_ti_patch16_224"
    model = tiny(name, biases="zoo", gelu="tanh", norm_eps=1e-7)
    record = Record(model=name, options=model_options(model), classes=(), preprocess=Preprocess(size=(32, 32)))
    save_model(tmp_path / "a.safetensors", model.state_dict(), record)
    save_pretrained(tmp_path / "a.safetensors", tmp_path / "hub")
    images = torch.randn(2, 3, 32, 32)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    assert torch.equal(loaded(images), model(images))
    torch.save(model.state_dict(), tmp_path / "dump.pth")
    found = open_model(tmp_path / "dump.pth", LoadRequest(model=name, options={**tiny_options(name), "biases": "zoo"}))
    assert found.weights.keys() == model.state_dict().keys()


def test_timm_loads_our_folders(tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "t2t_vit_7", image_size=32, embed_dim=256, depth=7, num_classes=5)
    convert(source, tmp_path / "a.safetensors", "vitrail", wanted)
    save_pretrained(tmp_path / "a.safetensors", tmp_path / "hub")
    folder = f"local-dir:{tmp_path / 'hub'}"
    images = torch.randn(2, 3, 32, 32)
    model = timm.create_model(folder, pretrained=True).eval()
    assert_close(model(images), load_model(tmp_path / "hub")(images), atol=1e-5, rtol=0)
    larger = timm.create_model(folder, pretrained=True, img_size=64, num_classes=3).eval()
    assert larger(torch.randn(2, 3, 64, 64)).shape == (2, 3)
