"""Runs that learn from a teacher: live and from the cache, stopped, killed, shared out and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vitrail.training.step
from support.forked import Python, python, wait_until
from support.runs import (
    EVERYTHING,
    Notebook,
    Signals,
    assert_same_run,
    assert_same_weights,
    command,
    has_saved,
    last_state,
    rows,
    run,
    torchrun,
)
from support.tiny_model import save_tiny
from vitrail.distillation.answers import ABOUT
from vitrail.errors import CheckpointError, ConfigError, DataError, Stopped, VitrailError
from vitrail.images.preprocess import Preprocess
from vitrail.weights.loading import open_model

MIXED_UP = [setting for setting in EVERYTHING if not setting.startswith("model.")]


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """Return the setting of an untrained teacher for images of another size than the students'."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    preprocess = Preprocess(size=(48, 48), mean=(0.5,) * 3, std=(0.5,) * 3)
    path = save_tiny(folder, preprocess, classes=("red", "gray", "blue", "green"), image_size=48)
    return f"distill.teacher={path}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's cache in a folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitrail" / "answers"


def seconds(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("loss", ["soft", "hard", "dkd", "feature"])
def test_a_run_from_the_cache_equals_one_without_to_the_last_bit(
    image_folder: Path, teacher: str, cache: Path, loss: str
) -> None:
    settings = [teacher, f"distill.loss={loss}", "distill.temperature=2", "train.epochs=2", "distill.topk=2"]
    if loss != "dkd":
        settings += MIXED_UP
    live = run(image_folder, *settings, "train.epochs=2", "distill.cache=false", "output.name=live").folder
    assert not cache.exists()
    first = run(image_folder, *settings, "train.epochs=2", "output.name=first").folder
    (folder,) = cache.iterdir()
    stored = {path: path.read_bytes() for path in folder.iterdir()}
    second = run(image_folder, *settings, "train.epochs=2", "output.name=second").folder
    assert {path: path.read_bytes() for path in folder.iterdir()} == stored  # nothing was computed
    assert_same_run(first, live)
    assert_same_run(second, live)
