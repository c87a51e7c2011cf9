"""The learning rate of every update against timm's schedulers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.scheduler import Scheduler
from timm.scheduler.step_lr import StepLRScheduler

from vitrail.config.commands import TrainConfig
from vitrail.config.sections import DataSection
from vitrail.config.training_sections import OptimSection, ScheduleSection, TrainSection
from vitrail.training.optim.schedule import learning_rate
from vitrail.training.setup import build_schedule

DEFAULTS: dict[str, Any] = {
    "name": "cosine",
    "peak": 1e-3,
    "warmup_start": 1e-6,
    "floor": 1e-5,
    "warmup_updates": 20,
    "total_updates": 120,
    "decay_updates": 30,
    "decay_rate": 0.1,
}


def rates(updates: int = 150, **settings: Any) -> list[float]:
    return [learning_rate(update, **{**DEFAULTS, **settings}) for update in range(updates)]


def timm_rates(build: type[Scheduler], updates: int, peak: float, **settings: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = build(optimizer, t_in_epochs=False, warmup_prefix=False, **settings)
    found = []
    for update in range(updates):
        scheduler.step_update(update)
        found.append(optimizer.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize(
    ("total", "warmup", "peak", "start", "floor"),
    [
        (120, 20, 1e-3, 1e-6, 1e-5),
        (120, 0, 1e-3, 0.0, 0.0),
        (97, 13, 5e-4, 1e-7, 2e-6),
        (100, 100, 1e-3, 1e-6, 1e-5),
        (7, 3, 0.1, 0.05, 0.0),
        (1, 0, 0.1, 0.0, 0.01),
    ],
)
def test_cosine_with_its_cooldown_equals_timms(
    total: int, warmup: int, peak: float, start: float, floor: float
) -> None:
    ours = rates(total + 10, peak=peak, warmup_start=start, floor=floor, warmup_updates=warmup, total_updates=total)
    theirs = timm_rates(
        CosineLRScheduler,
        total + 10,
        peak,
        t_initial=total,
        lr_min=floor,
        warmup_t=warmup,
        warmup_lr_init=start,
    )
    assert ours == pytest.approx(theirs, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize(("decay", "warmup", "rate"), [(30, 20, 0.1), (30, 0, 0.5), (12.5, 40, 0.97), (200, 5, 0.1)])
def test_step_equals_timms(decay: float, warmup: int, rate: float) -> None:
    ours = rates(name="step", floor=0.0, warmup_updates=warmup, decay_updates=decay, decay_rate=rate)
    theirs = timm_rates(
        StepLRScheduler, 150, 1e-3, decay_t=decay, decay_rate=rate, warmup_t=warmup, warmup_lr_init=1e-6
    )
    assert ours == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("prefix", [True, False])
def test_a_line_is_that_of_torch(prefix: bool) -> None:
    ours = rates(120, name="linear", floor=0.0, warmup_prefix=prefix)
    begin = 20 if prefix else 0
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    line = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=120 - begin)
    for update in range(begin, 120):
        if update >= 20:
            assert ours[update] == pytest.approx(line.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        line.step()
    assert rates(150, name="linear")[120:] == [1e-5] * 30


def test_exponential_falls_by_one_factor_each_update() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5 ** (1 / 30))
    theirs = []
    for _ in range(150):
        theirs.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    ours = rates(name="exponential", floor=0.0, warmup_updates=0, decay_rate=0.5)
    assert ours == pytest.approx(theirs, rel=1e-9)  # torch multiplies 150 times
    assert ours[30] == pytest.approx(0.5e-3, rel=1e-12)


def test_exponential_and_step_meet_at_whole_periods() -> None:
    step, exponential = (rates(name=name, floor=0.0, warmup_updates=0) for name in ("step", "exponential"))
    assert step[::30] == pytest.approx(exponential[::30], rel=1e-12)
    assert all(a >= b for a, b in zip(step, exponential, strict=True))


def test_constant_stays_at_its_peak_after_the_warm_up() -> None:
    found = rates(name="constant")
    assert found[20:] == [1e-3] * 130
    assert found[0] == 1e-6


@pytest.mark.parametrize("name", ["cosine", "linear", "step", "exponential", "constant"])
def test_warm_up_is_a_straight_climb_from_its_start(name: str) -> None:
    found = rates(name=name)[:20]
    assert found[0] == 1e-6
    steps = [b - a for a, b in itertools.pairwise(found)]
    assert steps == pytest.approx([(1e-3 - 1e-6) / 20] * 19, rel=1e-9)


@pytest.mark.parametrize("name", ["cosine", "linear", "step", "exponential", "constant"])
def test_without_warm_up_the_first_update_is_at_the_peak(name: str) -> None:
    assert rates(1, name=name, warmup_updates=0) == [1e-3]


@pytest.mark.parametrize("name", ["cosine", "linear", "step", "exponential"])
def test_rate_never_rises_after_the_warm_up_and_ends_at_the_floor(name: str) -> None:
    found = rates(400, name=name)[20:]
    assert all(b <= a for a, b in itertools.pairwise(found))
    assert found[-1] == 1e-5
    assert min(found) == 1e-5


def test_cosine_is_halfway_down_in_the_middle() -> None:
    assert rates(name="cosine")[60] == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-12)


def test_warm_up_may_end_within_an_update() -> None:
    found = rates(name="constant", warmup_updates=2.5)
    assert found[2] == pytest.approx(1e-6 + (1e-3 - 1e-6) * 2 / 2.5)
    assert found[3] == 1e-3
    assert all(map(math.isfinite, found))


def test_a_prefixed_warmup_is_timms_too() -> None:
    ours = rates(150, warmup_prefix=True)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = CosineLRScheduler(
        optimizer, t_initial=100, lr_min=1e-5, warmup_t=20, warmup_lr_init=1e-6, warmup_prefix=True, t_in_epochs=False
    )
    for update, rate in enumerate(ours):
        scheduler.step_update(update)
        assert math.isclose(rate, optimizer.param_groups[0]["lr"], rel_tol=1e-12)
    assert ours[20] == 1e-3
    assert ours[120:] == [1e-5] * 30


def test_a_warmup_as_long_as_the_run_leaves_the_floor() -> None:
    assert rates(22, warmup_prefix=True, warmup_updates=20, total_updates=20)[19:] == [
        pytest.approx(1e-6 + (1e-3 - 1e-6) * 0.95), 1e-5, 1e-5,
    ]  # fmt: skip


def test_a_cosine_of_its_own_length_ends_early_or_is_cut_off() -> None:
    early = rates(120, cosine_updates=60)
    assert early[60:] == [1e-5] * 60
    assert early[59] > 1e-5
    assert rates(60, cosine_updates=120) == rates(60)
    assert rates(120, cosine_updates=60, warmup_prefix=True)[80:] == [1e-5] * 40


def test_a_clipped_cosine_falls_to_zero_and_no_rate_is_below_the_floor() -> None:
    ours = rates(120, clip=True, warmup_prefix=True)
    assert ours[0] == 1e-5
    plain = rates(120, floor=0.0, warmup_prefix=True)
    assert ours == [max(rate, 1e-5) for rate in plain]
    assert min(plain) < 1e-6


@pytest.mark.parametrize("name", ["step", "exponential"])
def test_the_other_curves_begin_after_a_prefixed_warmup(name: str) -> None:
    later, plain = rates(name=name, warmup_prefix=True), rates(name=name, warmup_updates=0)
    assert later[20:] == plain[:-20]


@pytest.mark.parametrize("name", ["cosine", "step"])
def test_by_the_epoch_the_rate_is_that_of_timms_scheduler_in_epochs(name: str) -> None:
    config = TrainConfig(
        data=DataSection(name="digits"),
        optim=OptimSection(lr=1e-3),
        schedule=ScheduleSection(name=name, step="epoch", warmup_epochs=5, cooldown_epochs=10, decay_epochs=7),  # pyright: ignore[reportArgumentType]
        train=TrainSection(epochs=30),
    )
    steps = 13
    rate = build_schedule(config, steps)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    settings = {"warmup_t": 5, "warmup_lr_init": 1e-6, "warmup_prefix": False}
    scheduler: Scheduler = (
        CosineLRScheduler(optimizer, 30, lr_min=1e-5, **settings)
        if name == "cosine"
        else StepLRScheduler(optimizer, decay_t=7, decay_rate=0.1, **settings)
    )
    for epoch in range(40):
        scheduler.step(epoch)
        expected = optimizer.param_groups[0]["lr"]
        expected = max(expected, 1e-5) if epoch >= 5 else expected  # our floor holds for steps too
        assert [rate(epoch * steps + step) for step in range(steps)] == [pytest.approx(expected)] * steps
