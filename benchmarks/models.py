"""Time inference and training steps of our models against the same model elsewhere, in alternating rounds.

    uv run python benchmarks/models.py [MODEL ...]

TNT and Twins are compared with timm's. No package has T2T-ViT, so it is compared with its official formulation. A
training step is forward, backward and one AdamW step.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import nullcontext
from typing import Literal

import cyclopts
import timm
import torch
from official_t2t import OfficialT2TViT
from side_by_side import alternate, publish, speed_up
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vitrail.models.registry import create_model
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
    rounds: int = 9,
    device: str = "cpu",
    precision: Literal["fp32", "bf16", "fp16"] = "fp32",
    compile: bool = False,
    threads: int | None = None,
) -> None:
    """Print a table of medians and ratios, and write it beside this file."""
    torch.set_num_threads(threads or torch.get_num_threads())
    table = ["| model | | ours, ms | baseline, ms | speed-up | baseline |", "|-|-|-:|-:|-:|-|"]
    images = torch.randn(batch_size, 3, 224, 224, device=device)
    labels = torch.arange(batch_size, device=device)
    for name in names or ("tnt_s_patch16_224", "twins_svt_small", "t2t_vit_14"):
        baseline_name, baseline = build_baseline(name)
        for training in (False, True):
            steps = {
                whose: build_step(model, images, labels, training, compile, DTYPES[precision])
                for whose, model in (("ours", create_model(name)), ("baseline", baseline))
            }
            seconds = alternate(steps, rounds, warmups=2, device=device)
            ours, theirs = (1000 * statistics.median(seconds[whose]) for whose in steps)
            gain = speed_up(seconds["ours"], seconds["baseline"])
            what = "training step" if training else "inference"
            table.append(f"| {name} | {what} | {ours:.0f} | {theirs:.0f} | {gain:.2f} | {baseline_name} |")
    notes = [f"batch of {batch_size}, 224 px, {precision}{' compiled' if compile else ''}, {rounds} alternating rounds"]
    publish(
        "models",
        "Inference and training steps",
        [*notes, "medians; speed-up is the median within a round"],
        table,
        device,
    )


if __name__ == "__main__":
    cyclopts.run(main)
