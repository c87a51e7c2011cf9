"""What works with a family that was added by its file and its name in FAMILIES: run in a process of its own."""
# ruff: noqa: E402  the family is added before anything looks at FAMILIES

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path

import torch
from deit import FAMILY

import vitrail.models.registry

vitrail.models.registry.register_family(FAMILY)

import pytest
import timm

import vitrail.timm
from vitrail.deploy.compare import gather_sample
from vitrail.deploy.export import export, find_outputs
from vitrail.deploy.int8 import find_quantizable
from vitrail.errors import CheckpointError
from vitrail.models.catalogue import catalogue
from vitrail.models.registry import create_model, list_models
from vitrail.weights.adapt import adapt
from vitrail.weights.convert import convert
from vitrail.weights.hub import save_pretrained
from vitrail.weights.loading import load_model, open_model
from vitrail.weights.request import LoadRequest

NAME = "deit_tiny_patch16_224"


def main(folder: Path) -> None:
    torch.manual_seed(0)
    assert vitrail.timm.default_cfgs
    assert list_models("deit*") == list(FAMILY.variants)
    assert any(NAME in row for row in catalogue())
    model = create_model(NAME).eval()
    images = torch.randn(1, 3, 224, 224)

    # files: the official code's, found by shapes alone, ours, timm's folder
    torch.save({"model": model.state_dict()}, folder / "theirs.pth")
    found = open_model(folder / "theirs.pth")
    assert (found.account.dialect, found.record.model) == ("official", NAME)
    assert found.record.options["norm_eps"] == 1e-6
    assert convert(folder / "theirs.pth", folder / "official.pth", "official").difference == 0
    assert convert(folder / "official.pth", folder / "ours.safetensors", "vitrail").difference == 0
    for project, advice in (("timm", "convert it to official"), ("zoo", "known for it are official")):
        with pytest.raises(CheckpointError, match=f"to={project}: {project} has no deit; {advice}"):
            convert(folder / "ours.safetensors", folder / "t", project)
    with torch.inference_mode():
        assert torch.equal(load_model(folder / "ours.safetensors")(images), model(images))
        with pytest.warns(UserWarning, match="its head is dropped"):
            smaller = load_model(folder / "ours.safetensors", num_classes=3)
        assert smaller(images).shape == (1, 3)

        # timm has a model of that name itself, which the official names fit
        timms = timm.create_model(NAME).eval()
        timms.load_state_dict(torch.load(folder / "official.pth", weights_only=True))
        assert torch.allclose(timms(images), model(images), atol=1e-5)
        ours = timm.create_model(
            f"vitrail_{NAME}", pretrained=True, pretrained_cfg_overlay={"file": str(folder / "official.pth")}
        ).eval()
        assert torch.allclose(ours(images), model(images), atol=1e-5)
        save_pretrained(folder / "ours.safetensors", folder / "hub")
        assert torch.allclose(
            timm.create_model(f"local-dir:{folder / 'hub'}", pretrained=True).eval()(images), model(images), atol=1e-5
        )
        maps = timm.create_model(f"vitrail_{NAME}", features_only=True)(images)
        assert [tuple(m.shape[1:]) for m in maps] == [(192, 14, 14)] * 3

    # the other families are as they were
    assert timm.create_model("t2t_vit_7", img_size=32)(torch.randn(1, 3, 32, 32)).shape == (1, 1000)
    weights = create_model("t2t_vit_7", image_size=32).state_dict()
    torch.save(weights, folder / "t2t.pth")
    assert open_model(folder / "t2t.pth").record.model == "t2t_vit_7"

    # what it does not say it can is refused
    with pytest.raises(CheckpointError, match="deit is not adapted to other numbers"):
        load_model(folder / "ours.safetensors", in_channels=1)
    assert adapt(
        model.state_dict(), model.config, model.config, "file", family=FAMILY, old_classes=(), new_classes=()
    )[1] == []  # fmt: skip

    # production
    tiny = create_model(NAME, **FAMILY.tiny)
    torch.save(tiny.state_dict(), folder / "tiny.pth")
    options = {key: value for key, value in FAMILY.tiny.items() if key != "num_classes"}
    opened = open_model(folder / "tiny.pth", LoadRequest(model=NAME, options=options))
    outputs = find_outputs(["mindir"], folder / "tiny.pth", None)
    (done,) = export(opened, outputs, gather_sample(opened.record, None))
    assert done.path.stat().st_size > 1000
    assert len(find_quantizable(tiny)) == 1 + 2 * 4 + 1
    sys.stdout.write(json.dumps({"exported": done.path.name}) + "\n")


if __name__ == "__main__":
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as place:
        main(Path(place))
