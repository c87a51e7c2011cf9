"""What a training step spends outside of the network: clipping, AdamW and the average of the weights.

uv run python benchmarks/update.py

Beside them, what memory alone would take of one pass over weights, gradients, both moments and the average: five are
read and four written. It is what AdamW and the average, in one kernel instead of two, could come down to.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import cyclopts
import torch
from accelerate import Accelerator
from our_step import build_step
from side_by_side import alternate, publish
from timm.utils.model_ema import ModelEmaV3

from vitrail.devices import keep_freed_memory
from vitrail.kernels.prepare import prepare_kernels
from vitrail.models.registry import kernels_of
from vitrail.training.step import _clip_gradients

MODELS = ("tnt_s_patch16_224", "t2t_vit_14", "twins_svt_small")
STREAMS = 9
"""Arrays of the weights' size that one pass reads or writes."""


def build_parts(name: str, batch_size: int, device: str) -> dict[str, Callable[[], object]]:
    """Return the whole step of a model, and its parts."""
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="bf16")
    step, model, optimizer = build_step(accelerator, name, batch_size)
    average = ModelEmaV3(model, decay=0.9999)
    flat = torch.zeros(sum(parameter.numel() for parameter in model.parameters()), device=device)
    other = torch.empty_like(flat)

    def step_and_keep_gradients() -> None:
        step()
        for parameter in model.parameters():  # which the step clears
            if parameter.requires_grad:
                parameter.grad = torch.full_like(parameter, 1e-4)

    return {
        "step": step_and_keep_gradients,
        "clip": lambda: _clip_gradients(model, 1e9),
        "AdamW": optimizer.optimizer.step,
        "average": lambda: average.update(model),
        "copy": lambda: other.copy_(flat),
    }


def main(*models: str, batch_size: int = 8, rounds: int = 7, device: str = "cpu") -> None:
    """Measure, and write a page beside this file."""
    keep_freed_memory()
    table = ["| model | step, ms | clip | AdamW | average | both in one pass, at best | gain at best, % of a step |"]
    table.append("|-|-:|-:|-:|-:|-:|-:|")
    for name in models or MODELS:
        prepare_kernels(kernels_of(name), device, print)
        parts = build_parts(name, batch_size, device)
        seconds = alternate(parts, rounds, device=device)
        ms = {part: 1000 * statistics.median(values) for part, values in seconds.items()}
        best = ms["copy"] * STREAMS / 2
        gain = 100 * (ms["AdamW"] + ms["average"] - best) / ms["step"]
        cells = [f"{ms[part]:.1f}" for part in ("step", "clip", "AdamW", "average")]
        table.append(f"| {name} | {' | '.join(cells)} | {best:.1f} | {gain:.1f} |")
    notes = [f"batch of {batch_size}, 224 px, bfloat16, medians of {rounds} rounds"]
    publish("update", "What a step spends outside of the network", notes, table, device)


if __name__ == "__main__":
    cyclopts.run(main)
