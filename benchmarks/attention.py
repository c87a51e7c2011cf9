"""What T2T-ViT_t-14 costs beside its official formulation, whose attention forms a matrix of tokens by tokens.

    uv run python benchmarks/attention.py [SIZE ...]

The first T2T layer attends among (size / 4)^2 tokens: 3,136 at 224 pixels, 12,544 at 448. Times are medians of
alternating rounds. Peak memory is what one pass adds to what the process holds between passes, parameters and their
gradients included; on a CPU it is the kernel's high-water mark, each in a process of its own.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import cyclopts
import torch
from official_t2t import OfficialT2TViT
from side_by_side import alternate, publish, speed_up
from torch import Tensor

from vitrail.devices import keep_freed_memory
from vitrail.models.registry import create_model
from vitrail.models.t2t_vit import T2TViT


@dataclass(frozen=True)
class Case:
    """What is measured."""

    part: str
    """T2T module or whole model."""
    training: bool
    low: bool
    """Whether products are in bfloat16, by autocast."""
    size: int
    batch_size: int
    device: str


def build_step(case: Case, ours: bool) -> Callable[[], None]:
    """Build the pass that is measured, of the T2T module alone or of the whole model."""
    torch.manual_seed(0)
    model = create_model("t2t_vit_t_14", image_size=case.size)
    assert isinstance(model, T2TViT)
    model.to(case.device).train(case.training)
    network = model if ours else OfficialT2TViT(model).train(case.training)
    compute: Callable[[Tensor], Tensor] = network
    if case.part == "T2T module":
        compute = model.tokens_to_token if ours else cast(OfficialT2TViT, network).tokens
    images = torch.randn(case.batch_size, 3, case.size, case.size, device=case.device)
    precision = torch.autocast(case.device, torch.bfloat16) if case.low else nullcontext()

    def infer() -> None:
        with torch.inference_mode(), precision:
            compute(images)

    def train() -> None:
        with precision:
            loss = compute(images).float().sum()
        loss.backward()
        network.zero_grad(set_to_none=False)

    return train if case.training else infer


def read_kb(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field + ":")).split()[1])


def measure_peak_mib(case: Case, ours: bool) -> float:
    """Return the memory that the second of two passes needs beyond what is held before it."""
    step = build_step(case, ours)
    step()
    if case.device == "cuda":
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
    keep_freed_memory()  # as all that vitrail runs; the official formulation gains by it too
    table = [
        "| size | part | pass | ours, ms | official, ms | of its time | ours, MiB | official, MiB | of its memory |",
        "|-:|-|-|-:|-:|-:|-:|-:|-:|",
    ]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as processes:
        for size, part, training, low in product(
            sizes or (224, 448), ("T2T module", "whole model"), (False, True), (False, True)
        ):
            case = Case(part, training, low, size, batch_size, device)
            memory = [processes.submit(measure_peak_mib, case, ours).result() for ours in (True, False)]
            seconds = alternate({ours: build_step(case, ours) for ours in (True, False)}, rounds, device=device)
            name = f"{'training' if training else 'inference'}, {'bfloat16' if low else 'float32'}"
            ms = [f"{1000 * statistics.median(seconds[ours]):.0f}" for ours in (True, False)]
            share = 1 / speed_up(seconds[True], seconds[False])
            table.append(
                f"| {size} | {part} | {name} | {ms[0]} | {ms[1]} | {share:.2f} "
                f"| {memory[0]:.0f} | {memory[1]:.0f} | {memory[0] / memory[1]:.2f} |"
            )
    notes = [f"batch of {batch_size}, medians of {rounds} alternating rounds, bfloat16 by autocast"]
    publish("attention", "T2T-ViT_t-14 beside its official formulation", notes, table, device)


if __name__ == "__main__":
    cyclopts.run(main)
