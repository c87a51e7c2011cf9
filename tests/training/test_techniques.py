"""Optimizers and techniques of fine-tuning in whole runs: what they change, and that they go on to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from support.runs import EVERYTHING, Signals, assert_same_run, last_state, run
from vitrail.choices import OptimizerName
from vitrail.errors import ConfigError, Stopped
from vitrail.training.run.state import list_states


def assert_goes_on(images: Path, *settings: str, stops: tuple[int, ...] = (4,)) -> Path:
    """Compare a run with one that is stopped after some updates and resumed, to the last bit; return its folder."""
    whole = run(images, *settings, "output.name=whole").folder
    stopped = whole.with_name("stopped")
    resume = None
    for made in stops:
        with pytest.raises(Stopped):
            run(images, *settings, "output.name=stopped", resume=resume, display=Signals(made))
        resume = stopped
    run(images, *settings, "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)
    return whole


@pytest.mark.parametrize("name", [name for name in get_args(OptimizerName) if name != "adamw"])
def test_a_run_with_any_optimizer_goes_on_to_the_last_bit(image_folder: Path, name: str) -> None:
    assert_goes_on(image_folder, *EVERYTHING, "train.epochs=3", f"optim.name={name}", "optim.layer_decay=0.7")


def test_a_run_with_sharpness_aware_minimization_goes_on_to_the_last_bit(image_folder: Path) -> None:
    assert_goes_on(image_folder, *EVERYTHING, "train.epochs=3", "optim.sam_rho=0.05")


def pretrained(images: Path) -> str:
    """Train a tiny model; return the setting that begins with its weights."""
    folder = run(images, "train.epochs=2", "output.name=pretrained").folder
    return f"model.weights={folder / 'best.safetensors'}"


def assert_frozen(before: Path, after: Path, *trained: str) -> None:
    """Compare two weight files: only weights whose names begin with what was trained differ."""
    first, second = load_file(before), load_file(after)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]) is not name.startswith(trained), name


@pytest.mark.parametrize("optimizer", ["adamw", "lamb"])
def test_frozen_weights_stay_and_the_run_goes_on_to_the_last_bit(image_folder: Path, optimizer: str) -> None:
    weights = pretrained(image_folder)
    more = ("train.epochs=3", "model.drop_rate=0.1", "ema.decay=0.9", "freeze.until=norm", f"optim.name={optimizer}")
    folder = assert_goes_on(image_folder, weights, *more)
    state = last_state(folder)
    assert len(state["optimizer"]["state"]) == 4  # of the norm and the head
    assert_frozen(folder.with_name("pretrained") / "best.safetensors", folder / "best.safetensors", "norm.", "head.")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lamb", "adan"])
def test_the_head_warms_up_alone_and_then_all_is_trained(image_folder: Path, optimizer: str) -> None:
    weights = pretrained(image_folder)
    more = (
        "train.epochs=3", "freeze.until=head", "freeze.epochs=1", f"optim.name={optimizer}", "model.drop_path_rate=0.1",
        "output.save_every_updates=1", "output.keep_last=99",
    )  # fmt: skip
    folder = assert_goes_on(image_folder, weights, *more, stops=(3, 1, 2))
    first = load_file(folder.with_name("pretrained") / "best.safetensors")
    moved: dict[int, set[str]] = {}
    for path in list_states(folder / "last"):
        saved = torch.load(path, weights_only=True)
        update = 3 * saved["epoch"] + saved["step"]
        moved[update] = {name for name, tensor in first.items() if not torch.equal(saved["model"][name], tensor)}
    assert not moved[0]
    assert moved[1] == moved[3] == {"head.weight", "head.bias"}
    assert len(moved[4]) > len(first) - 5
    # young moments are corrected by the updates they have seen
    state = last_state(folder)["optimizer"]
    counts = {int(group["step"]) for group in state["param_groups"] if "step" in group}
    assert counts == ({6, 9} if optimizer in ("lamb", "adan") else set())


def test_noise_is_not_frozen(image_folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        run(image_folder, "freeze.until=head")
    assert str(caught.value) == (
        "freeze.until=head keeps the weights of all before it, which would be random; give weights to begin with, "
        "model.weights=FILE or --fork RUN"
    )
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    forked = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "freeze.until=head", "output.name=fork",
                 fork=folder)  # fmt: skip
    assert_frozen(folder / "best.safetensors", forked.folder / "best.safetensors", "head.")


def test_a_part_that_the_model_lacks_is_refused_before_anything_is_written(image_folder: Path) -> None:
    weights = pretrained(image_folder)
    with pytest.raises(ConfigError, match=r"^freeze\.until is blocks\.7; it must be a layer from 1 to 2, a part from"):
        run(image_folder, weights, "freeze.until=blocks.7", "output.name=refused")
    assert not (image_folder.parent / "runs" / "refused").exists()
