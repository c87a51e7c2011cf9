"""Time inference and training steps of our models against the same model elsewhere, in alternating rounds.

    uv run python benchmarks/models.py [MODEL ...]

TNT and Twins are compared with timm's. No package has T2T-ViT, so it is compared with its official formulation. A
training step is forward, backward and one AdamW step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from itertools import product
from typing import Literal

import cyclopts
import timm
import torch
from official_t2t import OfficialT2TViT
from side_by_side import alternate, publish, speed_up
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vitrail.devices import keep_freed_memory
from vitrail.kernels.prepare import describe_kernels, prepare_kernels
from vitrail.models.registry import create_model, kernels_of
from vitrail.models.t2t_vit import T2TViT

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_baseline(name: str) -> tuple[str, nn.Module]:
    """Build what a model is compared with, and say what it is."""
    if timm.is_model(name):
        return "timm", timm.create_model(name)
    model = create_model(name)
    assert isinstance(model, T2TViT)
    return "official formulation", OfficialT2TViT(model)


def build_step(
    model: nn.Module, images: Tensor, labels: Tensor, training: bool, compiled: bool, dtype: torch.dtype | None
) -> Callable[[], None]:
    """Build the function that is timed."""
    model = model.to(images.device).train(training)
    forward = torch.compile(model) if compiled else model
    # the gradient scaler of fp16 is left out: it costs the same everywhere
    precision = torch.autocast(images.device.type, dtype) if dtype else nullcontext()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)

    def infer() -> None:
        with torch.inference_mode(), precision:
            forward(images)

    def train() -> None:
        with precision:
            loss = cross_entropy(forward(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return train if training else infer


def main(
    *names: str,
    batch_size: int = 8,
    rounds: int = 7,
    device: str = "cpu",
    precisions: tuple[Literal["fp32", "bf16", "fp16"], ...] = ("fp32", "bf16"),
    threads: int | None = None,
) -> None:
    """Print a table of medians and ratios, eager and compiled, and write it beside this file."""
    torch.set_num_threads(threads or torch.get_num_threads())
    keep_freed_memory()  # as all that vitrail runs; the baseline gains by it too
    table = ["| model | | ours, ms | baseline, ms | speed-up | baseline |", "|-|-|-:|-:|-:|-|"]
    images = torch.randn(batch_size, 3, 224, 224, device=device)
    labels = torch.arange(batch_size, device=device)
    for name in names or ("tnt_s_patch16_224", "twins_svt_small", "twins_pcpvt_small", "t2t_vit_14"):
        prepare_kernels(kernels_of(name), device, print)
        baseline_name, baseline = build_baseline(name)
        models = {"ours": create_model(name), "baseline": baseline}
        for training, compiled, precision in product((False, True), (False, True), precisions):
            torch.compiler.reset()
            steps = {
                whose: build_step(model, images, labels, training, compiled, DTYPES[precision])
                for whose, model in models.items()
            }
            seconds = alternate(steps, rounds, warmups=2, device=device)
            ours, theirs = (1000 * statistics.median(seconds[whose]) for whose in steps)
            gain = speed_up(seconds["ours"], seconds["baseline"])
            what = f"{'training step' if training else 'inference'}, {'compiled' if compiled else 'eager'}, {precision}"
            table.append(f"| {name} | {what} | {ours:.0f} | {theirs:.0f} | {gain:.2f} | {baseline_name} |")
            print(table[-1], flush=True)
    notes = [
        f"batch of {batch_size}, 224 px, {rounds} alternating rounds, bf16 and fp16 by autocast",
        "medians; speed-up is the median within a round",
        "the official formulation of T2T-ViT has its performers in bf16 too, ours in fp32",
        f"kernels: {describe_kernels()}",
    ]
    publish("models", "Inference and training steps", notes, table, device)


if __name__ == "__main__":
    cyclopts.run(main)
