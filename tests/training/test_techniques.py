"""Optimizers and techniques of fine-tuning in whole runs: what they change, and that they go on to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from support.runs import EVERYTHING, Signals, assert_same_run, run
from vitrail.choices import OptimizerName
from vitrail.errors import Stopped


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
