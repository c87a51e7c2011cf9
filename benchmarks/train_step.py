"""Time whole training steps, and their memory, beside timm's for the same model and the same work.

    uv run python benchmarks/train_step.py [MODEL ...] [--device cuda]

A step takes a batch of uint8 images, normalises and erases, mixes by Mixup or CutMix, smooths the labels, goes forward
and backward, clips the gradient's norm, updates the weights with AdamW and their average. timm's is put together from
its own parts as its training script does: PrefetchLoader's normalisation and RandomErasing, Mixup,
SoftTargetCrossEntropy, create_optimizer_v2, dispatch_clip_grad, ModelEmaV3.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Literal

import cyclopts
import timm
import torch
from our_step import CLASSES, SETTINGS, build_step
from side_by_side import alternate, publish, speed_up
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from timm.optim._optim_factory import create_optimizer_v2
from timm.utils.clip_grad import dispatch_clip_grad
from timm.utils.model_ema import ModelEmaV3

from vitrail.distributed.processes import processes
from vitrail.kernels.prepare import describe_kernels, prepare_kernels
from vitrail.models.registry import kernels_of

Whose = Literal["ours", "timm"]
joined = ExitStack()


def build_ours(name: str, batch_size: int, device: str, compiled: bool, bf16: bool) -> Callable[[], None]:
    """Return a step of the training loop."""
    prepare_kernels(kernels_of(name), device, lambda note: print(note, file=sys.stderr))
    precision = "bfloat16" if bf16 else "float32"
    joined.close()  # those of the way before
    accelerator = joined.enter_context(processes(precision, "cpu" if device == "cpu" else "auto"))
    return build_step(accelerator, name, batch_size, compiled)[0]


def build_timm(name: str, batch_size: int, device: str, compiled: bool, bf16: bool) -> Callable[[], None]:
    """Return a step of timm's training script."""
    model = timm.create_model(name, num_classes=CLASSES).to(device).train()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-4, weight_decay=0.05)
    ema = ModelEmaV3(model, decay=0.9999)
    forward = torch.compile(model) if compiled else model
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=CLASSES)
    erasing = RandomErasing(0.25, mode="pixel", device=device)
    mean, std = (255 * torch.tensor([0.5] * 3, device=device).view(1, 3, 1, 1) for _ in range(2))
    loss_of = SoftTargetCrossEntropy()
    pixels = torch.randint(0, 256, (batch_size, 3, 224, 224), dtype=torch.uint8)
    labels = torch.arange(batch_size)

    def step() -> None:
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        images = pixels.to(device, non_blocking=True).to(torch.float32).sub_(mean).div_(std)
        images, targets = mixup(erasing(images), labels.to(device, non_blocking=True))
        with torch.autocast(device, torch.bfloat16) if bf16 else nullcontext():
            loss = loss_of(forward(images), targets)
        loss.backward()
        dispatch_clip_grad(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(model)

    return step


BUILD = {"ours": build_ours, "timm": build_timm}


def memory(whose: Whose, name: str, batch_size: int, device: str, compiled: bool, bf16: bool) -> float:
    """Return the peak memory of three steps in a process of its own, in MiB."""
    words = [whose, name, str(batch_size), device, str(int(compiled)), str(int(bf16))]
    done = subprocess.run([sys.executable, __file__, "--peak", *words], capture_output=True, text=True, check=True)
    return float(done.stdout)


def peak(whose: Whose, name: str, batch_size: int, device: str, compiled: bool, bf16: bool) -> float:
    """Make three steps and return the peak memory of this process, or of the GPU, in MiB."""
    step = BUILD[whose](name, batch_size, device, compiled, bf16)
    for _ in range(3):
        step()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    # not getrusage, which counts the process that started this one
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def main(
    *names: str,
    batch_size: int = 8,
    rounds: int = 9,
    device: str = "cpu",
    precisions: tuple[str, ...] = ("float32", "bfloat16"),
    compile: bool = True,
) -> None:
    """Print a table of medians and ratios, and write it beside this file."""
    table = [
        "| model | | ours, images/s | timm, images/s | speed-up | ours, MiB | timm, MiB | memory |",
        "|-|-|-:|-:|-:|-:|-:|-:|",
    ]
    for name in names or ("tnt_s_patch16_224", "twins_svt_small"):
        for compiled in (False, True) if compile else (False,):
            for precision in precisions:
                how = (name, batch_size, device, compiled, precision == "bfloat16")
                steps = {whose: build(*how) for whose, build in BUILD.items()}
                seconds = alternate(steps, rounds, warmups=2, device=device)
                speed = {whose: batch_size / statistics.median(taken) for whose, taken in seconds.items()}
                used = {whose: memory(whose, *how) for whose in ("ours", "timm")}
                table.append(
                    f"| {name} | {'compiled' if compiled else 'eager'}, {precision} | {speed['ours']:.1f} "
                    f"| {speed['timm']:.1f} | {speed_up(seconds['ours'], seconds['timm']):.2f} | {used['ours']:,.0f} "
                    f"| {used['timm']:,.0f} | {used['ours'] / used['timm']:.2f} |"
                )
                print(table[-1], flush=True)
    notes = [
        f"batch of {batch_size}, 224 px, medians of {rounds} alternating rounds",
        "memory is the peak of a process, or of the GPU, in three steps",
        f"kernels: {describe_kernels()}",
        f"`{SETTINGS}`",
    ]
    publish("train_step" if compile else "train_step_eager", "Whole training steps beside timm's", notes, table, device)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--peak"]:
        whose, name, batch_size, device, compiled, bf16 = sys.argv[2:]
        assert whose in ("ours", "timm")
        print(peak(whose, name, int(batch_size), device, bool(int(compiled)), bool(int(bf16))))
    else:
        cyclopts.run(main)
