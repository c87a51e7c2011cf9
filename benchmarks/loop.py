"""Measure what the training loop adds to a bare forward and backward pass.

    uv run python benchmarks/loop.py [MODEL]

A step of ours reads a uint8 batch, normalises, erases, mixes, makes soft targets, clips, updates the weights and their
average, and counts loss and accuracy. It is compared with forward and backward alone, and with those and AdamW.
"""

from __future__ import annotations

import statistics

import cyclopts
import torch
from side_by_side import alternate, publish
from timm.utils.model_ema import ModelEmaV3
from torch.nn.functional import cross_entropy

from vitrail.config import TrainConfig, command_line, resolve
from vitrail.data import Batch
from vitrail.engine import processes
from vitrail.job import build_model, build_preprocess
from vitrail.optim import build_optimizer, set_learning_rate
from vitrail.stopwatch import Stopwatch
from vitrail.train import train_step

SETTINGS = (
    "data.name=digits augment.erase_prob=0.25 augment.mixup=0.8 augment.cutmix=1.0 augment.label_smoothing=0.1 "
    "optim.clip_norm=1 ema.decay=0.9999"
)
CLASSES = 1000


def main(name: str = "tnt_s_patch16_224", batch_size: int = 8, rounds: int = 9, device: str = "cpu") -> None:
    """Measure, and write a page beside this file."""
    settings = [*SETTINGS.split(), f"model.name={name}", f"train.batch_size={batch_size}"]
    config = resolve(TrainConfig, [command_line(settings)]).config
    optim = config.optim
    with processes("float32", "cpu" if device == "cpu" else "auto") as accelerator:
        model = build_model(config, name, CLASSES).to(device)
        preprocess = build_preprocess(config, name, model)
        optimizer = build_optimizer(
            model, name="adamw", lr=1e-4, weight_decay=optim.weight_decay, betas=optim.betas, eps=optim.eps,
            momentum=optim.momentum, nesterov=optim.nesterov, layer_decay=None,
        )  # fmt: skip
        ema = ModelEmaV3(model, decay=0.9999)
        wrapped, optimizer = accelerator.prepare(model, optimizer)
        wrapped.train()
        watch = Stopwatch(accelerator.device, {})
        pixels = torch.randint(0, 256, (batch_size, 3, *preprocess.size), dtype=torch.uint8)
        labels = torch.arange(batch_size)
        images, on_device = torch.randn(batch_size, 3, *preprocess.size, device=device), labels.to(device)

        def bare() -> None:
            cross_entropy(wrapped(images), on_device).backward()

        def with_adamw() -> None:
            bare()
            optimizer.step()
            optimizer.zero_grad()

        def loop() -> None:
            set_learning_rate(optimizer, 1e-4)
            batch = Batch(pixels, labels, labels, labels, [])
            train_step(wrapped, optimizer, accelerator, [batch], config, preprocess, CLASSES, [1], watch)
            ema.update(model)

        seconds = alternate(
            {"forward + backward": bare, "with AdamW": with_adamw, "our loop": loop}, rounds, warmups=2, device=device
        )
    table = ["| | ms | over forward + backward |", "|-|-:|-:|"]
    for what, values in seconds.items():
        over = statistics.median(b / a - 1 for a, b in zip(seconds["forward + backward"], values, strict=True))
        table.append(f"| {what} | {1000 * statistics.median(values):.0f} | {100 * over:+.1f} % |")
    notes = [f"{name}, batch of {batch_size}, float32, medians of {rounds} alternating rounds", f"`{SETTINGS}`"]
    publish("loop", "Overhead of the training loop", notes, table, device)


if __name__ == "__main__":
    cyclopts.run(main)
