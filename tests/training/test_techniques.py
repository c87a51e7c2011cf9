"""Optimizers and techniques of fine-tuning in whole runs: what they change, and that they go on to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file

import vitrail.training.step
from support.runs import EVERYTHING, Notebook, Signals, assert_same_run, assert_same_weights, last_state, run
from vitrail.choices import OptimizerName
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, resolve
from vitrail.errors import ConfigError, Stopped, TrainingError
from vitrail.evaluation.evaluate import evaluate
from vitrail.models.registry import FAMILIES
from vitrail.training.run.state import list_states
from vitrail.training.step import StepContext
from vitrail.training.train import train
from vitrail.weights.checkpoint import read_metrics
from vitrail.weights.loading import load_model


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


@pytest.mark.thorough
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


@pytest.mark.thorough
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
        "freeze.until=head keeps weights as they are, which would be random; give weights to begin with, "
        "model.weights=FILE or fork=RUN"
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


@pytest.mark.parametrize("average", ["null", "0.5"])
def test_a_run_with_adapters_keeps_the_merged_weights_and_goes_on_to_the_last_bit(
    image_folder: Path, average: str
) -> None:
    weights = pretrained(image_folder)
    more = (
        "train.epochs=3", "lora.rank=4", "lora.dropout=0.1", f"ema.decay={average}", "train.accumulate=2",
        "optim.lr=1e-2", "output.keep_best=2",
    )  # fmt: skip
    folder = assert_goes_on(image_folder, weights, *more)
    first, best = folder.with_name("pretrained") / "best.safetensors", folder / "best.safetensors"
    adapted = ("blocks.0.inner_attn.", "blocks.0.inner_mlp.", "blocks.0.outer_attn.", "blocks.0.outer_mlp.", "head.")
    before, after = load_file(first), load_file(best)
    assert before.keys() == after.keys()
    for name in before:
        is_changed = name.startswith(adapted) and (name.endswith(".weight") or name.startswith("head."))
        assert torch.equal(before[name], after[name]) is not is_changed, name

    # every verb takes the file, and finds what the run has measured
    row = read_metrics(best)
    assert row is not None
    metrics = evaluate(best, [parse_command_line([f"data.root={image_folder}"])]).accuracy.numbers()
    assert metrics["top1"] == row["val_top1"]
    assert metrics["loss"] == pytest.approx(row["val_loss"], abs=1e-5)

    # a fork begins with the merged weights, with adapters of its own or without
    for setting in ("lora.rank=2", "lora.rank=null"):
        run(image_folder, "train.epochs=1", "schedule.warmup_epochs=0", "optim.lr=1e-5", "schedule.min_lr=0", setting,
            "output.name=forked", fork=folder)  # fmt: skip
        state = last_state(folder.with_name("forked"))
        assert any("lora_A" in name for name in state["model"]) is (setting == "lora.rank=2")
        shutil.rmtree(folder.with_name("forked"))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["tnt_ti_patch16_224", "t2t_vit_7", "twins_svt_small"])
def test_every_family_is_fine_tuned_at_a_larger_size_of_images(image_folder: Path, name: str) -> None:
    family = next(family for family in FAMILIES if name in family.variants)
    shape = {key: list(value) if isinstance(value, tuple) else value for key, value in family.tiny.items()}
    small, larger = shape.pop("image_size"), [96, 128]
    del shape["num_classes"]
    options = [f"model.options.{key}={value}" for key, value in shape.items()]
    common = (
        f"data.root={image_folder}", "data.workers=0", "data.check=false", f"model.name={name}", *options,
        f"output.root={image_folder.parent / 'runs'}", "model.drop_path_rate=0.1",
        "train.epochs=1", "schedule.warmup_epochs=0", "train.batch_size=8", "train.device=cpu",
    )  # fmt: skip

    def tune(*settings: str) -> Path:
        return train(resolve(TrainConfig, [parse_command_line([*common, *settings])]).config).folder

    first = tune(f"model.image_size={small}", "output.name=small") / "best.safetensors"
    more = (f"model.weights={first}", f"model.image_size={larger}", "optim.layer_decay=0.75", "freeze.until=norm")
    folder = tune(*more, "output.name=large")
    before, after = load_file(first), load_file(folder / "best.safetensors")
    assert before.keys() == after.keys()
    others = {key for key in before if before[key].shape != after[key].shape}
    assert others == {key for key in before if key in (*family.positions, *family.unread)}
    for key in before.keys() - others:
        assert torch.equal(before[key], after[key]) is not key.startswith(("norm.", "head.")), key
    for key in family.positions:
        assert after[key].shape[1] == 1 + (96 // 16) * (128 // 16)
    model = load_model(folder / "best.safetensors")
    assert model.config.image_size == (96, 128)
    image = next(path for path in image_folder.rglob("*") if path.is_file())
    assert model.preprocess is not None
    assert model(model.preprocess(image).unsqueeze(0)).isfinite().all()
    assert evaluate(folder / "best.safetensors", [parse_command_line([f"data.root={image_folder}"])]).accuracy.n == 12


def test_the_best_weights_are_averaged_at_the_end_and_again_when_the_run_is_longer(image_folder: Path) -> None:
    more = ("optim.lr=1e-3", "train.monitor=val_loss", "output.keep_best=3", "output.average_best=true")
    display = Notebook()
    result = run(image_folder, *more, display=display)
    path = result.folder / "average.safetensors"
    best = {name: load_file(result.folder / f"{name}.safetensors") for name in ("best", "best-2", "best-3")}
    for name, tensor in load_file(path).items():
        expected = torch.stack([weights[name].double() for weights in best.values()]).mean(0)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)
    row = read_metrics(path)
    assert row is not None
    assert row["epochs"] == [4, 3, 2]
    found = evaluate(path, [parse_command_line([f"data.root={image_folder}"])]).accuracy.numbers()
    assert found["loss"] == pytest.approx(row["val_loss"], abs=1e-6)
    assert display.notes[-1] == (
        f"{path}: the average of 3 epochs has val_loss {row['val_loss']:.4g}, best.safetensors "
        f"{result.best['val_loss']:.4g}"
    )

    # one that is lost is made again, one that is there is not, and a longer run has another
    kept = path.rename(path.with_suffix(".kept"))
    run(image_folder, *more, resume=result.folder)
    assert_same_weights(path, kept)
    assert read_metrics(path) == row
    before = path.stat().st_mtime_ns
    run(image_folder, *more, resume=result.folder)
    assert path.stat().st_mtime_ns == before
    run(image_folder, *more, "train.epochs=6", resume=result.folder)
    longer = read_metrics(path)
    assert longer is not None
    assert longer["epochs"] == [6, 5, 4]


def test_a_single_best_epoch_is_not_averaged(image_folder: Path) -> None:
    display = Notebook()
    more = ("train.epochs=1", "schedule.warmup_epochs=0", "output.keep_best=3", "output.average_best=true")
    folder = run(image_folder, *more, display=display).folder
    assert not (folder / "average.safetensors").exists()
    assert "output.average_best: one epoch alone was the best so far, so there is nothing to average" in display.notes


def test_an_average_of_files_that_are_gone_does_not_fail_a_finished_run(image_folder: Path) -> None:
    more = ("optim.lr=1e-3", "train.monitor=val_loss", "output.keep_best=3")
    folder = run(image_folder, *more).folder
    (folder / "best-2.safetensors").unlink()
    display = Notebook()
    run(image_folder, *more, "output.average_best=true", resume=folder, display=display)
    assert not (folder / "average.safetensors").exists()
    (warning,) = display.warnings
    assert "best-2.safetensors" in warning
    assert warning.endswith("; the run is finished, but the average of its best weights is left out")


@pytest.mark.thorough
def test_a_run_that_was_cut_into_parts_is_cut_so_when_it_goes_on(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulate, calls = vitrail.training.step._accumulate_gradients, 0

    def short_once(context: StepContext, *rest: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise torch.OutOfMemoryError("out of memory, as a GPU says it")
        return accumulate(context, *rest)

    monkeypatch.setattr("vitrail.training.step._accumulate_gradients", short_once)
    more = ("train.epochs=3", "model.drop_path_rate=0.2", "augment.mixup=0.8", "ema.decay=0.9")
    display = Notebook()
    whole = run(image_folder, *more, "output.name=whole", display=display).folder
    assert display.warnings == [
        "memory is short: from update 4 on, each micro-batch is computed in 2 parts, which makes the same updates; "
        "train.accumulate=2 takes as little memory from the start"
    ]
    calls = 0
    stopped = whole.with_name("stopped")
    with pytest.raises(Stopped):
        run(image_folder, *more, "output.name=stopped", display=Signals(5))
    calls = 100
    run(image_folder, *more, "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)


def test_a_single_image_that_does_not_fit_is_an_error(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short(*arguments: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory, as a GPU says it")

    monkeypatch.setattr("vitrail.training.step._accumulate_gradients", short)
    with pytest.raises(TrainingError) as caught:
        run(image_folder, "train.batch_size=4", "train.accumulate=2")
    assert str(caught.value) == (
        "memory is too short for update 1, even with each micro-batch in 2 parts; take a smaller model.image_size or "
        "model, train.grad_checkpointing=true, or freeze.until ('out of memory, as a GPU says it')"
    )
