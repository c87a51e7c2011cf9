"""The head that a fine-tuning begins with: the better of a linear probe and the weights' own."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from vitrail.images.preprocess import Preprocess
from vitrail.models.family import VisionModel
from vitrail.models.registry import create_model
from vitrail.transfer.floor import Features, Floor, measure_floor, save_probe
from vitrail.weights.checkpoint import Record, model_options
from vitrail.weights.loading import open_model

NAME = "tnt_s_patch16_224"


@pytest.fixture
def model() -> VisionModel:
    return create_model(NAME, embed_dim=24, inner_dim=8, depth=1, num_heads=2, inner_num_heads=2, num_classes=3)


def make_features(model: VisionModel, *, known_to_head: bool) -> Features:
    """Return features whose classes the model's head tells apart, or only a head that is fitted to them."""
    draw = np.random.default_rng(0)
    train, val = (draw.normal(size=(n, 24)).astype(np.float32) for n in (60, 40))
    with torch.no_grad():
        labels, val_labels = (model.head(torch.from_numpy(part)).argmax(1).numpy() for part in (train, val))
    if known_to_head:
        labels = draw.permutation(labels)  # of which a probe learns nothing
        return Features(train=train, train_labels=labels, val=val, val_labels=val_labels)
    for part, truth in ((train, labels), (val, val_labels)):
        part[:, :3] += 20 * np.eye(3, dtype=np.float32)[truth[::-1]]
    return Features(train=train, train_labels=labels[::-1].copy(), val=val, val_labels=val_labels[::-1].copy())


def save(folder: Path, model: VisionModel, floor: Floor, features: Features) -> Record:
    path = folder / "probe.safetensors"
    record = Record(
        model=NAME,
        options=model_options(model),
        classes=("cat", "dog", "horse"),
        preprocess=Preprocess(size=(224, 224)),
        provenance={"training_counts": [9, 8, 7, 6], "images": "of others", "converted_from": {"file": "a.pth"}},
    )
    save_probe(path, model, record, floor, features)
    return open_model(path).record


def test_weights_whose_own_head_is_better_keep_it_and_say_so(model: VisionModel, tmp_path: Path) -> None:
    features, before = make_features(model, known_to_head=True), model.head.weight.clone()
    floor = measure_floor(features, model, time.perf_counter(), is_head_trained=True)
    assert floor.own is not None
    assert floor.start.value == floor.own.value == 100.0
    assert floor.probe.value < 70.0
    torch.testing.assert_close(model.head.weight, before, rtol=0, atol=0)
    assert floor.lines()[-1].startswith("own head top-1 100.0 % of 40 images")
    record = save(tmp_path, model, floor, features)
    assert record.metrics == {"val_top1": 100.0}
    assert record.provenance["head"] == "their own layer"
    # of the images of the weights nothing is said of the new ones
    assert "training_counts" not in record.provenance
    assert "images" not in record.provenance
    assert record.provenance["converted_from"] == {"file": "a.pth"}


def test_a_better_probe_takes_the_place_of_the_head(model: VisionModel, tmp_path: Path) -> None:
    features = make_features(model, known_to_head=False)
    floor = measure_floor(features, model, time.perf_counter(), is_head_trained=True)
    assert floor.own is None
    assert floor.start.value == floor.probe.value == 100.0
    with torch.no_grad():
        answers = model.head(torch.from_numpy(features.val)).argmax(1).numpy()
    assert (answers == features.val_labels).all()
    record = save(tmp_path, model, floor, features)
    assert record.provenance["head"] == "a linear probe"


def test_a_head_that_is_drawn_at_random_is_never_kept(model: VisionModel) -> None:
    features = make_features(model, known_to_head=True)
    floor = measure_floor(features, model, time.perf_counter(), is_head_trained=False)
    assert floor.own is None
    assert floor.start == floor.probe
