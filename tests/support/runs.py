"""Runs of a tiny model: started, stopped at an update, read back and compared to the last bit."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from support.forked import TORCHRUN
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.display import Quiet
from vitrail.training.run.state import load_last_state
from vitrail.training.run.trackers import TensorBoard, Tracker
from vitrail.training.train import TrainResult, train

TINY = Path(__file__).parent / "tiny.yaml"


def settle(images: Path, *settings: str) -> TrainConfig:
    layers = [
        read_yaml(TINY),
        parse_command_line([f"data.root={images}", f"output.root={images.parent / 'runs'}", *settings]),
    ]
    return resolve(TrainConfig, layers).config


def run(
    images: Path,
    *settings: str,
    resume: Path | None = None,
    fork: Path | None = None,
    display: Quiet | None = None,
) -> TrainResult:
    return train(settle(images, *settings), name="tiny", resume=resume, fork=fork, display=display)


def command(images: Path, *settings: str) -> list[str]:
    root = f"output.root={images.parent / 'runs'}"
    return ["-m", "vitrail", "train", str(TINY), f"data.root={images}", root, *settings]


def rows(folder: Path) -> list[dict]:
    """The rows of a run without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if not k.endswith("_s")} for line in lines]


def steps(folder: Path) -> list[dict[str, Any]]:
    """The rows of the updates of a run, without what depends on the clock."""
    lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "images_per_s"} for line in lines]


def last_state(folder: Path) -> dict[str, Any]:
    return load_last_state(folder / "last", pytest.fail)


def assert_same(a: Any, b: Any, where: str = "state") -> None:
    """Compare to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{number}")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    """Compare all that two finished runs left, but for the clock and the number of processes."""
    assert rows(a) == rows(b)
    assert steps(a) == steps(b)
    for name in ("loss", "lr", "grad_norm"):
        assert events(a, "tensorboard/steps")[name] == events(b, "tensorboard/steps")[name]
    first, second = last_state(a), last_state(b)
    for name in ("model", "ema", "optimizer", "epoch", "step", "guard", "bad_files"):
        assert_same(first[name], second[name], name)
    assert_same_weights(a / "best.safetensors", b / "best.safetensors")


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Notebook(Quiet):
    """A display that remembers."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notes: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def note(self, text: str) -> None:
        self.notes.append(text)


class Signals(Notebook):
    """A display that sends this process a signal when some updates are made."""

    def __init__(self, *updates: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self.updates, self.number, self.made = updates, number, 0

    def advance(self, steps: int = 1, **values: str) -> None:
        self.made += steps
        if steps and self.made in self.updates:
            os.kill(os.getpid(), self.number)


EVERYTHING = (
    "model.drop_path_rate=0.2", "ema.decay=0.9", "augment.mixup=0.8", "augment.cutmix=1.0", "augment.erase_prob=0.3",
    "augment.auto_augment=rand-m9-mstd0.5-inc1", "train.accumulate=2", "optim.clip_norm=1", "train.eval_every=2",
    "model.drop_rate=0.1", "augment.erase=after_mix", "augment.erase_mode=rand", "augment.erase_count=3",
    "augment.mix_mode=elem", "augment.cutmix_minmax=[0.2, 0.8]", "augment.mix_off_epoch=2", "schedule.step=epoch",
    "train.log_every=2",
)  # fmt: skip

WILD = ("optim.lr=1e30", "schedule.warmup_epochs=0", "schedule.name=constant")
"""Settings whose loss is soon NaN or Inf."""


def has_saved(folder: Path, updates: int) -> Callable[[], bool]:
    return lambda: any(int(path.name[7:15]) >= updates for path in folder.glob("last/update-*.pt"))


def torchrun(processes: int, *words: str) -> list[str]:
    return [*TORCHRUN, "--nproc-per-node", str(processes), "--standalone", *words]


def events(folder: Path, part: str = "tensorboard") -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder / part))
    accumulator.Reload()
    return {tag: [(e.step, e.value) for e in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}


def tensorboard(folder: Path) -> dict[str, Callable[[int], Tracker]]:
    return {"tensorboard": partial(TensorBoard, folder / "tensorboard")}
