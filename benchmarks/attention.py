"""Measure what T2T-ViT-t gains from an attention that never forms its matrix of tokens by tokens.

    uv run python benchmarks/attention.py [SIZE ...]

The first T2T layer attends among (size / 4)^2 tokens: 3,136 at 224 pixels, 12,544 at 448. Ours calls PyTorch's fused
scaled_dot_product_attention; the baseline is the same model with softmax(q k^T) v written out. Times are medians of
alternating rounds. Peak memory is what one pass adds to what the process holds between passes, parameters and their
gradients included; on a CPU it is the kernel's high-water mark, each in a process of its own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cyclopts
import torch
from side_by_side import alternate, publish, speed_up
from torch import Tensor, nn

from vitrail.models.registry import create_model
from vitrail.models.t2t_vit import SingleHeadAttention, T2TViT


class MaterialisedAttention(SingleHeadAttention):
    """The same function with the matrix in memory."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split(64, dim=2)
        weights = ((q * self.scale) @ k.transpose(1, 2)).softmax(dim=2)  # (b, n, n)
        return v + self.proj(weights @ v)


def build_step(part: str, fused: bool, training: bool, size: int, batch_size: int, device: str) -> Callable[[], None]:
    """Build the pass that is measured, of the T2T module alone or of the whole model."""
    torch.manual_seed(0)
    model = create_model("t2t_vit_t_14", image_size=size)
    assert isinstance(model, T2TViT)
    if not fused:
        for module in model.modules():
            if isinstance(module, SingleHeadAttention):
                module.__class__ = MaterialisedAttention
    module: nn.Module = model.tokens_to_token if part == "T2T module" else model
    module.to(device).train(training)
    images = torch.randn(batch_size, 3, size, size, device=device)

    def infer() -> None:
        with torch.inference_mode():
            module(images)

    def train() -> None:
        module(images).sum().backward()
        module.zero_grad(set_to_none=False)

    return train if training else infer


def read_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def measure_peak_mib(part: str, fused: bool, training: bool, size: int, batch_size: int, device: str) -> float:
    """Return the memory that the second of two passes needs beyond what is held before it."""
    step = build_step(part, fused, training, size, batch_size, device)
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # give freed pages back, so that they are counted when used again
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = read_kb("VmRSS")
    step()
    return (read_kb("VmHWM") - before) / 2**10


def main(
    *sizes: int,
    batch_size: int = 2,
    rounds: int = 5,
    device: str = "cpu",
    threads: int | None = None,
) -> None:
    """Print a table of times and peak memory, and write it beside this file."""
    torch.set_num_threads(threads or torch.get_num_threads())
    table = [
        "| size | tokens | part | pass | fused, ms | matrix, ms | speed-up | fused, MiB | matrix, MiB | share |",
        "|-:|-:|-|-|-:|-:|-:|-:|-:|-:|",
    ]
    processes = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    for size in sizes or (224, 448):
        for part in ("T2T module", "whole model"):
            for training in (False, True):
                common = (training, size, batch_size, device)
                memory = [processes.submit(measure_peak_mib, part, fused, *common).result() for fused in (True, False)]
                steps = {fused: build_step(part, fused, *common) for fused in (True, False)}
                seconds = alternate(steps, rounds, device=device)
                table.append(
                    f"| {size} | {(size // 4) ** 2} | {part} | {'training' if training else 'inference'} "
                    f"| {1000 * statistics.median(seconds[True]):.0f} | {1000 * statistics.median(seconds[False]):.0f} "
                    f"| {speed_up(seconds[True], seconds[False]):.2f} "
                    f"| {memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.2f} |"
                )
    notes = [f"batch of {batch_size}, float32, medians of {rounds} alternating rounds", "share: fused / matrix memory"]
    publish("attention", "Attention of T2T-ViT-t-14: fused against a materialised matrix", notes, table, device)


if __name__ == "__main__":
    cyclopts.run(main)
