"""From a name of published weights to models that are evaluated, trained, exported and converted from them."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import vitrail
from support.commands import refused, run
from support.weights_server import Served, Server, serving
from vitrail.imagenet import list_wordnet_ids
from vitrail.models.registry import create_model

NAME = "71.7_T2T_ViT_7.pth.tar"
TRAIN = (
    "model.name=t2t_vit_7", "model.image_size=32", "train.epochs=1", "train.batch_size=12", "train.device=cpu",
    "train.precision=float32", "data.workers=0", "data.name=null", "ema.decay=null", "data.check=false",
    "schedule.warmup_epochs=0", "schedule.cooldown_epochs=0", "train.accumulate=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a file of the shapes of the published T2T-ViT-7."""
    path = tmp_path_factory.mktemp("t2t") / "w"
    torch.manual_seed(0)
    torch.save({"state_dict_ema": create_model("t2t_vit_7").state_dict()}, path)
    return path.read_bytes()


@pytest.fixture
def server(content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Stand in a folder of one's own, with an empty cache, and a server that has T2T-ViT-7."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    with serving({f"/{NAME}": Served(content)}) as told:
        monkeypatch.setenv("VITRAIL_WEIGHTS_MIRROR", told.url)
        yield told


def provenance(path: str | Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:  # pyright: ignore[reportPrivateImportUsage]
        return json.loads(file.metadata()["vitrail"])["provenance"]["pretrained"]


@pytest.mark.thorough
def test_weights_are_listed_fetched_and_used_by_every_command(
    server: Server, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, without_shape_checks: None
) -> None:
    # listed, fetched
    assert run("weights", "t2t_vit_7") == 0
    assert " here " not in capsys.readouterr().out.splitlines()[4]
    assert run("weights", "fetch", "t2t_vit_7") == 0
    printed = capsys.readouterr()
    cached = tmp_path / "torch" / "hub" / "checkpoints" / NAME
    assert printed.out == f"t2t_vit_7:official: {cached} ({cached.stat().st_size / 1e6:,.1f} MB)\n"
    assert run("weights", "t2t_vit_7") == 0
    assert "71.70" in (shown := capsys.readouterr().out)
    assert " here " in shown

    # used
    images = sorted(image_folder.glob("val/*/*.jpg"))
    assert run("predict", "t2t_vit_7", *images) == 0
    assert "t2t_vit_7: " not in capsys.readouterr().out
    for place, folder in enumerate(sorted((image_folder / "val").iterdir())):
        folder.rename(folder.with_name(list_wordnet_ids()[place]))
    settings = (
        f"data.root={image_folder / 'val'}",
        "evaluate.split=all",
        "data.match_classes=by-name",
        "data.workers=0",
    )
    assert run("evaluate", "pretrained:t2t_vit_7", *settings) == 0
    assert Path("evaluations/pretrained-t2t_vit_7/report.html").exists()
    assert run("convert", "t2t_vit_7", "own.safetensors", "--to", "vitrail") == 0
    assert run("verify", "t2t_vit_7", "own.safetensors") == 0
    assert run("bench", "t2t_vit_7:official", "--rounds", 1, "--batch-size", 1) == 0
    address = f"https://github.com/yitu-opensource/T2T-ViT/releases/download/main/{NAME}"
    assert provenance("own.safetensors")["address"] == address
    assert server.asked(f"/{NAME}") == [""]


@pytest.mark.thorough
def test_model_is_exported_into_this_folder_and_not_into_the_cache(
    server: Server, tmp_path: Path, without_shape_checks: None
) -> None:
    done = vitrail.export("t2t_vit_7:official", format="torchscript", progress=False)
    assert [one.path for one in done] == [Path("t2t_vit_7-official.torchscript")]
    cache = tmp_path / "torch" / "hub" / "checkpoints"
    assert sorted(path.name for path in cache.iterdir()) == [".vitrail", NAME]


def test_run_begins_with_published_weights_and_its_file_says_so(
    server: Server, image_folder: Path, capsys: pytest.CaptureFixture, without_shape_checks: None
) -> None:
    settings = (*TRAIN, f"data.root={image_folder}", "model.weights=pretrained", "output.name=birds")
    assert run("train", "t2t_vit_7_imagenet", *settings) == 0
    said = capsys.readouterr().err
    assert "official t2t_vit_7" in said
    best = provenance("runs/birds/best.safetensors")
    assert best["name"] == "t2t_vit_7:official"
    assert len(best["sha256"]) == 64
    (server.files).clear()  # going on asks for nothing
    assert run("train", "--extend", "runs/birds", "train.epochs=2") == 0
    assert provenance("runs/birds/best.safetensors") == best


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("weights", "resnet*"), "no published weights match 'resnet*'; `vitrail weights` lists all"),
        (("weights", "fetch"), "fetch needs names, such as twins_svt_small; `vitrail weights` lists them"),
        (("weights", "fetch", "own.pth"), "own.pth: is no name of published weights; `vitrail weights` lists them"),
        (("weights", "fetch", "t2t_vit_10"), "cannot be fetched from http://127.0.0.1"),
        (("evaluate", "pretrained"), "pretrained: of which model? Write pretrained:NAME, such as pretrained:tnt_s_pat"),
        (("train", "digits", "model.weights=pretrained"), "no weights of tnt_ti_patch16_224 are published; of TNT the"),
        (("train", "digits", "model.weights=pretrained:t2t_vit_7"), "is a t2t_vit_7, not a tnt_ti_patch16_224"),
        (("verify", "t2t_vit_10"), "the first is t2t_vit_10: t2t_vit_10:official: 75.2_T2T_ViT_10.pth.tar is not here"),
    ],
)
def test_what_cannot_be_had_is_one_line(
    server: Server, words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture
) -> None:
    assert message in refused(capsys, *words)
