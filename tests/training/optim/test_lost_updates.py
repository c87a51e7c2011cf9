"""Updates and losses that are NaN or Inf: left out, told, and gone back from."""

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

import vitrail.training.train
from support.runs import (
    WILD,
    Notebook,
    Signals,
    events,
    last_state,
    rows,
    run,
    steps,
)
from vitrail.errors import Stopped, TrainingError
from vitrail.training.run.state import list_states


def test_a_loss_that_stays_not_finite_tells_the_story_and_keeps_the_good_save(image_folder: Path) -> None:
    first = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    folder, display = first.with_name("tiny-2"), Notebook()
    with pytest.raises(
        TrainingError,
        match=r"^update [23] and 1 more of this epoch left out, not finite: the output of \S+ \(\w+\); went back 2 "
        rf"times, down to 0\.25 of the learning rate; last good save: {folder}/last/update-00000000\.\w+\.pt; begin a "
        rf"new run from its weights with vitrail\.train\(fork='{folder}'\), a lower optim\.lr, optim\.clip_norm=1 or",
    ):
        run(
            image_folder, "train.epochs=3", "train.skip_limit=2", "train.rollbacks=2", *WILD, fork=first,
            display=display,
        )  # fmt: skip
    assert [text.split("; ")[1] for text in display.warnings if "went back" in text] == [
        f"went back to update 0, and on from there at {share} of the learning rate" for share in ("0.5", "0.25")
    ]
    assert [path.name[:15] for path in list_states(folder / "last")] == ["update-00000000"]
    assert rows(folder) == []


def once(monkeypatch: pytest.MonkeyPatch, at: int, updates: int = 1) -> None:
    """Make the loss not finite in some updates, the first time they are made: a fault that cannot be ordered."""
    calls, poisoned, original = itertools.count(1), False, vitrail.training.train.train_step

    def step(*arguments: Any) -> Any:
        nonlocal poisoned
        poisoned = at <= next(calls) < at + updates
        try:
            return original(*arguments)
        finally:
            poisoned = False

    def loss(*arguments: Any, **options: Any) -> torch.Tensor:
        value = cross_entropy(*arguments, **options)
        return value * torch.nan if poisoned else value

    monkeypatch.setattr("vitrail.training.train.train_step", step)
    monkeypatch.setattr("vitrail.training.losses.cross_entropy", loss)


def test_an_update_that_is_not_finite_is_left_out_counted_and_told(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, at=5)
    display = Notebook()
    result = run(image_folder, "train.epochs=3", "augment.mixup=0.8", display=display)
    assert [(row["skipped"], row["overflow_rate"]) for row in result.rows] == [(0, 0.0), (1, 1 / 3), (0, 0.0)]
    assert display.warnings == [
        "update 5 left out, not finite: only with the weights it had then, not with those it has now"
    ]
    assert all(math.isfinite(row["train_loss"]) for row in result.rows)
    assert [row["update"] for row in steps(result.folder) if row["loss"] is None] == [5]
    state = last_state(result.folder)
    assert {float(moments["step"]) for moments in state["optimizer"]["state"].values()} == {8.0}


def test_a_fault_that_passes_is_survived_by_going_back_once(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, at=6, updates=3)
    display = Notebook()
    result = run(
        image_folder, "train.epochs=4", "train.skip_limit=3", "output.save_every_updates=2", "schedule.name=constant",
        "schedule.warmup_epochs=0",
        display=display,
    )  # fmt: skip
    assert [text.split("; ")[-1] for text in display.warnings][-1] == (
        "went back to update 4, and on from there at 0.5 of the learning rate"
    )
    assert [row["epoch"] for row in result.rows] == [1, 2, 3, 4]
    assert [row["lr"] for row in result.rows] == pytest.approx([3e-3, 1.5e-3, 1.5e-3, 1.5e-3])
    assert rows(result.folder) == [{k: v for k, v in row.items() if not k.endswith("_s")} for row in result.rows]
    made = steps(result.folder)
    assert [row["update"] for row in made] == list(range(1, 13))
    assert [row["lr"] for row in made] == pytest.approx([3e-3] * 4 + [1.5e-3] * 8)
    assert all(row["loss"] is not None for row in made)
    assert [step for step, _ in events(result.folder, "tensorboard/steps")["loss"]] == list(range(1, 13))


def test_a_run_stopped_while_updates_are_left_out_keeps_the_good_save(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once(monkeypatch, at=4, updates=99)
    with pytest.raises(Stopped):
        run(image_folder, "train.epochs=4", "output.save_every_updates=1", display=Signals(5))
    assert list_states(image_folder.parent / "runs" / "tiny" / "last")[0].name.startswith("update-00000003.")


def test_an_epoch_without_any_update_has_no_training_loss(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once(monkeypatch, at=4, updates=3)
    result = run(image_folder, "train.epochs=3")
    assert [row["train_loss"] is None for row in result.rows] == [False, True, False]
    assert json.loads((result.folder / "metrics.jsonl").read_text().splitlines()[1])["train_top1"] is None


def test_weights_that_are_not_finite_are_not_saved(image_folder: Path) -> None:
    # one update an epoch: its loss is that of the weights before it
    with pytest.raises(TrainingError, match=r"weights are not finite after update 1; went back 1 times, down to 0\.5"):
        run(
            image_folder, "train.batch_size=24", "optim.eps=1e-30", *WILD[1:], "optim.lr=3e38",
            "optim.weight_decay=1e3", "train.rollbacks=1", "output.save_every_updates=1",
        )  # fmt: skip
    folder = image_folder.parent / "runs" / "tiny"
    assert not (folder / "best.safetensors").exists()
    assert [path.name[:15] for path in list_states(folder / "last")] == ["update-00000000"]
