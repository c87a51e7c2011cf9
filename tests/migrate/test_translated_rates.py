"""Learning rates of other projects: ours are those that their programs execute."""

from __future__ import annotations

import math

import numpy as np
import pytest

from support.foreign import content, translated
from vitrail.config.commands import TrainConfig
from vitrail.migrate.translate import translate


def rates(config: TrainConfig, steps: int) -> list[float]:
    from vitrail.training.setup import build_schedule

    rate = build_schedule(config, steps)
    return [rate(update) for update in range((config.train.epochs + config.schedule.cooldown_epochs) * steps)]


def test_mindcvs_rate_is_what_mindcv_executes() -> None:
    steps, lr, floor = 7, 5e-4, 6e-6
    warmup = [lr * 0.00014 + (lr - lr * 0.00014) * i / (20 * steps) for i in range(20 * steps)]
    times = [min(i / steps, 100) for i in range(280 * steps)]
    cosine = [floor + (lr - floor) * 0.5 * (1 + math.cos(math.pi * t / 100)) for t in times]
    ours = rates(translated("tnt_s_gpu"), steps)
    np.testing.assert_allclose(ours, warmup + cosine, rtol=1e-9)
    assert ours[120 * steps :] == [floor] * (180 * steps)
    assert ours[20 * steps] == lr
    cut = rates(translated("tnt_s_gpu", epoch_size=50), steps)
    np.testing.assert_allclose(cut, (warmup + cosine)[: 50 * steps], rtol=1e-9)


@pytest.mark.parametrize(
    ("name", "factor", "base", "start", "floor", "warmup"),
    [
        ("tnt_s_patch16_224", 2.0, 5e-4, 7e-8, 6e-6, 20),
        ("t2t_vit_19", 1.0, 1e-3, 7e-6, 1e-5, 2),
        ("svt_s", 1.0, 1e-4, 1e-6, 1e-5, 20),
    ],
)
def test_the_zoos_rate_is_what_its_programs_execute(
    name: str, factor: float, base: float, start: float, floor: float, warmup: int
) -> None:
    steps, epochs = 5, 300

    def at(epoch: float) -> float:
        if epoch < warmup:
            return epoch / warmup * (base - start) + start
        return 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / (epochs - warmup))) * base

    theirs = [factor * max(at(epoch + batch / steps), floor) for epoch in range(epochs) for batch in range(steps)]
    np.testing.assert_allclose(rates(translated(name), steps), theirs, rtol=1e-9)


@pytest.mark.parametrize(("scheduler", "period"), [("multistep_lr", 30), ("exp_lr", 1)])
def test_the_zoos_other_curves_are_executed_too(scheduler: str, period: int) -> None:
    steps = 5
    ours = rates(translated("tnt_s_patch16_224", lr_scheduler=scheduler), steps)
    first = 0 if scheduler == "multistep_lr" else 20 * steps
    theirs = [2 * max(5e-4 * 0.97 ** (update / steps / period), 6e-6) for update in range(300 * steps)]
    np.testing.assert_allclose(ours[first:], theirs[first:], rtol=1e-9)


def test_what_is_about_training_alone_is_not_said_elsewhere() -> None:
    for name, flags, key in (
        ("t2t_vit_19", {"device_num": 8}, "device_num"),
        ("tnt_s_gpu", {"distribute": True}, "torchrun"),
        ("tnt_s_patch16_224", {"lr": 0.01}, "lr=0.01"),
        ("tnt_s_gpu", {"train_split": "val"}, "train_split"),
        ("t2t_vit_19", {"exclude_epoch_state": False, "pretrained": "a.ckpt"}, "exclude_epoch_state"),
    ):
        translation = translate(content(name), name, flags)
        assert key in " ".join(text for _, text in translation.remarks()), name
        for sections in (("weights", "data", "preprocess", "evaluate"), ("weights", "preprocess")):
            assert key not in " ".join(text for _, text in translation.remarks(sections)), name
