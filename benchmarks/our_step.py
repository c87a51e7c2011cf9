"""One step of our training loop on random images, as two benchmarks time it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from timm.utils.model_ema import ModelEmaV3

from vitrail.config.commands import TrainConfig
from vitrail.config.resolve import parse_command_line, resolve
from vitrail.data.loader import Batch
from vitrail.training.class_balance import Balance
from vitrail.training.initial_model import build_model, build_preprocess
from vitrail.training.losses import SingleLabelLoss
from vitrail.training.optim.optimizers import build_optimizer, set_learning_rate
from vitrail.training.step import StepContext, train_step
from vitrail.training.stopwatch import Stopwatch

SETTINGS = (
    "data.name=digits augment.erase_prob=0.25 augment.mixup=0.8 augment.cutmix=1.0 augment.label_smoothing=0.1 "
    "optim.clip_norm=1 ema.decay=0.9999"
)
CLASSES = 1000


def build_step(
    accelerator: Accelerator, name: str, batch_size: int, compiled: bool = False
) -> tuple[Callable[[], None], Any, Any]:
    """Return a step, and the model and the optimizer that it updates."""
    settings = [*SETTINGS.split(), f"model.name={name}", f"train.batch_size={batch_size}"]
    config = resolve(TrainConfig, [parse_command_line(settings)]).config
    optim = config.optim
    model = build_model(config, name, CLASSES).to(accelerator.device)
    preprocess = build_preprocess(config, name, model)
    optimizer = build_optimizer(
        model, name="adamw", lr=1e-4, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps,
        momentum=optim.momentum, nesterov=optim.nesterov, layer_decay=None,
    )  # fmt: skip
    ema = ModelEmaV3(model, decay=0.9999)
    if compiled:
        model.compile()
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    wrapped.train()
    pixels = torch.randint(0, 256, (batch_size, 3, *preprocess.size), dtype=torch.uint8)
    labels = torch.arange(batch_size)
    balance = Balance(torch.ones(CLASSES, device=accelerator.device), torch.zeros(CLASSES, device=accelerator.device))
    objective = SingleLabelLoss(balance, config.augment.label_smoothing)
    context = StepContext(config=config, accelerator=accelerator, preprocess=preprocess, objective=objective)
    watch = Stopwatch(accelerator.device, {})

    def step() -> None:
        set_learning_rate(optimizer, 1e-4)
        batch = Batch(pixels, labels, labels, labels, [])
        train_step(context, wrapped, optimizer, [batch], [1], watch)
        ema.update(model)

    return step, wrapped, optimizer
