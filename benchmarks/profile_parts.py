"""Where a network's time goes: by its parts in inference, beside their multiply-adds, and by operators in training.

uv run python benchmarks/profile_parts.py
uv run python benchmarks/profile_parts.py twins_svt_small --rounds 9

A part's time is what its modules took from call to return, of which the share beyond that of its multiply-adds is what
a better form could win. What is in no part are residual additions, copies of layout, norms and the like.
"""

from __future__ import annotations

import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import cyclopts
import torch
from side_by_side import publish
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from vitrail.devices import keep_freed_memory
from vitrail.kernels.prepare import describe_kernels, prepare_kernels
from vitrail.models.registry import create_model, kernels_of

MODELS = ("twins_svt_small", "twins_pcpvt_small", "t2t_vit_14", "t2t_vit_t_14", "tnt_s_patch16_224")
NUM_OPERATORS = 8
"""Operators of training that are listed, those that take longest."""


def name_part(module: str) -> str | None:
    """Return the part that a module is, such as attn of all blocks of stage 1; None where it is none or in another."""
    if ".inner_" in module:
        return None  # a hook would have the words computed layer by layer
    stage = r"(blocks)\.(\d)\.\d+\.(\w+)" if module.count(".") == 3 else r"(blocks)\.()\d+\.([a-z]\w+)"
    if found := re.fullmatch(stage, module):
        blocks, number, part = found.groups()
        return f"{blocks} {number} {part}".replace("  ", " ")
    if re.fullmatch(r"(patch_embeds|pos_block)\.\d", module):
        return module.replace(".", " ")
    if re.fullmatch(r"tokens_to_token\.\w+|pixel_embed|proj|norm|head", module):
        return module
    return None


@contextmanager
def timed(model: nn.Module, seconds: dict[str, float]) -> Iterator[None]:
    """Add what each part takes to its seconds."""
    began: dict[str, float] = {}
    hooks = []
    for name, module in model.named_modules():
        part = name_part(name)
        if part is not None:
            begin, end = watch(name, part, began, seconds)
            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    yield
    for hook in hooks:
        hook.remove()


def watch(
    name: str, part: str, began: dict[str, float], seconds: dict[str, float]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return what to call before and after a module."""

    def begin(*_: Any) -> None:
        began[name] = time.perf_counter()

    def end(*_: Any) -> None:
        seconds[part] += time.perf_counter() - began[name]

    return begin, end


def count_macs(model: nn.Module) -> dict[str, float]:
    """Return the multiply-adds of an image by part, and all of them as `whole`."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.zeros(1, 3, 224, 224))
    counts: dict[str, float] = defaultdict(float)
    for name, flops in counter.get_flop_counts().items():
        part = "whole" if name == "Global" else name_part(name.partition(".")[2])
        if part is not None:
            counts[part] += sum(flops.values()) // 2
    return counts


def time_parts(model: nn.Module, images: Tensor, low: bool, rounds: int) -> dict[str, float]:
    """Return the median seconds of each part, and those of the `whole`."""
    found: dict[str, list[float]] = defaultdict(list)
    precision = torch.autocast("cpu", torch.bfloat16) if low else nullcontext()
    for number in range(-1, rounds):
        seconds: dict[str, float] = defaultdict(float)
        with torch.inference_mode(), precision, timed(model.eval(), seconds):
            started = time.perf_counter()
            model(images)
            seconds["whole"] = time.perf_counter() - started
        for part, each in seconds.items():
            if number >= 0:
                found[part].append(each)
    return {part: statistics.median(values) for part, values in found.items()}


def list_operators(model: nn.Module, images: Tensor, low: bool) -> list[str]:
    """Return the operators that a forward and backward pass spends most in, with their share of it."""
    precision = torch.autocast("cpu", torch.bfloat16) if low else nullcontext()

    def step() -> None:
        with precision:
            loss = model.train()(images).float().logsumexp(1).mean()
        loss.backward()
        model.zero_grad()

    step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    listed = []
    for event in events[:NUM_OPERATORS]:
        name = event.key.removeprefix("aten::")
        listed.append(f"{name} {100 * event.self_cpu_time_total / whole:.0f} %")
    return listed


def main(*models: str, batch_size: int = 8, rounds: int = 7) -> None:
    """Measure, and write a page beside this file."""
    keep_freed_memory()  # as all that vitrail runs
    images = torch.randn(batch_size, 3, 224, 224)
    table = ["| model | part | multiply-adds, % | float32, ms | % | bfloat16, ms | % |", "|-|-|-:|-:|-:|-:|-:|"]
    operators = ["", "| model | training | operators by their own time |", "|-|-|-|"]
    for name in models or MODELS:
        prepare_kernels(kernels_of(name), "cpu", print)
        model = create_model(name)
        macs = count_macs(model)
        times = [time_parts(model, images, low, rounds) for low in (False, True)]
        for found in (macs, *times):
            found["the rest"] = 2 * found["whole"] - sum(found.values())
        for part in times[0]:
            cells = [name, part, f"{100 * macs[part] / macs['whole']:.1f}"]
            for seconds in times:
                cells += [f"{1000 * seconds[part]:.1f}", f"{100 * seconds[part] / seconds['whole']:.1f}"]
            table.append("| " + " | ".join(cells) + " |")
        for low in (False, True):
            dtype = "bfloat16" if low else "float32"
            operators.append(f"| {name} | {dtype} | {', '.join(list_operators(model, images, low))} |")
    notes = [
        f"batch of {batch_size}, 224 px, medians of {rounds} rounds, PyTorch eager; operators of one pass of training",
        f"kernels: {describe_kernels()}",
    ]
    publish("profile_parts", "Where a network's time goes", notes, [*table, *operators])


if __name__ == "__main__":
    cyclopts.run(main)
