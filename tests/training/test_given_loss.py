"""A loss of the user's own: it is what is trained on, its name is recorded, and it is refused where it is no loss."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vitrail
from support.commands import refused
from support.runs import TINY, Signals, assert_same_run
from vitrail.api.training import TrainResult
from vitrail.config.resolve import read_yaml
from vitrail.display import Display, Quiet
from vitrail.errors import Stopped, TrainingError
from vitrail.training.given_loss import name_loss


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(1)).sum(1)


def focal(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    return cross_entropy(logits, targets) * (1 - (targets * logits.softmax(1)).sum(1)) ** gamma


def mean(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets).mean()


def numbers(logits: Tensor, targets: Tensor) -> Any:
    return [0.5, 0.5]


def constant(logits: Tensor, targets: Tensor) -> Tensor:
    return targets.sum(1)


def train(images: Path, name: str, loss: Any = None, display: Display | None = None, **more: Any) -> TrainResult:
    place = {"data.root": images, "output.root": images.parent / "runs", "output.name": name}
    return vitrail.train(TINY, {**place, **more}, loss=loss, display=display or Quiet())


def test_the_usual_loss_given_by_hand_trains_the_same_weights(image_folder: Path) -> None:
    settings = {"augment.mixup": 0.8, "train.accumulate": 2}
    usual = train(image_folder, "usual", **settings)
    given = train(image_folder, "given", cross_entropy, **settings)
    for first, second in zip(usual.rows, given.rows, strict=True):
        assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-5)
        assert first["val_loss"] == pytest.approx(second["val_loss"], rel=1e-5)


def test_another_loss_trains_others_and_is_what_the_rows_have(image_folder: Path) -> None:
    usual = train(image_folder, "usual")
    other = train(image_folder, "other", focal)
    assert other.rows[0]["train_loss"] < 0.8 * usual.rows[0]["train_loss"]  # of 3 classes: (2/3)^2 of the entropy
    assert other.rows[-1]["val_loss"] != usual.rows[-1]["val_loss"]
    assert other.rows[-1]["val_loss"] == pytest.approx(usual.rows[-1]["val_loss"], rel=0.3)  # the cross-entropy of both


def test_a_run_goes_on_to_the_last_bit_with_its_loss(image_folder: Path) -> None:
    whole = train(image_folder, "whole", focal).folder
    with pytest.raises(Stopped):
        train(image_folder, "stopped", focal, Signals(4))
    stopped = whole.with_name("stopped")
    assert read_yaml(stopped / "config.yaml").values["train"]["loss"] == "focal"
    vitrail.train(resume=stopped, loss=focal, display=Quiet())
    assert_same_run(stopped, whole)


def test_a_run_goes_on_with_no_other_loss(image_folder: Path) -> None:
    with pytest.raises(Stopped):
        train(image_folder, "stopped", focal, Signals(4))
    folder = image_folder.parent / "runs" / "stopped"
    with pytest.raises(vitrail.VitrailError, match=r"train.loss=focal: is a function of Python, which no file holds"):
        vitrail.train(resume=folder, display=Quiet())
    with pytest.raises(vitrail.VitrailError, match=r"train.loss is focal there and cross_entropy here"):
        vitrail.train(resume=folder, loss=cross_entropy, display=Quiet())


def test_the_command_line_refuses_a_name(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(
        capsys, "train", TINY, f"data.root={image_folder}", f"output.root={tmp_path / 'runs'}", "train.loss=focal"
    )
    assert line.removeprefix("error: ") == (
        "train.loss=focal: is a function of Python, which no file holds; give it as vitrail.train(..., loss=FUNCTION)"
    )
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (mean, r"train.loss=mean: gave a tensor of shape \(\), such as a mean; reduction='none' keeps"),
        (numbers, r"train.loss=numbers: gave \[0.5, 0.5\], which is no tensor"),
        (constant, "train.loss=constant: gave a tensor that does not depend on the logits for autograd"),
        (
            torch.sub,
            r"train.loss=sub: gave a tensor of shape \(2, 3\), for logits and targets of 2 images and 3",
        ),
        (
            torch.neg,
            r"train.loss=neg: cannot be computed of logits and targets of 2 images and 3 classes \(TypeError: .*"
            r"it must be a function that takes both, each \(images, classes\)$",
        ),
        (torch.nn.CrossEntropyLoss, r"train.loss=CrossEntropyLoss: cannot be computed of logits and targets of 2"),
        (5, "train: loss is 5; it must be a function, or None"),
    ],
)
def test_what_is_no_loss_is_refused(image_folder: Path, loss: Any, problem: str) -> None:
    with pytest.raises(vitrail.VitrailError, match=problem):
        train(image_folder, "refused", loss)
    assert not (image_folder.parent / "runs" / "refused").exists()


def test_after_a_loss_that_gave_no_number_the_advice_can_be_followed(image_folder: Path) -> None:
    def broken(logits: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(logits, targets) * (math.nan if len(logits) > 2 else 1)  # which the trial has no more of

    advice = rf"begin a new run from its weights with vitrail\.train\(fork='{image_folder.parent}/runs/nan', loss=FUNC"
    with pytest.raises(TrainingError, match=advice):
        train(image_folder, "nan", broken, **{"train.skip_limit": 1, "train.rollbacks": 0, "train.epochs": 3})


def test_names_of_losses() -> None:
    assert name_loss(focal) == "focal"
    assert name_loss(partial(focal, gamma=1.0)) == "focal(gamma=1.0)"
    assert name_loss(torch.nn.CrossEntropyLoss(reduction="none")) == "CrossEntropyLoss()"
