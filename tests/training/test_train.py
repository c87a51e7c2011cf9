"""A training run as a whole: what it learns, what its settings do, and what it leaves behind."""

import itertools
import json
import math
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

import vitrail.training.train
from support.forked import python
from support.runs import (
    EVERYTHING,
    WILD,
    Notebook,
    Signals,
    assert_same_run,
    assert_same_weights,
    command,
    last_state,
    rows,
    run,
    settle,
)
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import read_yaml, resolve
from vitrail.display import Quiet
from vitrail.errors import ConfigError, MissingExtra, Stopped, TrainingError
from vitrail.training.run.state import list_states
from vitrail.training.run.stop import Stop
from vitrail.training.setup import build_job
from vitrail.training.train import due, is_better, train
from vitrail.weights.loading import open_model


def test_a_tiny_transformer_learns_three_colours_and_leaves_a_whole_run_folder(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=12", "optim.lr=1e-2")
    assert result.best["val_top1"] == 100.0
    assert result.folder == image_folder.parent / "runs" / "tiny"
    names = {path.name for path in result.folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "curves.png", "best.safetensors", "last"} <= names
    assert len(rows(result.folder)) == 12
    assert not [path for path in result.folder.rglob("*.tmp")]
    assert Path(result.example).is_file()
    assert result.report == result.folder / "report" / "report.html"
    reported = json.loads((result.folder / "report" / "report.json").read_text())
    for ours, theirs in (("top1", "val_top1"), ("top5", "val_top5"), ("loss", "val_loss"), ("n_ok", "val_n")):
        assert reported[ours] == result.best[theirs], ours
    page = result.report.read_text()
    assert page.count("<polyline") == 5
    assert "Training images as the model saw them" in page
    assert "embed_dim: 24" in page


def test_the_saved_config_is_a_recipe_that_repeats_the_run_bit_for_bit(image_folder: Path) -> None:
    first = run(image_folder, "augment.mixup=0.8", "augment.cutmix=1.0", "augment.erase_prob=0.5", "train.epochs=2")
    saved = resolve(TrainConfig, [read_yaml(first.folder / "config.yaml")]).config
    second = train(saved, name="again")
    assert rows(first.folder) == rows(second.folder)
    assert_same_weights(first.folder / "best.safetensors", second.folder / "best.safetensors")


def test_loader_workers_do_not_change_the_run(image_folder: Path) -> None:
    first = run(image_folder, "train.epochs=1", "data.workers=0", "augment.auto_augment=rand-m9-mstd0.5-inc1")
    second = run(image_folder, "train.epochs=1", "data.workers=2", "augment.auto_augment=rand-m9-mstd0.5-inc1")
    assert rows(first.folder) == rows(second.folder)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_stopped_after_any_update_goes_on_to_the_last_bit(image_folder: Path, precision: str) -> None:
    settings = (*EVERYTHING, "train.epochs=3", f"train.precision={precision}")
    whole = run(image_folder, *settings, "output.name=whole").folder
    stopped = image_folder.parent / "runs" / "stopped"
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM after update 1 of 9, and saved; go on with: vitrail train"):
        run(image_folder, *settings, "output.name=stopped", display=Signals(1))
    for update in range(2, 10):  # each time one more, with another number of loader processes now and then
        workers = f"data.workers={2 * (update == 5)}"
        with pytest.raises(Stopped, match=rf"after update {update} of 9"):
            run(image_folder, *settings, "output.name=stopped", workers, resume=stopped, display=Signals(1))
    run(image_folder, *settings, "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)


def test_a_run_ends_early_when_nothing_gets_better(image_folder: Path) -> None:
    display = Notebook()
    settings = ("optim.lr=1e-20", "schedule.min_lr=0", "schedule.warmup_epochs=0", "train.epochs=9", "train.patience=2")
    result = run(image_folder, *settings, display=display)
    assert len(result.rows) == 3
    assert display.notes == ["stopped early: no better val_top1 for 2 epochs"]
    again = Notebook()
    assert len(run(image_folder, *settings, resume=result.folder, display=again).rows) == 3
    assert "is finished, with 3 epochs" in again.notes[0]


def test_a_gain_below_the_least_one_does_not_keep_a_run_going(image_folder: Path) -> None:
    more = ("train.epochs=12", "optim.lr=1e-3", "train.patience=2", "train.monitor=val_loss")
    patient = run(image_folder, *more, "output.name=patient")
    assert len(patient.rows) == 12
    losses = [row["val_loss"] for row in patient.rows]
    assert losses == sorted(losses, reverse=True)
    # gains of less than this end the run two epochs after the last larger one, the best weights being the last
    least = 1.5 * max(a - b for a, b in itertools.pairwise(losses[:4]))
    settings = (*more, f"train.min_delta={least}", "output.name=strict")
    with pytest.raises(Stopped):
        run(image_folder, *settings, display=Signals(5))
    folder = image_folder.parent / "runs" / "strict"
    strict = run(image_folder, *settings, resume=folder)
    reference, ends = 0, None
    for epoch in range(1, 12):
        if losses[reference] - losses[epoch] > least:
            reference = epoch
        if ends is None and epoch - reference >= 2:
            ends = epoch + 1
    assert len(strict.rows) == ends
    assert strict.best["epoch"] == ends


def test_the_best_epoch_is_that_of_the_monitored_number(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=6", "optim.lr=1e-2", "train.monitor=val_loss")
    assert result.best == min(result.rows, key=lambda row: row["val_loss"])
    assert not is_better({"train_loss": None}, {}, "train_loss")
    assert is_better({"train_loss": 1.0}, {}, "train_loss")
    for best, better in (((1.0, 5.0), True), ((2.0, 5.0), True), ((2.0, 4.0), False), ((3.0, 5.0), False)):
        before = dict(zip(("val_top1", "val_loss"), best, strict=True))
        assert is_better({"val_top1": 2.0, "val_loss": 4.0}, before, "val_top1") is better


def test_accumulated_parts_make_the_update_of_the_whole_batch(image_folder: Path) -> None:
    whole = run(image_folder, "train.epochs=2", "output.name=whole")
    parts = run(image_folder, "train.epochs=2", "train.accumulate=4", "output.name=parts")
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert math.isclose(a["train_loss"], b["train_loss"], rel_tol=1e-4)
        assert a["val_top1"] == b["val_top1"]


def test_gradient_checkpointing_and_channels_last_change_nothing_but_rounding(image_folder: Path) -> None:
    plain = run(image_folder, "train.epochs=1")
    other = run(image_folder, "train.epochs=1", "train.grad_checkpointing=true", "train.channels_last=true")
    assert math.isclose(plain.rows[0]["train_loss"], other.rows[0]["train_loss"], rel_tol=1e-4)


def test_bfloat16_learns_too(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=12", "optim.lr=1e-2", "train.precision=bfloat16")
    assert result.best["val_top1"] == 100.0


def test_averaged_weights_are_what_is_saved(image_folder: Path) -> None:
    result = run(image_folder, "ema.decay=0.5", "train.epochs=2")
    state = last_state(result.folder)
    saved = load_file(result.folder / "best.safetensors")
    assert result.best["epoch"] != 2 or torch.equal(saved["head.weight"], state["ema"]["head.weight"])
    assert not torch.equal(state["model"]["head.weight"], state["ema"]["head.weight"])


def test_cooldown_epochs_come_on_top_at_the_lowest_rate(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=2", "schedule.cooldown_epochs=1", "schedule.min_lr=1e-4")
    assert [row["epoch"] for row in result.rows] == [1, 2, 3]
    assert result.rows[-1]["lr"] == pytest.approx(1e-4)


def test_learning_rate_scales_with_the_batch_when_asked(image_folder: Path) -> None:
    common = ("train.epochs=1", "schedule.warmup_epochs=0", "schedule.name=constant")
    plain = run(image_folder, *common)
    scaled = run(image_folder, *common, "optim.lr_base_batch=32")
    assert scaled.rows[0]["lr"] == pytest.approx(plain.rows[0]["lr"] / 4)


def test_a_tracker_that_is_not_installed_is_refused_before_training(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitrail.training.run.trackers.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"^output\.trackers has wandb, which is not installed; run: pip inst"):
        run(image_folder, "output.trackers=[tensorboard, wandb]")


def test_trackers_may_be_none(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.trackers=[]").folder
    assert not (folder / "tensorboard").exists()


def test_anomaly_detection_names_the_operation(image_folder: Path) -> None:
    with (
        pytest.warns(UserWarning, match="Error detected in"),
        pytest.raises(TrainingError, match=r"^train\.detect_anomaly: Function '\w+' returned nan values in its"),
    ):
        run(image_folder, "train.detect_anomaly=true", *WILD)


def test_an_average_that_is_too_slow_for_the_run_is_told(image_folder: Path) -> None:
    display = Notebook()
    short = ("train.epochs=1", "schedule.warmup_epochs=0", "ema.decay=0.9999")
    run(image_folder, *short, "ema.warmup=false", display=display)
    assert display.warnings == [
        "ema.decay 0.9999 is slow for 3 updates: 100% of the weights that are evaluated and saved will be the initial "
        "ones; lower it, or set ema.decay=null"
    ]


@pytest.mark.thorough
def test_an_average_that_is_too_slow_for_the_run_follows_its_updates(image_folder: Path) -> None:
    display = Notebook()
    more = ("train.epochs=4", "optim.lr=1e-2", "ema.decay=0.99996")
    result = run(image_folder, *more, "output.name=follows", display=display)
    assert not display.warnings
    assert display.notes == [
        "ema.decay 0.99996 is slow for 12 updates, so it follows their number, as (1 + n) / (10 + n); ema.warmup=false "
        "keeps it as it is"
    ]
    kept = run(image_folder, *more, "ema.warmup=false", "output.name=kept")
    chance = 100 / 3
    assert result.best["val_top1"] > 1.5 * chance
    assert result.best["val_loss"] < kept.best["val_loss"]

    # by hand: from the weights of every update
    state, average = run(image_folder, *more, "output.save_every_updates=1", "output.keep_last=99"), {}
    for path in reversed(list_states(state.folder / "last")):
        saved = torch.load(path, weights_only=True)
        made = 3 * saved["epoch"] + saved["step"]
        decay = min(0.99996, made / (9 + made))
        average = {
            name: decay * average.get(name, tensor) + (1 - decay) * tensor for name, tensor in saved["model"].items()
        }
    for name, tensor in last_state(state.folder)["ema"].items():
        torch.testing.assert_close(tensor, average[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "decays"),
    [
        (("ema.decay=0.9",), [0.1, 2 / 11, 0.9]),  # 0.9 ** 12 of the initial weights would be left
        (("ema.decay=0.5",), [0.5, 0.5, 0.5]),
        (("ema.decay=0.5", "ema.warmup=true"), [0.1, 2 / 11, 0.5]),
        (("ema.decay=0.9", "ema.warmup=false"), [0.9, 0.9, 0.9]),
    ],
)
def test_the_decay_of_an_average_follows_the_updates_up_to_its_setting(
    image_folder: Path, settings: tuple[str, ...], decays: list[float]
) -> None:
    config = settle(image_folder, *settings)
    accelerator = Accelerator(cpu=True)
    job, _ = build_job(config, accelerator, "float32", Quiet(), Stop(None))
    assert [job.average_decay(update) for update in (0, 1, 999)] == pytest.approx(decays)


def test_the_last_best_weights_are_kept_when_asked(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=6", "optim.lr=1e-2", "train.monitor=train_loss", "output.keep_best=2")
    kept = [open_model(result.folder / f"best{n}.safetensors").record.metrics["epoch"] for n in ("", "-2")]
    falls = [
        row["epoch"]
        for row in result.rows
        if row["train_loss"] == min(r["train_loss"] for r in result.rows[: row["epoch"]])
    ]
    assert kept == falls[:-3:-1]


def test_model_options_cannot_say_twice_what_the_settings_say(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.num_classes: is not an option"):
        run(image_folder, "model.options.num_classes=7")


def test_due_is_true_every_so_often_and_at_the_end() -> None:
    assert [n for n in range(10) if due(n, 4, 10)] == [3, 7, 9]


def test_a_name_with_dollars_is_no_formula(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=q$x^$")
    assert (result.folder / "curves.png").stat().st_size > 10_000


def test_of_epochs_as_accurate_the_one_of_lower_loss_is_the_best(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=14", "optim.lr=1e-2")
    top1 = max(row["val_top1"] for row in result.rows)
    accurate = [row for row in result.rows if row["val_top1"] == top1]
    assert len(accurate) > 1
    assert result.best == min(accurate, key=lambda row: row["val_loss"])


@pytest.mark.parametrize("name", ["trackio", "wandb", "mlflow"])
def test_a_tracker_takes_the_numbers_of_a_run_and_of_its_resumption(image_folder: Path, name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    place = image_folder.parent
    environment = {
        **os.environ, "TRACKIO_DIR": str(place / "trackio"), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1",
        "MLFLOW_TRACKING_URI": f"sqlite:///{place / 'mlflow.db'}",
    }  # fmt: skip
    for words in (
        command(image_folder, f"output.trackers=[{name}]", "train.epochs=1", "schedule.warmup_epochs=0"),
        [*command(image_folder)[:3], "--extend", str(place / "runs" / "tiny"), "train.epochs=2"],
    ):
        done = python(*words, env=environment, cwd=place)
        assert done.returncode == 0
        assert "is given no more numbers" not in done.stderr


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_update_does_not_wait_for_the_device(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = vitrail.training.train.train_step

    def step(*arguments: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error")
        try:
            return original(*arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr("vitrail.training.train.train_step", step)
    for precision in ("float32", "bfloat16", "float16"):
        run(image_folder, *EVERYTHING, "train.device=auto", f"train.precision={precision}", "train.epochs=2")


def test_inputs_that_look_odd_are_told_once(image_folder: Path) -> None:
    settings = ("schedule.warmup_epochs=0",)
    display = Notebook()
    run(image_folder, *settings, "train.epochs=2", "output.name=usual", display=display)
    assert not [text for text in display.warnings if "normalised" in text]
    odd = (*settings, "preprocess.mean=[0,0,0]", f"preprocess.std={[1 / 255] * 3}", "output.name=odd")
    folder = run(image_folder, *odd, "train.epochs=1", display=display).folder
    told = [text for text in display.warnings if "normalised" in text]
    assert len(told) == 1
    assert told[0].startswith(
        "the first 24 images are far from mean 0 and standard deviation 1 once they are normalised"
    )
    display.warnings.clear()
    run(image_folder, *odd, "train.epochs=2", resume=folder, display=display)
    assert not [text for text in display.warnings if "normalised" in text]
