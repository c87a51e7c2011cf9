"""Weight files of timm's models: ours, those of training programs, folders for the hub, and published ones by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save
from torch.testing import assert_close

import vitrail
from support.weights_server import COMMIT, Server, of_hub, serving
from vitrail.errors import CheckpointError, ConfigError
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model
from vitrail.training.initial_model import published_preprocess
from vitrail.weights.checkpoint import Record, model_options, save_model
from vitrail.weights.convert import convert
from vitrail.weights.hub import save_pretrained
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.published import resolve
from vitrail.weights.request import LoadRequest

CLASSES = ("ant", "bee", "cat")
TINY: dict[str, dict[str, Any]] = {
    "timm:vit_tiny_patch16_224": {"image_size": 64, "depth": 2, "embed_dim": 48},
    "timm:deit_tiny_distilled_patch16_224": {"image_size": 64, "depth": 1, "embed_dim": 48},
    "timm:swin_tiny_patch4_window7_224": {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "timm:test_resnet": {},
}
every_model = pytest.mark.parametrize("name", TINY)


def build(name: str) -> VisionModel:
    torch.manual_seed(0)
    return create_model(name, num_classes=3, **TINY[name]).eval()


def record_of(name: str, model: VisionModel) -> Record:
    size, channels = model.config.size, model.config.in_channels
    preprocess = published_preprocess(name, size, channels)
    return Record(model=name, options=model_options(model), classes=CLASSES, preprocess=preprocess)


def write(path: Path, name: str, built: VisionModel, **changes: Any) -> Path:
    save_model(path, built.state_dict(), replace(record_of(name, built), **changes))
    return path


def answer(model: Any) -> torch.Tensor:
    images = torch.randn(2, 3, *model.config.size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return model(images)


@every_model
def test_our_file_computes_what_the_model_did_and_has_timms_names(name: str, tmp_path: Path) -> None:
    model = build(name)
    path = write(tmp_path / "w.safetensors", name, model)
    assert torch.equal(answer(load_model(path)), answer(model))
    arguments = {key: value for key, value in TINY[name].items() if key != "image_size"}
    if "image_size" in TINY[name]:
        arguments["img_size"] = TINY[name]["image_size"]
    theirs = timm.create_model(name.removeprefix("timm:"), num_classes=3, **arguments)
    theirs.load_state_dict(load_file(path))


@every_model
def test_weights_are_adapted_to_classes_by_name_channels_and_sizes(name: str, tmp_path: Path) -> None:
    model = build(name)
    path = write(tmp_path / "w.safetensors", name, model)
    others = answer(load_model(path, classes=["bee", "dog", "ant"]))
    assert_close(others[:, [0, 2]], answer(model)[:, [1, 0]])
    gray = load_model(path, in_channels=1)
    assert gray(torch.zeros(1, 1, *gray.config.size)).shape == (1, 3)
    larger = load_model(path, image_size=96)
    assert answer(larger).shape == (2, 3)
    assert load_model(path, num_classes=0).eval()(torch.zeros(1, 3, *model.config.size)).shape[1] == model.num_features


@every_model
def test_a_file_of_a_training_program_is_read_where_its_model_is_named(name: str, tmp_path: Path) -> None:
    model = build(name)
    weights = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "theirs.pth")
    opened = open_model(tmp_path / "theirs.pth", LoadRequest(model=name, options=TINY[name]))
    assert opened.account.dialect == "timm"
    assert opened.record.preprocess == record_of(name, model).preprocess
    assert torch.equal(answer(opened.build()), answer(model))


def test_norms_that_the_published_model_lacks_have_their_counters(tmp_path: Path) -> None:
    name, counter = "timm:resnet18", "layer1.0.downsample.1.num_batches_tracked"
    model = create_model(name, num_classes=3, image_size=32, layers=[1, 1, 1, 1], channels=[8, 16, 16, 32])
    assert counter in model.state_dict()
    assert counter not in create_model(name).state_dict()
    path = write(tmp_path / "w.safetensors", name, model)
    converted = convert(path, tmp_path / "theirs.pth", "timm")
    assert converted.difference == 0.0
    assert counter in torch.load(tmp_path / "theirs.pth")


@pytest.mark.parametrize("name", ["timm:vit_tiny_patch16_224", "timm:test_resnet"])
def test_a_folder_for_the_hub_is_read_by_timm(name: str, tmp_path: Path) -> None:
    model = build(name)
    save_pretrained(write(tmp_path / "w.safetensors", name, model), tmp_path / "hub")
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    theirs.config = model.config
    assert torch.equal(answer(theirs), answer(model))
    config = json.loads((tmp_path / "hub" / "config.json").read_text())
    assert config["architecture"] == name.removeprefix("timm:")
    assert torch.equal(answer(load_model(tmp_path / "hub")), answer(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "timm:test_resnett"}, "unknown model 'timm:test_resnett'"),
        ({"model": "timm:test_vit"}, "describes a timm:test_vit, and its tensors are not those of a timm:test_vit"),
        ({"options": {"arguments": {"checkpoint_path": "/etc/passwd"}}}, "checkpoint_path cannot be given"),
        ({"options": {"arguments": {"pretrained": True}}}, "pretrained cannot be given to a model of timm"),
        ({"options": {"num_classes": 7}}, "it says num_classes 7, and its tensors are of num_classes 3"),
    ],
)
def test_a_description_that_was_changed_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    name = "timm:test_resnet"
    model = build(name)
    changed = dict(changes)
    if "options" in changed:
        changed["options"] = {**model_options(model), **changed["options"]}
    with pytest.raises(CheckpointError) as caught:
        load_model(write(tmp_path / "w.safetensors", name, model, **changed))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Return a server that stands for the Hub, with timm's weights of one model."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name in resolve.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    weights = save(timm.create_model("test_resnet").state_dict())
    config = json.dumps({"architecture": "test_resnet", "num_classes": 1000}).encode()
    with serving(of_hub("timm/test_resnet.r160_in1k", model_safetensors=weights, config_json=config)) as server:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            server.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield server


def test_timms_own_weights_are_fetched_once_by_the_name_of_the_model(
    hub: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet").eval()
    model = vitrail.load_model("timm:test_resnet")
    theirs.config = model.config
    assert torch.equal(answer(model), answer(theirs))
    assert len(model.classes) == 1000
    opened = open_model("pretrained", LoadRequest(model="timm:test_resnet"))
    assert opened.account.origin["address"] == "hf-hub:timm/test_resnet.r160_in1k"
    assert opened.account.origin["revision"] == COMMIT
    created = vitrail.create_model("timm:test_resnet", pretrained=True)
    assert created.training
    assert created.preprocess == model.preprocess
    asked = len(hub.requests)
    vitrail.load_model("pretrained:timm:test_resnet.r160_in1k")
    assert len(hub.requests) == asked

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"^timm:test_vit: test_vit.r160_in1k.safetensors is not here, and HF_"):
        vitrail.load_model("timm:test_vit")


def test_weights_that_timm_does_not_publish_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^pretrained: timm has no weights of timm:vit_base_patch32_plus_256"):
        open_model("pretrained", LoadRequest(model="timm:vit_base_patch32_plus_256"))
    with pytest.raises((CheckpointError, ConfigError), match="unknown model 'timm:test_resnett'"):
        open_model("timm:test_resnett")
