"""Time per multiply-add of our models relative to DeiT-S of timm, in the same engine and type, in alternating rounds.

uv run python benchmarks/yardstick.py
uv run python benchmarks/yardstick.py --batch-size 128 --device cuda

1.00 is what arithmetic alone would cost: TNT-S has 1.13 times the multiply-adds of DeiT-S. Inference is a forward
pass, training a forward and a backward pass.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext

import cyclopts
import timm
import torch
from side_by_side import alternate, publish
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitrail.devices import keep_freed_memory
from vitrail.kernels.prepare import describe_kernels, prepare_kernels
from vitrail.models.registry import create_model, kernels_of

MEASURE = "deit_small_patch16_224"
MODELS = ("tnt_s_patch16_224", "twins_svt_small", "twins_pcpvt_small", "t2t_vit_14", "t2t_vit_t_14")


def count_macs(model: nn.Module) -> int:
    """Return the multiply-adds of an image."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 224, 224))
    return counter.get_total_flops() // 2


def build(model: nn.Module, images: Tensor, training: bool, low: bool) -> Callable[[], None]:
    """Return what is timed."""
    precision = torch.autocast(images.device.type, torch.bfloat16) if low else nullcontext()

    def infer() -> None:
        with torch.inference_mode(), precision:
            model.eval()(images)

    def train() -> None:
        with precision:
            loss = model.train()(images).float().logsumexp(1).mean()
        loss.backward()
        model.zero_grad()

    return train if training else infer


def main(*models: str, batch_size: int = 8, rounds: int = 7, device: str = "cpu") -> None:
    """Measure, and write a page beside this file."""
    keep_freed_memory()  # as all that vitrail runs; timm's models gain by it too
    names = models or MODELS
    for name in names:
        prepare_kernels(kernels_of(name), device, print)
    built: dict[str, nn.Module] = {MEASURE: timm.create_model(MEASURE)}
    built |= {name: create_model(name) for name in names}
    macs = {name: count_macs(model) for name, model in built.items()}
    images = torch.randn(batch_size, 3, 224, 224, device=device)
    table = ["| model | multiply-adds, G | | ms | of DeiT-S | by multiply-add |", "|-|-:|-|-:|-:|-:|"]
    for training in (False, True):
        for low in (False, True):
            subjects = {name: build(model.to(device), images, training, low) for name, model in built.items()}
            seconds = alternate(subjects, rounds, device=device)
            for name in names:
                pairs = zip(seconds[name], seconds[MEASURE], strict=True)
                ratio = statistics.median(ours / theirs for ours, theirs in pairs)
                each = ratio * macs[MEASURE] / macs[name]
                what = f"{'training' if training else 'inference'}, {'bfloat16' if low else 'float32'}"
                ms = f"{1000 * statistics.median(seconds[name]):.0f}"
                table.append(f"| {name} | {macs[name] / 1e9:.2f} | {what} | {ms} | {ratio:.2f} | {each:.2f} |")
    notes = [
        f"batch of {batch_size}, 224 px, medians of {rounds} alternating rounds, PyTorch eager",
        f"DeiT-S is timm's {MEASURE}, {macs[MEASURE] / 1e9:.2f} G multiply-adds",
        f"kernels: {describe_kernels()}",
    ]
    publish("yardstick", "Time per multiply-add, relative to DeiT-S", notes, table, device)


if __name__ == "__main__":
    cyclopts.run(main)
