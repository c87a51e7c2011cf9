import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from vitrail.config import TrainConfig, command_line, read_yaml, resolve
from vitrail.display import Quiet
from vitrail.errors import CheckpointError, ConfigError, DataError, TrainingError
from vitrail.train import TrainResult, due, keep_older, train

TINY = Path(__file__).parent / "tiny.yaml"


def settle(images: Path, *settings: str) -> TrainConfig:
    layers = [
        read_yaml(TINY),
        command_line([f"data.root={images}", f"output.root={images.parent / 'runs'}", *settings]),
    ]
    return resolve(TrainConfig, layers).config


def run(images: Path, *settings: str, resume: Path | None = None, display: Quiet | None = None) -> TrainResult:
    return train(settle(images, *settings), name="tiny", resume=resume, display=display)


def command(images: Path, *settings: str) -> list[str]:
    root = f"output.root={images.parent / 'runs'}"
    return [sys.executable, "-m", "vitrail", "train", str(TINY), f"data.root={images}", root, *settings]


def rows(folder: Path) -> list[dict]:
    """The rows of a run without what depends on the clock."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_s", "elapsed_s")}
        for line in lines
    ]


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


class Notebook(Quiet):
    """A display that remembers."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_a_tiny_transformer_learns_three_colours_and_leaves_a_whole_run_folder(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=12", "optim.lr=1e-2")
    assert result.best["val_top1"] == 100.0
    assert result.folder == image_folder.parent / "runs" / "tiny"
    names = {path.name for path in result.folder.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "tensorboard", "curves.png", "best.safetensors", "last"} <= names
    assert len(rows(result.folder)) == 12
    assert not [path for path in result.folder.rglob("*.tmp")]
    assert Path(result.example).is_file()


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


def test_a_run_killed_and_resumed_equals_the_uninterrupted_run(image_folder: Path) -> None:
    settings = ("train.epochs=60", "model.drop_path_rate=0.2", "ema.decay=0.9", "augment.mixup=0.8")
    whole = run(image_folder, *settings, "output.name=whole")
    killed = image_folder.parent / "runs" / "killed"
    process = subprocess.Popen(
        command(image_folder, *settings, "output.name=killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while len(rows(killed) if (killed / "metrics.jsonl").exists() else []) < 3:
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = torch.load(killed / "last" / "state.pt", weights_only=True)["epoch"]
    assert 1 <= done < 60
    config = resolve(TrainConfig, [read_yaml(killed / "config.yaml")]).config
    resumed = train(config, name="killed", resume=killed)
    assert resumed.folder == killed
    assert rows(killed) == rows(whole.folder)
    assert_same_weights(killed / "best.safetensors", whole.folder / "best.safetensors")
    first, second = (torch.load(f / "last" / "state.pt", weights_only=True) for f in (killed, whole.folder))
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name


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
    state = torch.load(result.folder / "last" / "state.pt", weights_only=True)
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


def test_an_unreadable_training_image_is_left_out_and_named(image_folder: Path) -> None:
    victim = sorted((image_folder / "train" / "red").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:200])
    display = Notebook()
    result = run(image_folder, "train.epochs=2", display=display)
    assert [name for name, _ in result.bad_files] == [str(victim)]
    assert result.rows[-1]["n_bad"] == 1
    assert len([text for text in display.warnings if str(victim) in text and text.endswith("; left out")]) == 1


def test_an_unreadable_training_image_stops_the_run_when_asked(image_folder: Path) -> None:
    victim = sorted((image_folder / "train" / "red").iterdir())[0]
    victim.write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.bad_files=skip"):
        run(image_folder, "train.epochs=2", "data.bad_files=error")


def test_an_unreadable_validation_image_is_named_once(image_folder: Path) -> None:
    victim = sorted((image_folder / "val" / "red").iterdir())[0]
    victim.write_bytes(b"")
    display = Notebook()
    result = run(image_folder, "train.epochs=2", display=display)
    assert display.warnings == [f"{victim}: the file is empty; left out"]
    assert [(row["val_n"], row["n_bad"]) for row in result.rows] == [(11, 1), (11, 1)]


def test_one_unreadable_image_does_not_end_an_epoch_of_single_images(image_folder: Path) -> None:
    victim = sorted((image_folder / "train" / "red").iterdir())[0]
    victim.write_bytes(b"")
    result = run(image_folder, "train.epochs=2", "train.batch_size=8", "train.accumulate=8", "augment.mixup=0.8")
    assert [row["n_bad"] for row in result.rows] == [1, 1]
    assert math.isfinite(result.rows[-1]["train_loss"])


def test_a_training_set_without_any_readable_image_stops_the_run(image_folder: Path) -> None:
    for path in (image_folder / "train").rglob("*.jpg"):
        path.write_bytes(b"not an image")
    with pytest.raises(
        TrainingError, match=r"no training image could be read; one is \S+blue_0\.jpg \(not an image of a"
    ):
        run(image_folder)


def test_a_validation_set_without_any_readable_image_stops_the_run(image_folder: Path) -> None:
    for path in (image_folder / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"none of the 12 images could be read; the first is \S+blue_0\.jpg \(the file is"
    ):
        run(image_folder)


WILD = ("optim.lr=1e30", "schedule.warmup_epochs=0", "schedule.name=constant")


def test_a_loss_that_is_not_finite_names_the_updates_and_the_last_good_checkpoint(image_folder: Path) -> None:
    first = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    state = first / "last" / "state.pt"
    advice = r"; lower optim\.lr, or set optim\.clip_norm=1 or train\.precision=float32"
    with pytest.raises(
        TrainingError,
        match=rf"loss became (nan|inf) between updates 4 and \d; last good checkpoint: {state} \(epoch 1\){advice}",
    ):
        run(image_folder, "train.epochs=2", "train.log_every=3", *WILD, "augment.mixup=0.2", resume=first)
    weights = torch.load(state, weights_only=True)["model"]
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_weights_that_are_not_finite_are_not_saved(image_folder: Path) -> None:
    # one update an epoch: its loss is that of the weights before it
    with pytest.raises(
        TrainingError, match=r"weights became infinite between updates 1 and 1; last good checkpoint: none"
    ):
        run(
            image_folder, "train.batch_size=24", "optim.eps=1e-30", *WILD[1:], "optim.lr=3e38", "optim.weight_decay=1e3"
        )
    folder = image_folder.parent / "runs" / "tiny"
    assert not (folder / "best.safetensors").exists()
    assert not list((folder / "last").iterdir())


def test_an_average_that_is_too_slow_for_the_run_is_told(image_folder: Path) -> None:
    display = Notebook()
    run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "ema.decay=0.9999", display=display)
    assert display.warnings == [
        "ema.decay 0.9999 is slow for 3 updates: 100% of the weights that are evaluated and saved will be the initial "
        "ones; lower it, or set ema.decay=null"
    ]


def test_a_run_is_not_resumed_with_other_classes_or_another_model(image_folder: Path) -> None:
    folder = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0").folder
    with pytest.raises(CheckpointError, match=r"config\.yaml: was changed, and no longer describes the run's model"):
        run(image_folder, "train.epochs=2", "model.options.depth=2", resume=folder)
    for split in ("train", "val"):
        (image_folder / split / "red").rename(image_folder / split / "a")
    with pytest.raises(DataError, match=r"differences, as index: model / data = 0: blue / a; 1: green / blue"):
        run(image_folder, "train.epochs=2", resume=folder)


def test_a_batch_larger_than_the_data_is_refused_before_anything_is_written(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.batch_size 512 is more than the 24 training images"):
        run(image_folder, "train.batch_size=512")
    assert not (image_folder.parent / "runs").exists()


def test_a_name_that_exists_is_never_overwritten(image_folder: Path) -> None:
    run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=mine")
    with pytest.raises(ConfigError, match="exists; choose another"):
        run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=mine")
    first = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0")
    second = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0")
    assert (first.folder.name, second.folder.name) == ("tiny", "tiny-2")


def test_the_last_best_weights_are_kept_when_asked(tmp_path: Path) -> None:
    for text in ("one", "two", "three", "four"):
        keep_older(tmp_path, 3)
        (tmp_path / "best.safetensors").write_text(text)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "best.safetensors": "four",
        "best-2.safetensors": "three",
        "best-3.safetensors": "two",
    }


def test_model_options_cannot_say_twice_what_the_settings_say(image_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"model\.options\.num_classes: is not an option"):
        run(image_folder, "model.options.num_classes=7")


def test_due_is_true_every_so_often_and_at_the_end() -> None:
    assert [n for n in range(10) if due(n, 4, 10)] == [3, 7, 9]


def test_two_processes_make_the_updates_of_one(image_folder: Path) -> None:
    settings = ("train.epochs=2", "augment.scale=[0.9, 1.0]", "augment.repeats=2", "train.accumulate=2")
    alone = run(image_folder, *settings, "output.name=alone")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    tokens = command(image_folder, *settings, "output.name=pair")[1:]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*torchrun, *tokens], capture_output=True, text=True, env=environment, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("next: vitrail evaluate") == 1
    pair = image_folder.parent / "runs" / "pair"
    for a, b in zip(rows(alone.folder), rows(pair), strict=True):
        assert a["val_n"] == b["val_n"] == 12
        assert a["val_top1"] == b["val_top1"]
        assert math.isclose(a["train_loss"], b["train_loss"], rel_tol=1e-4)


def test_a_name_with_dollars_is_no_formula(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "output.name=q$x^$")
    assert (result.folder / "curves.png").stat().st_size > 10_000


def test_of_epochs_as_accurate_the_one_of_lower_loss_is_the_best(image_folder: Path) -> None:
    result = run(image_folder, "train.epochs=14", "optim.lr=1e-2")
    top1 = max(row["val_top1"] for row in result.rows)
    accurate = [row for row in result.rows if row["val_top1"] == top1]
    assert len(accurate) > 1
    assert result.best == min(accurate, key=lambda row: row["val_loss"])
