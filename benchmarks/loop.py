"""Measure what the training loop adds to a bare forward and backward pass.

    uv run python benchmarks/loop.py [MODEL]

A step of ours reads a uint8 batch, normalises, erases, mixes, makes soft targets, clips, updates the weights and their
average, and counts loss and accuracy. It is compared with forward and backward alone, and with those and AdamW.
"""

from __future__ import annotations

import statistics

import cyclopts
import torch
from our_step import SETTINGS, build_step
from side_by_side import alternate, publish
from torch.nn.functional import cross_entropy

from vitrail.distributed.processes import processes


def main(name: str = "tnt_s_patch16_224", batch_size: int = 8, rounds: int = 9, device: str = "cpu") -> None:
    """Measure, and write a page beside this file."""
    with processes("float32", "cpu" if device == "cpu" else "auto") as accelerator:
        loop, wrapped, optimizer = build_step(accelerator, name, batch_size)
        size = accelerator.unwrap_model(wrapped).config.size
        images, labels = torch.randn(batch_size, 3, *size, device=device), torch.arange(batch_size, device=device)

        def bare() -> None:
            cross_entropy(wrapped(images), labels).backward()

        def with_adamw() -> None:
            bare()
            optimizer.step()
            optimizer.zero_grad()

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
