"""Which settings a fine-tuning chooses, and that it never chooses what was given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import Layer, resolve
from vitrail.errors import ConfigError
from vitrail.transfer.budget import Speed, fit_epochs
from vitrail.transfer.rules import (
    Choice,
    Circumstances,
    check_optimizer,
    choose_batch,
    choose_epochs,
    choose_rate,
    choose_settings,
    space_evaluations,
)
from vitrail.transfer.survey import Survey

FEW = Survey(train_images=250, val_images=50, counts=(50,) * 5, is_multi_label=False, channels=3, bits=8)
MANY = replace(FEW, train_images=2_000_000, val_images=50_000, counts=(200,) * 10_000)
TRAINED = Circumstances(num_features=512, reached=70.0, on_cpu=True)


def chosen(images: Survey, known: Circumstances = TRAINED) -> dict[str, Any]:
    return {one.key: one.value for one in choose_settings(images, known)}


def settle(values: dict[str, Any]) -> TrainConfig:
    """Resolve settings, which fails where they do not fit together."""
    sections: dict[str, dict[str, Any]] = {}
    for dotted, value in values.items():
        section, key = dotted.split(".")
        sections.setdefault(section, {})[key] = value
    sections.setdefault("data", {})["root"] = "images"
    return resolve(TrainConfig, [Layer("test", sections)]).config


@pytest.mark.parametrize("images", [1, 2, 20, 250, 2_500, 25_000, 1_300_000])
@pytest.mark.parametrize("on_cpu", [True, False])
def test_a_batch_is_no_larger_than_the_images_and_leaves_an_epoch_updates(images: int, on_cpu: bool) -> None:
    batch = choose_batch(images, 10, on_cpu=on_cpu)
    assert 1 <= batch <= images
    assert batch <= (128 if on_cpu else 256)
    assert batch == images or batch == 16 or images // batch >= 32


def test_many_images_are_seen_less_often_than_few() -> None:
    epochs = [choose_epochs(images, has_weights=True) for images in (20, 250, 2_500, 25_000, 1_300_000)]
    assert epochs == sorted(epochs, reverse=True)
    assert epochs[1] == 60
    assert epochs[-1] == 5
    assert choose_epochs(250, has_weights=False) == 300


def test_many_images_in_few_epochs_are_learnt_in_smaller_updates_at_more_of_the_rate() -> None:
    for images, is_many in ((replace(MANY, train_images=24_500), True), (replace(MANY, train_images=1_000), False)):
        short, long = (chosen(images, replace(TRAINED, given={"train.epochs": epochs})) for epochs in (4, 5))
        batches = (short["train.batch_size"], long["train.batch_size"])
        assert batches == ((64, 128) if is_many else (16, 16))
        share = 0.7 if is_many else 1.0
        assert short["optim.lr"] == pytest.approx(share * long["optim.lr"], rel=0.05)


def test_the_rate_falls_with_the_width_and_grows_with_the_batch() -> None:
    assert choose_rate(64, 128, None) == pytest.approx(1.2e-3)
    assert choose_rate(16, 128, None) == pytest.approx(3e-4)
    assert choose_rate(64, 512, None) == pytest.approx(3e-4)
    assert choose_rate(256, 128, None) == choose_rate(128, 128, None) == 2.4e-3


def test_weights_that_make_few_mistakes_are_changed_less() -> None:
    rates = [choose_rate(64, 128, reached) for reached in (20.0, 60.0, 80.0, 90.0, 100.0)]
    assert rates == pytest.approx([1.2e-3, 1.2e-3, 6e-4, 3e-4, 1.8e-4])
    rate = chosen(FEW)["optim.lr"]
    assert chosen(FEW, replace(TRAINED, knows_classes=True))["optim.lr"] == pytest.approx(rate / 10, rel=0.05)


@pytest.mark.parametrize("images", [FEW, MANY, replace(FEW, is_multi_label=True), replace(FEW, channels=1)])
@pytest.mark.parametrize("has_weights", [True, False])
def test_what_is_chosen_fits_together_and_has_a_reason(images: Survey, has_weights: bool) -> None:
    known = replace(TRAINED, reached=70.0 if has_weights else None)
    for one in choose_settings(images, known):
        assert one.reason, one.key
    config = settle({"data.channels": images.channels, **chosen(images, known)})
    assert config.train.eval_first == has_weights
    assert config.schedule.warmup_epochs <= config.train.epochs / 5


def test_what_is_given_is_not_chosen_and_others_follow_it() -> None:
    given = {"optim.lr": 1e-6, "train.epochs": 2, "train.batch_size": 8}
    choices = chosen(FEW, replace(TRAINED, given=given))
    assert not given.keys() & choices.keys()
    config = settle({**given, **choices})  # no rate of the schedule is above the given one
    assert config.schedule.min_lr == pytest.approx(1e-8)
    assert config.schedule.warmup_epochs <= 0.4
    assert config.ema.decay is None  # 62 updates are too few to average


def test_a_batch_that_does_not_fit_into_memory_is_computed_in_parts() -> None:
    many = replace(FEW, train_images=25_000, counts=(5_000,) * 5)
    choices = chosen(many, replace(TRAINED, most_at_once=20))
    assert (choices["train.batch_size"], choices["train.accumulate"]) == (128, 8)
    given = {"train.batch_size": 30}
    assert chosen(many, replace(TRAINED, most_at_once=20, given=given))["train.accumulate"] == 2
    assert "train.accumulate" not in chosen(many)


def test_classes_of_unequal_size_count_alike() -> None:
    choices = chosen(replace(FEW, counts=(200, 20, 10, 10, 10)))
    assert choices["balance.logit_adjust"] == 1.0
    assert choices["train.monitor"] == "val_balanced_accuracy"
    assert "balance.logit_adjust" not in chosen(FEW)


def test_images_are_varied_the_more_the_more_often_they_are_seen() -> None:
    many = replace(FEW, train_images=25_000, counts=(5_000,) * 5)
    scratch = replace(TRAINED, reached=None)  # five times as many epochs
    assert chosen(FEW)["augment.auto_augment"] == "rand-m7-mstd0.5-inc1"
    assert "augment.auto_augment" not in chosen(many)
    short = chosen(FEW, replace(TRAINED, given={"train.epochs": 24}))
    assert "augment.auto_augment" not in short
    assert short["model.drop_path_rate"] == 0.1
    assert "model.drop_path_rate" not in chosen(FEW, replace(TRAINED, given={"train.epochs": 14}))
    assert "augment.auto_augment" not in chosen(replace(FEW, channels=1))
    assert "augment.mixup" not in chosen(FEW)
    assert "augment.mixup" not in chosen(many)
    assert chosen(many, scratch)["augment.mixup"] == 0.2


def test_fewer_epochs_have_a_shorter_warm_up() -> None:
    limited = chosen(FEW, replace(TRAINED, epochs=Choice("train.epochs", 4, "what a budget allows")))
    assert limited["schedule.warmup_epochs"] == pytest.approx(0.8)
    assert limited["train.eval_every"] == 1
    assert limited["train.epochs"] == 4
    assert "ema.decay" not in limited  # 60 updates are too few to average, though the rule's epochs are not


@pytest.mark.parametrize(
    "given",
    [
        {"augment.color_jitter": 0.4},
        {"balance.sampler": "balanced"},
        {"train.accumulate": 3},
        {"schedule.name": "constant"},
        {"optim.name": "sgd", "optim.lr": 0.01},
        {"augment.cutmix_minmax": (0.2, 0.8)},
        {"train.precision": "bfloat16"},
    ],
)
@pytest.mark.parametrize("images", [FEW, replace(FEW, train_images=25_000, counts=(24_000, 250, 250, 250, 250))])
def test_choices_go_with_what_is_given(given: dict[str, Any], images: Survey) -> None:
    settle({**given, **chosen(images, replace(TRAINED, given=given))})


def test_the_rate_of_another_optimizer_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"^optim.name is sgd, and the learning rate .* give optim.lr too$"):
        check_optimizer({"optim.name": "sgd"})
    check_optimizer({"optim.name": "sgd", "optim.lr": 0.1})


@pytest.mark.parametrize("epochs", [1, 19, 20, 21, 39, 60, 300])
def test_a_run_has_twenty_evaluations_at_most(epochs: int) -> None:
    every = space_evaluations(epochs)
    assert epochs / every <= 20
    assert every == 1 or epochs / (every - 1) > 20


def test_a_budget_pays_for_the_evaluations_that_a_run_has() -> None:
    speed = Speed(images_per_s=100.0, train_s=1.0, evaluation_s=2.0, eval_every=None)
    assert fit_epochs(speed, 100.0, 60, None).value == 54  # 90 s: 54 epochs and 18 evaluations, one every 3 epochs
    assert speed.run_s(54) == 90
    every_epoch = replace(speed, eval_every=1)
    assert fit_epochs(every_epoch, 100.0, 60, None).value == 30
    with pytest.raises(ConfigError, match=r"of 3 seconds is too small for one epoch, which takes 3 seconds"):
        fit_epochs(speed, 3.0, 60, None)


def test_a_long_budget_is_not_used_up() -> None:
    speed = Speed(images_per_s=100.0, train_s=1.0, evaluation_s=2.0, eval_every=None)
    allowed = fit_epochs(speed, 3_600_000.0, 60, None)
    assert allowed.value == 300
    assert allowed.reason == "5 times the usual 60; 60,000.0 minutes would allow more"


def test_reasons_count_what_an_epoch_takes() -> None:
    """An epoch has whole batches alone, and as many images as are given."""
    thirty = replace(FEW, train_images=30, counts=(6,) * 5)
    reasons = {one.key: one.reason for one in choose_settings(thirty, TRAINED)}
    assert reasons["train.batch_size"] == "updates an epoch of 30 images: 1"
    assert reasons["train.epochs"] == "30 images, each seen about 65 times"
    given = {"train.epoch_images": 125, "train.epochs": 60}
    few = {one.key: one for one in choose_settings(FEW, replace(TRAINED, given=given))}
    assert few["train.batch_size"].reason == "updates an epoch of 125 images: 7"
    assert few["ema.decay"].reason.endswith("of 420 updates")


def test_what_cannot_be_measured_before_training_is_not_the_floor() -> None:
    assert chosen(FEW)["train.eval_first"]
    assert "train.eval_first" not in chosen(FEW, replace(TRAINED, given={"train.monitor": "train_loss"}))
