"""Time the two inner residuals of a TNT block, by the fused operator and by PyTorch's layers, in alternating rounds.

uv run python benchmarks/word_block.py
uv run python benchmarks/word_block.py --batch-size 128 --device cuda

One block of TNT-S, whose words are in float32 as they are in a network, with products in float32 or, by autocast, in
bfloat16. Peak memory is what the words of a training step leave behind for the backward pass.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import nullcontext

import cyclopts
import torch
from side_by_side import alternate, publish, speed_up
from torch import Tensor

from vitrail.kernels import compiled
from vitrail.kernels.prepare import describe_kernels, prepare_kernels
from vitrail.kernels.word_block_compiled import NAME
from vitrail.models.registry import create_model
from vitrail.models.tnt import TNT, Block

WAYS = ("inference", "training")


def choose(body: str) -> None:
    """Let the operators be computed by their fastest body, or by PyTorch's layers."""
    os.environ[compiled.VARIABLE] = body
    compiled.load.cache_clear()
    from vitrail.kernels import word_block

    word_block.has_triton.cache_clear()


def build(block: Block, words: Tensor, body: str, way: str, low: bool) -> Callable[[], None]:
    """Return what is timed: the words through a block, and in training their gradients."""
    precision = torch.autocast(words.device.type, torch.bfloat16) if low else nullcontext()

    def infer() -> None:
        choose(body)
        with torch.inference_mode(), precision:
            block.update_words(words)

    def train() -> None:
        choose(body)
        with precision:
            out = block.update_words(given)
        out.backward(grad)
        block.zero_grad()
        given.grad = None

    given, grad = words.clone().requires_grad_(), torch.randn_like(words)
    return train if way == "training" else infer


def count_kept(block: Block, words: Tensor, low: bool) -> int:
    """Return the bytes that the forward pass keeps for the backward pass, beside the weights."""
    kept: dict[int, int] = {}
    weights = {parameter.data_ptr() for parameter in block.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    precision = torch.autocast(words.device.type, torch.bfloat16) if low else nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), precision:
        out = block.update_words(words.clone().requires_grad_())
    del out
    return sum(kept.values())


def main(name: str = "tnt_s_patch16_224", batch_size: int = 8, rounds: int = 15, device: str = "cpu") -> None:
    """Measure, and write a page beside this file."""
    prepare_kernels((NAME,), device, print)
    about = describe_kernels()
    model = create_model(name).to(device).eval()
    assert isinstance(model, TNT)
    block, config = model.blocks[0], model.config
    assert isinstance(block, Block)
    sentences = batch_size * config.grid[0] * config.grid[1]
    words = torch.randn(sentences, config.words**2, config.inner_dim, device=device)
    table = ["| | products | fused, ms | layers, ms | speed-up | kept, MiB | by layers, MiB |", "|-|-|-:|-:|-:|-:|-:|"]
    for way in WAYS:
        for low in (False, True):
            subjects = {body: build(block, words, body, way, low) for body in ("auto", "plain")}
            seconds = alternate(subjects, rounds, warmups=3, device=device)
            kept = []
            for body in ("auto", "plain"):
                choose(body)
                kept.append(f"{count_kept(block, words, low) / 2**20:.1f}" if way == "training" else "")
            times = [f"{1000 * statistics.median(seconds[body]):.2f}" for body in ("auto", "plain")]
            gain = f"{speed_up(seconds['auto'], seconds['plain']):.2f}"
            products = "bfloat16" if low else "float32"
            table.append(f"| {way} | {products} | " + " | ".join([*times, gain, *kept]) + " |")
    notes = [
        f"{name}, batch of {batch_size}, {sentences:,} sentences, medians of {rounds} alternating rounds",
        f"fused: {about}; training is forward and backward",
        "kept: bytes that the forward pass keeps for the backward pass",
    ]
    publish("word_block", "The words of a TNT block", notes, table, device)


if __name__ == "__main__":
    cyclopts.run(main)
