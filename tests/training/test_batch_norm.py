"""Models with batch norm: what is exact without one is exact with it too, or is said."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

import vitrail
from support.forked import TORCHRUN, python
from support.runs import Notebook, Signals, assert_same, assert_same_run, last_state
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, resolve
from vitrail.data.loader import Batch
from vitrail.display import Quiet
from vitrail.errors import ConfigError, Stopped
from vitrail.models.registry import create_model
from vitrail.training.batch_norm import copy_statistics, keep_statistics, list_statistics, put_back
from vitrail.training.class_balance import Balance
from vitrail.training.initial_model import build_model, build_preprocess
from vitrail.training.losses import SingleLabelLoss
from vitrail.training.optim.freezing import Freeze
from vitrail.training.setup import optimizer_of_settings
from vitrail.training.step import StepContext, train_step
from vitrail.training.stopwatch import Stopwatch
from vitrail.training.train import TrainResult, train
from vitrail.weights.checkpoint import read_metrics
from vitrail.weights.loading import load_model

SETTINGS = (
    "model.name=timm:test_resnet", "model.image_size=32", "data.workers=0", "data.check=false", "optim.lr=1e-3",
    "schedule.warmup_epochs=1", "train.epochs=3", "train.batch_size=8", "train.device=cpu", "train.log_every=1",
    "ema.decay=0.9",
)  # fmt: skip


def settle(images: Path, *settings: str) -> TrainConfig:
    root = f"output.root={images.parent / 'runs'}"
    layer = parse_command_line([f"data.root={images}", root, *SETTINGS, *settings])
    return resolve(TrainConfig, [layer]).config


def run(images: Path, *settings: str, resume: Path | None = None, display: Quiet | None = None) -> TrainResult:
    return train(settle(images, *settings), resume=resume, display=display)


def test_a_stopped_run_goes_on_with_its_statistics_to_the_last_bit(image_folder: Path) -> None:
    whole = run(image_folder, "output.name=whole").folder
    with pytest.raises(Stopped):
        run(image_folder, "output.name=stopped", display=Signals(5))
    stopped = whole.with_name("stopped")
    run(image_folder, "output.name=stopped", resume=stopped)
    assert_same_run(stopped, whole)
    saved = last_state(whole)["model"]
    assert int(saved["bn1.num_batches_tracked"]) == 9
    best = load_model(whole / "best.safetensors")
    assert not best.training
    assert best(torch.zeros(1, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("sam", ["null", "0.05"])
def test_an_update_that_is_left_out_leaves_the_statistics_as_they_were(sam: str) -> None:
    config = settle(Path("images"), f"optim.sam_rho={sam}")
    torch.manual_seed(0)
    model = build_model(config, config.model.name, 3).train()
    accelerator = Accelerator(cpu=True)
    context = StepContext(
        config=config,
        accelerator=accelerator,
        preprocess=build_preprocess(config, config.model.name, model),
        objective=SingleLabelLoss(Balance(torch.ones(3), torch.zeros(3)), 0.0),
    )
    optimizer = accelerator.prepare_optimizer(optimizer_of_settings(config, model))
    keys = torch.arange(8)
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    batch = Batch(pixels, keys % 3, keys, keys, [])
    poison = model.get_classifier().weight.register_hook(lambda gradient: gradient * torch.nan)
    before = copy_statistics(model)
    watch = Stopwatch(torch.device("cpu"), {})
    assert train_step(context, model, optimizer, [batch], [None], watch)[1]
    assert_same(list_statistics(model), before)
    poison.remove()
    assert not train_step(context, model, optimizer, [batch], [None], watch)[1]
    once = copy_statistics(model)
    assert int(once[2]) == 1  # also where SAM makes two passes
    assert not torch.equal(once[0], before[0])


@pytest.mark.parametrize(("images", "parts"), [(0, 1), (1, 1), (2, 2)])
def test_an_image_that_is_left_alone_is_trained_on(images: int, parts: int) -> None:
    """Where the others of its micro-batch cannot be read, or memory is short; its last map is a single pixel."""
    config = settle(Path("images"), "train.batch_size=2")
    torch.manual_seed(0)
    model = build_model(config, config.model.name, 3).train()
    accelerator = Accelerator(cpu=True)
    context = StepContext(
        config=config,
        accelerator=accelerator,
        preprocess=build_preprocess(config, config.model.name, model),
        objective=SingleLabelLoss(Balance(torch.ones(3), torch.zeros(3)), 0.0),
    )
    context.memory.parts = parts
    optimizer = accelerator.prepare_optimizer(optimizer_of_settings(config, model))
    keys = torch.arange(images)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    batch = Batch(pixels, keys % 3, keys, keys, [])
    before = copy_statistics(model)
    watch = Stopwatch(torch.device("cpu"), {})
    sums, is_skipped, _ = train_step(context, model, optimizer, [batch], [None], watch)
    assert (int(sums[2]), bool(is_skipped)) == (images, False)
    # the black image that stands for none is none that statistics are of
    assert torch.equal(list_statistics(model)[0], before[0]) == (images == 0)


def test_statistics_are_kept_and_put_back() -> None:
    model = create_model("timm:test_resnet", num_classes=2, image_size=32).train()
    before = copy_statistics(model)
    images = torch.randn(4, 3, 32, 32)
    with keep_statistics(model):
        model(images)
    assert_same(list_statistics(model), before)
    model(images)
    assert not torch.equal(list_statistics(model)[0], before[0])
    put_back(model, before, torch.tensor(False))
    assert not torch.equal(list_statistics(model)[0], before[0])
    put_back(model, before, torch.tensor(True))
    assert_same(list_statistics(model), before)
    assert list_statistics(create_model("timm:test_vit", num_classes=2)) == []


def test_frozen_parts_keep_their_statistics(image_folder: Path) -> None:
    begun = run(image_folder, "output.name=begun", "train.epochs=1", "schedule.warmup_epochs=0").folder
    weights = f"model.weights={begun / 'best.safetensors'}"
    frozen = run(image_folder, "output.name=frozen", weights, "freeze.until=head", "ema.decay=null").folder
    before, after = load_model(begun / "best.safetensors"), load_model(frozen / "best.safetensors")
    assert_same(list_statistics(after), list_statistics(before))
    assert not torch.equal(after.get_classifier().weight, before.get_classifier().weight)


def test_it_is_said_that_micro_batches_are_normalised_alone(image_folder: Path) -> None:
    display = Notebook()
    run(image_folder, "output.name=cut", "train.epochs=1", "schedule.warmup_epochs=0", "train.accumulate=4",
        "output.keep_best=2", "output.average_best=true", display=display)  # fmt: skip
    (warning,) = [one for one in display.warnings if "micro-batch" in one]
    assert warning.startswith(
        "timm:test_resnet has batch norm, which normalises each micro-batch of 2 images by itself"
    )
    assert any("output.average_best averages like weights" in one for one in display.warnings)
    with pytest.raises(ConfigError, match=r"needs at least 2 images in a micro-batch, and there is 1: train"):
        run(image_folder, "output.name=single", "train.accumulate=8")


def test_parts_of_a_residual_network_are_frozen_by_their_names() -> None:
    model = create_model("timm:test_resnet", num_classes=2, image_size=32)
    assert model.parts()[0] == "layer1.0"
    assert Freeze(model, "layer3.0").parameters
    with pytest.raises(ConfigError, match=r"^freeze.until is layer9.0; .* a part from layer1.0 to layer4.0, head; did"):
        Freeze(model, "layer9.0")
    unlayered = create_model("timm:pit_ti_224", num_classes=2)
    with pytest.raises(ConfigError, match="timm does not tell the layers of this model apart"):
        Freeze(unlayered, "transformers.0")
    assert Freeze(unlayered, "head").parameters


@pytest.mark.thorough
def test_all_ranks_evaluate_with_the_statistics_of_the_first(image_folder: Path) -> None:
    root = image_folder.parent / "runs"
    recipe = image_folder.parent / "residual.yaml"
    recipe.write_text("model: {name: timm:test_resnet}\n")
    places = [f"data.root={image_folder}", f"output.root={root}", "output.name=ranks"]
    launch = [*TORCHRUN, "--standalone", "--nproc-per-node", 2]
    done = python(*launch, "-m", "vitrail", "train", recipe, *SETTINGS, *places)
    assert done.returncode == 0, done.stderr
    best = root / "ranks" / "best.safetensors"
    row = read_metrics(best)
    assert row is not None
    measured = vitrail.evaluate(best, {"data.root": str(image_folder), "data.workers": 0}, progress=False)
    assert measured.numbers["loss"] == pytest.approx(row["val_loss"], rel=1e-5)
