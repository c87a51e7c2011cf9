"""A model of timm goes the way of our own: trained, evaluated, predicted with, embedded and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

import vitrail
from support.runs import Notebook

RECIPES: dict[str, dict[str, Any]] = {
    "timm:test_resnet": {},
    "timm:vit_tiny_patch16_224": {"depth": 2, "embed_dim": 48, "patch_size": 8},
}


def train(images: Path, name: str) -> Path:
    recipe = images.parent / "recipe.yaml"
    recipe.write_text("data: {workers: 0, check: false}\nschedule: {warmup_epochs: 1}\n")
    settings = {
        "model": {"name": name, "image_size": 32, "options": RECIPES[name], "drop_path_rate": 0.1},
        "data": {"root": str(images)},
        "train": {"epochs": 2, "batch_size": 8, "device": "cpu"},
        "optim": {"layer_decay": 0.8},
        "output": {"root": str(images.parent / "runs"), "name": "run"},
    }
    return vitrail.train(recipe, settings, progress=False).folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_of_timm_is_trained_and_used_like_ours(name: str, image_folder: Path) -> None:
    folder = train(image_folder, name)
    best = folder / "best.safetensors"
    measured = vitrail.evaluate(best, {"data.root": str(image_folder), "data.workers": 0}, progress=False)
    assert measured.images == 12
    predictions = vitrail.predict(best, image_folder / "val", progress=False)
    assert len(predictions.records()) == 12

    features = image_folder.parent / "features.npy"
    vitrail.embed(best, image_folder / "val", output=features, pool="mean", progress=False)
    model = vitrail.load_model(best)
    assert np.load(features).shape == (12, model.feature_levels[-1].num_channels)

    arguments = dict(RECIPES[name])
    if "vit" in name:
        arguments["img_size"] = 32
    theirs = timm.create_model(name.removeprefix("timm:"), num_classes=3, **arguments).eval()
    theirs.load_state_dict(load_file(best))
    batch = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(theirs(batch), model(batch))


@pytest.mark.parametrize("given", [{}, {"channels": [16, 16, 24, 32]}])
def test_a_file_made_with_lists_of_settings_is_trained_on(given: dict[str, Any], image_folder: Path) -> None:
    recipe = image_folder.parent / "lists.yaml"
    recipe.write_text(
        f"model: {{name: timm:test_resnet, image_size: 32}}\ndata: {{root: {image_folder}, workers: 0, check: false}}\n"
        f"schedule: {{warmup_epochs: 0}}\ntrain: {{epochs: 1, batch_size: 8, device: cpu}}\n"
        f"output: {{root: {image_folder.parent / 'runs'}}}\n"
    )
    whole = {"model.options": {"channels": [16, 16, 24, 32]}, "output.name": "begun"}
    begun = vitrail.train(recipe, whole, progress=False)
    more = {"model.options": given, "model.weights": str(begun.folder / "best.safetensors"), "output.name": "more"}
    display = Notebook()
    after = vitrail.train(recipe, more, display=display)
    assert vitrail.load_model(after.folder / "best.safetensors").config.arguments == whole["model.options"]
    decided = [note for note in display.notes if "decides" in note]
    if given:
        assert not decided
    else:
        assert decided[0].endswith("decides model.options.channels=[16, 16, 24, 32]")


@pytest.mark.thorough
@pytest.mark.parametrize("format", ["onnx", "torchscript", "openvino", "pt2"])
@pytest.mark.parametrize("name", RECIPES)
def test_a_model_of_timm_is_exported_and_evaluated(name: str, format: Any, image_folder: Path) -> None:
    best = train(image_folder, name) / "best.safetensors"
    (done,) = vitrail.export(best, format=format, progress=False).items
    assert done.is_good
    settings = {"data.root": str(image_folder), "data.workers": 0}
    expected = vitrail.evaluate(best, settings, progress=False)
    measured = vitrail.evaluate(done.path, settings, progress=False)
    assert measured.numbers["loss"] == pytest.approx(expected.numbers["loss"], rel=1e-3)
