"""Files that were downloaded elsewhere are recognised by what is in them, and copied whole or not at all."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as encode

import vitrail
from support.weight_files import save, theirs
from vitrail.errors import CheckpointError, ConfigError
from vitrail.models.registry import create_model
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.published import add
from vitrail.weights.published.catalogue import ROWS

T2T_7 = "71.7_T2T_ViT_7.pth.tar"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture
def downloads(tmp_path: Path) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir()
    return folder


def write(path: Path, model: str, project: str = "official", **options: int) -> Path:
    """Write weights of a published size, zeros all of them, as a project has them."""
    with torch.device("meta"):
        built = create_model(model, **options)
    weights = {name: torch.zeros(one.shape, dtype=one.dtype) for name, one in built.state_dict().items()}
    return save(path, theirs(weights, project, model))


def refusal(file: Path, name: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        vitrail.add_weights(file, name=name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_renamed_file_is_known_by_its_weights(cache: Path, downloads: Path) -> None:
    file = write(downloads / "model (3).bin.download", "t2t_vit_7")
    (added,) = vitrail.add_weights(file)
    assert (added.name, added.path) == ("t2t_vit_7:official", cache / T2T_7)
    assert (cache / T2T_7).read_bytes() == file.read_bytes()
    opened = open_model("t2t_vit_7")
    assert opened.account.origin["source"] == str(file)
    assert opened.account.origin["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert "here" in str(vitrail.list_weights("t2t_vit_7"))


@pytest.mark.parametrize(
    ("model", "project", "options", "name"),
    [
        ("t2t_vit_14", "official", {"num_classes": 10}, "t2t_vit_14_cifar10:official"),
        ("t2t_vit_14", "official", {"image_size": 384}, "t2t_vit_14_384:official"),
        ("tnt_s_patch16_224", "official", {}, "tnt_s_patch16_224:official"),
        ("twins_svt_small", "official", {}, "twins_svt_small:official"),
    ],
)
def test_weights_are_told_apart_by_classes_size_and_project(
    cache: Path, downloads: Path, model: str, project: str, options: dict[str, int], name: str
) -> None:
    (added,) = vitrail.add_weights(write(downloads / "x.pth", model, project, **options))
    assert added.name == name
    assert load_model(name).config.num_classes == options.get("num_classes", 1000)


def test_safetensors_are_those_of_the_hub(cache: Path, downloads: Path) -> None:
    weights = theirs(create_model("twins_svt_small").state_dict(), "timm", "twins_svt_small")
    (downloads / "model.safetensors").write_bytes(encode({name: one.contiguous() for name, one in weights.items()}))
    (added,) = vitrail.add_weights(downloads / "model.safetensors")
    assert (added.name, added.path) == ("twins_svt_small:timm", cache / "twins_svt_small.in1k.safetensors")
    assert open_model("twins_svt_small").account.origin["address"] == "hf-hub:timm/twins_svt_small.in1k"


def test_file_of_a_known_hash_is_known_by_it(cache: Path, downloads: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(downloads / "x.pth", "t2t_vit_7")
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    row = next(row for row in ROWS if row.base == "t2t_vit_7")
    hashed = replace(row, origin="else", address=f"https://example.org/t2t-{digits}.pth")
    monkeypatch.setattr(add, "ROWS", (*ROWS, hashed))
    (added,) = added_all = vitrail.add_weights(file)
    assert (added.name, added.path) == ("t2t_vit_7:else", cache / f"t2t-{digits}.pth")
    assert f"known by its SHA-256, which begins with {digits}" in str(added_all)


@pytest.mark.thorough
def test_two_that_fit_alike_are_told_apart_by_the_name_of_the_file_or_by_a_given_one(
    cache: Path, downloads: Path
) -> None:
    file = write(downloads / "84.2_T2T_ViT_24 (1).pth.tar", "t2t_vit_24")
    (added,) = added_all = vitrail.add_weights(file)
    assert (added.name, added.path) == ("t2t_vit_24_token_labeling:official", cache / "84.2_T2T_ViT_24.pth.tar")
    assert "known by its name, among t2t_vit_24:official, t2t_vit_24_token_labeling" in str(added_all)
    file = file.rename(downloads / "x.pth")
    assert refusal(file) == (
        f"{file}: fits t2t_vit_24:official, t2t_vit_24_token_labeling:official alike; say which it is, such as vitrail "
        f"weights add {file} --name t2t_vit_24:official"
    )
    (added,) = vitrail.add_weights(file, name="t2t_vit_24")
    assert added.path == cache / "82.3_T2T_ViT_24.pth.tar"


def test_what_is_not_published_is_refused(cache: Path, downloads: Path, tiny_checkpoint: Path) -> None:
    file = write(downloads / "own.pth", "t2t_vit_7", num_classes=5)
    assert f"{file}: holds no published weights, or they were changed (SHA-256 " in refusal(file)
    assert refusal(file, "t2t_vit_7") == (
        f"{file}: is not t2t_vit_7:official by its kind and by the names and shapes of its weights; it fits nothing "
        "that is published"
    )
    assert "is not t2t_vit_t_14:mmpretrain, as its SHA-256 begins with " in refusal(file, "t2t_vit_t_14:mmpretrain")
    assert f"name={file.stem}: no published weights are called so; `vitrail weights`" in refusal(file, "own")
    assert "was written by vitrail, and is used by its path" in refusal(tiny_checkpoint)
    assert "is missing; give a file" in refusal(downloads / "gone.pth")
    (downloads / "page.pth").write_text("<html>")
    assert "is a web page" in refusal(downloads / "page.pth")
    assert not cache.exists()


def test_one_name_is_of_one_file(downloads: Path) -> None:
    with pytest.raises(ConfigError, match="name=t2t_vit_7: is of one file, and 2 are given; add them one by one"):
        vitrail.add_weights([downloads / "a", downloads / "b"], name="t2t_vit_7")
    with pytest.raises(ConfigError, match="add needs a file"):
        vitrail.add_weights([])


def test_file_in_its_place_is_recorded_and_an_older_one_replaced(cache: Path, downloads: Path) -> None:
    cache.mkdir(parents=True)
    write(cache / T2T_7, "t2t_vit_7")
    vitrail.add_weights(cache / T2T_7)
    assert open_model("t2t_vit_7").account.origin["source"] == str(cache / T2T_7)
    model = create_model("t2t_vit_7")
    save(downloads / "newer.pth", {"state_dict": model.state_dict()})
    vitrail.add_weights(downloads / "newer.pth")
    assert torch.equal(load_model("t2t_vit_7").head.weight, model.head.weight)


def test_full_disk_leaves_nothing(
    cache: Path, downloads: Path, largest_file: Callable[[int], AbstractContextManager[None]]
) -> None:
    file = write(downloads / "x.pth", "t2t_vit_7")
    with largest_file(1_000_000):
        assert f"{cache / T2T_7}: cannot be written (File too large); free space, or point TORCH_HOME" in refusal(file)
    assert sorted(path.name for path in cache.iterdir()) == [".vitrail"]


def test_file_that_is_not_there_is_one_line(cache: Path, tmp_path: Path) -> None:
    assert (
        refusal(tmp_path / "no.pth") == f"{tmp_path / 'no.pth'}: is missing; give a file that was downloaded elsewhere"
    )
