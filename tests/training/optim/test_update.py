"""One update with every optimizer: made, or left out to the last bit; and the same in parts and in two passes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, get_args

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.testing import assert_close

from support.runs import TINY, assert_same
from vitrail.choices import OptimizerName
from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, read_yaml, resolve
from vitrail.data.loader import Batch
from vitrail.models.family import VisionModel
from vitrail.training.class_balance import Balance
from vitrail.training.initial_model import build_model, build_preprocess
from vitrail.training.losses import SingleLabelLoss
from vitrail.training.optim.optimizers import can_skip
from vitrail.training.optim.sharpness import ascend
from vitrail.training.setup import optimizer_of_settings
from vitrail.training.step import StepContext, prepare, train_step
from vitrail.training.stopwatch import Stopwatch

CLASSES, BATCH = 3, 8
every_optimizer = pytest.mark.parametrize("name", get_args(OptimizerName))


class Bench:
    """A tiny model with its optimizer, as a run prepares them, and images that come again."""

    def __init__(self, *settings: str, scaler: torch.amp.GradScaler | None = None) -> None:
        given = parse_command_line([f"train.batch_size={BATCH}", *settings])
        self.config = config = resolve(TrainConfig, [read_yaml(TINY), given]).config
        accelerator = Accelerator(cpu=True)
        # what Accelerate does with float16 on a GPU, here with the products in float32
        accelerator.scaler, accelerator.native_amp = scaler, scaler is not None
        torch.manual_seed(0)
        self.model: VisionModel = build_model(config, config.model.name, CLASSES)
        self.context = StepContext(
            config=config,
            accelerator=accelerator,
            preprocess=build_preprocess(config, config.model.name, self.model),
            objective=SingleLabelLoss(Balance(torch.ones(CLASSES), torch.zeros(CLASSES)), 0.1),
        )
        self.optimizer = accelerator.prepare_optimizer(optimizer_of_settings(config, self.model))
        self.model.train()
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8, generator=generator)
        self.labels = torch.arange(BATCH) % CLASSES

    def batches(self, parts: int = 1) -> list[Batch]:
        keys = torch.arange(BATCH)
        chunks = zip(*(tensor.chunk(parts) for tensor in (self.pixels, self.labels, keys)), strict=True)
        return [Batch(pixels, labels, keys, keys, []) for pixels, labels, keys in chunks]

    def step(self, parts: int = 1, mixing: int | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        keys: Sequence[int | None] = [mixing] * parts
        watch = Stopwatch(torch.device("cpu"), {})
        return train_step(self.context, self.model, self.optimizer, self.batches(parts), keys, watch)

    def state(self) -> Any:
        return copy.deepcopy([self.model.state_dict(), self.optimizer.state_dict()])


@every_optimizer
@pytest.mark.parametrize("made_before", [0, 2])
def test_an_update_whose_gradient_is_not_a_number_changes_nothing(name: str, made_before: int) -> None:
    bench, spared = Bench(f"optim.name={name}"), Bench(f"optim.name={name}")
    for _ in range(made_before):
        bench.step()
        spared.step()
    before = bench.state()
    poison = bench.model.head.weight.register_hook(lambda gradient: gradient * torch.nan)
    for _ in range(2):
        _, is_skipped, norm = bench.step()
        assert is_skipped
        assert norm.isnan()
    weights, optimizer = bench.state()
    assert_same(weights, before[0])
    for number, moments in before[1]["state"].items():
        assert_same(optimizer["state"][number], moments, f"moments of {number}")
    for moments in optimizer["state"].values():  # a fused kernel has made its moments, which are still 0
        assert all(not value.any() for value in moments.values() if made_before == 0)
    assert_same(optimizer["param_groups"], before[1]["param_groups"])

    # on from there as if nothing had been
    poison.remove()
    for _ in range(2):
        bench.step()
        spared.step()
    assert_same(bench.state(), spared.state())


@every_optimizer
@pytest.mark.parametrize("sam", ["null", "0.05"])
def test_a_loss_scale_that_overflows_is_lowered_and_nothing_else_changes(
    name: str, sam: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"optim.name={name}", f"optim.sam_rho={sam}", "optim.clip_norm=1")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled, plain = Bench(*settings, scaler=scaler), Bench(*settings)
    monkeypatch.setattr(scaled.context.accelerator.state, "_mixed_precision", "fp16")
    before = scaled.state()
    poison = scaled.model.head.weight.register_hook(lambda gradient: gradient * torch.inf)
    assert scaled.step()[1]
    poison.remove()
    assert_same(scaled.state()[0], before[0])
    assert scaler.get_scale() == 2.0**9
    for _ in range(2):
        assert not scaled.step()[1]
    monkeypatch.undo()
    for _ in range(2):
        plain.step()
    assert_same(scaled.state(), plain.state())  # as the scale is a power of two


@every_optimizer
def test_an_optimizer_says_whether_it_leaves_an_update_out_by_itself(name: str) -> None:
    bench = Bench(f"optim.name={name}")
    optimizer = bench.optimizer.optimizer
    assert can_skip(optimizer) is (name in ("adamw", "sgd"))
    before = copy.deepcopy(bench.model.state_dict())
    for parameter in bench.model.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    is_unchanged = all(torch.equal(tensor, before[key]) for key, tensor in bench.model.state_dict().items())
    assert is_unchanged is can_skip(optimizer)


@every_optimizer
@pytest.mark.parametrize("clip_norm", ["null", "0.01"])
def test_parts_of_a_batch_make_the_update_of_the_whole(name: str, clip_norm: str) -> None:
    settings = f"optim.name={name}", f"optim.clip_norm={clip_norm}", "optim.lr=1e-4", "schedule.min_lr=0"
    whole, parted = Bench(*settings), Bench(*settings)
    norms = [whole.step()[2], parted.step(parts=4)[2]]
    assert_close(*norms, rtol=1e-5, atol=0)
    # the sign of a gradient that is 0 but for rounding decides a whole step of some
    largest = max(
        float((a - b).detach().abs().quantile(0.99))
        for a, b in zip(whole.model.parameters(), parted.model.parameters(), strict=True)
    )
    assert largest < 2e-6


@every_optimizer
def test_every_optimizer_learns_the_images_it_sees_again(name: str) -> None:
    rate = {"sgd": "0.05", "lion": "3e-4", "lamb": "0.02"}.get(name, "3e-3")
    bench = Bench(f"optim.name={name}", f"optim.lr={rate}", "optim.clip_norm=1")
    losses = [float(bench.step()[0][0]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


def test_muon_updates_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    bench = Bench("optim.name=muon")
    names = {parameter: name for name, parameter in bench.model.named_parameters()}
    by_muon = {
        names[parameter] for group in bench.optimizer.param_groups for parameter in group["params"] if group["use_muon"]
    }
    assert by_muon == {
        f"blocks.0.{layer}.weight"
        for layer in (
            *(f"{half}_attn.{part}" for half in ("inner", "outer") for part in ("qk", "v", "proj")),
            *(f"{half}_mlp.{part}" for half in ("inner", "outer") for part in ("fc1", "fc2")),
            "proj",
        )
    }
    bench.step()
    assert {names[p] for p, state in bench.optimizer.state.items() if "momentum_buffer" in state} == by_muon


def test_sharpness_aware_minimization_takes_the_gradient_uphill_of_the_weights() -> None:
    settings = "optim.name=sgd", "optim.momentum=0", "optim.weight_decay=0", "optim.lr=1", "schedule.min_lr=0"
    bench = Bench(*settings, "optim.sam_rho=0.05")
    plain = Bench(*settings)
    loss, is_skipped, norm = bench.step(parts=2)
    assert not is_skipped

    # by hand: up by rho along the whole gradient, and the gradient there
    def gradients() -> list[torch.Tensor]:
        plain.model.zero_grad()
        images, targets = prepare(plain.context, plain.batches()[0], None)
        (plain.context.objective.loss(plain.model(images), targets) / BATCH).backward()
        return [p.grad.clone() for p in plain.model.parameters() if p.grad is not None]

    trained = [parameter for parameter in plain.model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    first = gradients()
    length = torch.cat([gradient.flatten() for gradient in first]).norm()
    with torch.no_grad():
        for parameter, gradient in zip(trained, first, strict=True):
            parameter += 0.05 * gradient / length
    uphill = gradients()
    assert_close(norm, torch.cat([gradient.flatten() for gradient in uphill]).norm(), rtol=1e-4, atol=0)
    assert not torch.allclose(norm, length, rtol=1e-3)
    updated = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    for found, weights, gradient in zip(updated, before, uphill, strict=True):
        assert_close(found.detach(), weights - gradient, rtol=1e-4, atol=1e-5)
    # what is told is the loss of the weights themselves
    assert_close(loss[0].float(), Bench(*settings).step()[0][0].float(), rtol=1e-5, atol=0)


def test_a_gradient_that_is_not_a_number_leaves_the_weights_under_sharpness_aware_minimization() -> None:
    bench = Bench("optim.sam_rho=0.05")
    before = copy.deepcopy(bench.model.state_dict())
    bench.model.head.weight.register_hook(lambda gradient: gradient * torch.nan)
    _, is_skipped, _ = bench.step()
    assert is_skipped
    assert_same(bench.model.state_dict(), before)


def test_weights_come_back_to_the_bit_after_the_way_uphill() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    model(torch.randn(4, 5)).sum().backward()
    before = copy.deepcopy(model.state_dict())
    with ascend(model, 0.3):
        moved = torch.cat([(p - before[key]).flatten() for key, p in model.named_parameters()])
        assert_close(moved.detach().norm(), torch.tensor(0.3))
    assert_same(dict(model.state_dict()), dict(before))


@pytest.mark.parametrize("parts", [2, 3, 8])
def test_a_micro_batch_in_parts_makes_the_same_update(parts: int) -> None:
    settings = "optim.name=sgd", "augment.mixup=0.8"
    whole, cut = Bench(*settings), Bench(*settings)
    cut.context.memory.parts = parts
    for _ in range(2):
        first, second = whole.step(mixing=7), cut.step(mixing=7)
        assert_close(second[0], first[0], rtol=1e-6, atol=0)
        assert second[0][2] == BATCH
        assert_close(second[2], first[2], rtol=1e-5, atol=0)
    for found, expected in zip(cut.model.parameters(), whole.model.parameters(), strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [2, 4 * BATCH])
@pytest.mark.parametrize("settings", [(), ("optim.sam_rho=0.05",)])
def test_a_micro_batch_without_readable_images_has_one_part_and_no_weight(
    parts: int, settings: tuple[str, ...]
) -> None:
    whole = Bench("optim.name=sgd", "train.accumulate=2", *settings)
    cut = Bench("optim.name=sgd", "train.accumulate=2", *settings)
    cut.context.memory.parts = parts
    nothing = torch.empty(0, dtype=torch.int64)
    empty = Batch(cut.pixels[:0], nothing, nothing, nothing, [])
    results = []
    for bench in (whole, cut):
        for order in ([*bench.batches(2)[:1], empty], [empty, *bench.batches(2)[:1]], [empty, empty]):
            watch = Stopwatch(torch.device("cpu"), {})
            results.append(train_step(bench.context, bench.model, bench.optimizer, order, [7, None], watch))
    assert [int(sums[2]) for sums, _, _ in results] == [4, 4, 0] * 2
    for found, expected in zip(cut.model.parameters(), whole.model.parameters(), strict=True):
        assert_close(found, expected, rtol=1e-5, atol=1e-6)
