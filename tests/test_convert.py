"""Conversion between dialects: bit-exact both ways, compared by a forward pass, or refused with the reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.data.config import resolve_data_config
from timm.optim._optim_factory import create_optimizer_v2
from torch.testing import assert_close

from test_loading import EXAMPLES, tiny, tiny_options
from vitrail import timm as registered
from vitrail.cli import main
from vitrail.convert import convert
from vitrail.errors import CheckpointError, ConfigError
from vitrail.hub import model_card, push_to_hub, save_pretrained
from vitrail.loading import Wanted, load_model, open_model

ENDINGS = {"official": "pth", "timm": "safetensors", "mmpretrain": "pth", "mindcv": "ckpt", "zoo": "ckpt"}


def official(tmp_path: Path, name: str, **overrides: Any) -> tuple[Path, Wanted]:
    """Return a file of a tiny model, and how it is to be read."""
    path = tmp_path / "from.pth"
    project = EXAMPLES[name][0]
    weights = tiny(name, **overrides).state_dict()
    torch.save(weights, path)
    if project != "official":  # which has no such model, so it comes from another
        from test_loading import theirs

        torch.save(theirs(weights, project, name), path)
    return path, Wanted(model=name, options={**tiny_options(name), "image_size": 32, **overrides})


PAIRS = [(name, project, ENDINGS[project]) for name, projects in EXAMPLES.items() for project in projects]


@pytest.mark.parametrize(("name", "project", "ending"), [*PAIRS, ("twins_svt_small", "zoo", "safetensors")])
def test_round_trip_is_bit_exact(name: str, project: str, ending: str, tmp_path: Path) -> None:
    source, wanted = official(tmp_path, name)
    target = tmp_path / f"to.{ending}"
    done = convert(source, target, project, wanted)
    assert done.written == (str(target),)
    back = convert(target, tmp_path / "back.safetensors", "vitrail", Wanted(dialect=project, **own(wanted)))
    before, after = open_model(source, wanted), open_model(tmp_path / "back.safetensors")
    assert before.weights.keys() == after.weights.keys()
    assert all(torch.equal(tensor, after.weights[key]) for key, tensor in before.weights.items())
    assert done.scale > 0.01
    assert done.difference < 0.01 * done.scale
    assert (done.difference == 0) is not any("computes with" in doubt for doubt in done.doubts)
    assert back.difference == 0


def own(wanted: Wanted) -> dict[str, Any]:
    return {"model": wanted.model, "options": wanted.options}


@pytest.mark.parametrize(
    ("name", "to", "file", "reason"),
    [
        ("t2t_vit_7", "timm", "a.pth", "timm has no T2T-ViT; convert it to official"),
        ("t2t_vit_7", "mindcv", "a.ckpt", "MindCV has no T2T-ViT"),
        ("t2t_vit_7", "mmpretrain", "a.pth", "its t2t_vit has tokens_type=transformer, and t2t_vit_7 has not"),
        (
            "tnt_s_patch16_224",
            "mmpretrain",
            "a.pth",
            "its tnt has fold=word and stem=image, and tnt_s_patch16_224 has not",
        ),
        ("tnt_s_legacy_patch16_224", "mindcv", "a.ckpt", "its tnt has fold=sentence and stem=patch"),
        ("tnt_s_patch16_224", "zoo", "a.ckpt", r"zoo has no place for 11 of its weights \(patch_embed\.proj\.bias, "),
        ("twins_svt_small", "mindspore", "a.ckpt", "--to mindspore: is no project that is known here"),
        ("twins_svt_small", "mindcv", "a.pth", r"--to mindcv writes files that end in \.ckpt, \.safetensors"),
        ("twins_svt_small", "official", "a.ckpt", r"--to official writes files that end in \.pth"),
        ("twins_svt_small", "vitrail", "a.pth", r"--to vitrail writes files that end in \.safetensors"),
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


def test_zoo_takes_weights_whose_biases_are_zero(tmp_path: Path) -> None:
    name = "tnt_s_patch16_224"
    model = tiny(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith("bias") and "norm" not in key and "fc1" not in key:
                parameter.zero_()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    wanted = Wanted(model=name, options=tiny_options(name))
    done = convert(tmp_path / "a.pth", tmp_path / "a.ckpt", "zoo", wanted)
    assert done.difference < 1e-2
    found = open_model(tmp_path / "a.ckpt", wanted)
    assert found.account.counts()["joined"] == 4
    assert all(torch.equal(tensor, found.weights[key]) for key, tensor in model.state_dict().items())


def test_doubts_name_what_the_other_project_does_otherwise(tmp_path: Path) -> None:
    source, wanted = official(tmp_path, "tnt_s_patch16_224")
    done = convert(source, tmp_path / "a.ckpt", "mindcv", wanted)
    assert done.doubts == (
        "mindcv computes with gelu tanh instead of erf, final_norm_eps 1e-07 instead of None",
        "mindcv reads images with mean [0.485, 0.456, 0.406] instead of [0.5, 0.5, 0.5], "
        "std [0.229, 0.224, 0.225] instead of [0.5, 0.5, 0.5], unless told otherwise",
    )


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
    done = convert(tmp_path / "a.pth", tmp_path / "folder", "timm", Wanted(options={"image_size": 64}))
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


def test_card_keeps_published_and_reproduced_figures_apart(tiny_checkpoint: Path) -> None:
    from dataclasses import replace

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
    ("arguments", "message"),
    [
        ({"global_pool": "avg"}, "global_pool is 'avg'; these models pool as their papers do"),
        ({"drop_rate": 0.1}, "t2t_vit_7 has no drop_rate; leave it at 0"),
        ({"depht": 3}, "t2t_vit_7 has no setting 'depht'"),
    ],
)
def test_what_timm_asks_and_our_models_lack_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        timm.create_model("t2t_vit_7", **arguments)


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
