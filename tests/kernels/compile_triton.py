"""Compile Triton's bodies of the word block for an H100, which needs no GPU, and see that they have room on it."""

import sys
import warnings

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vitrail.kernels import word_block_triton as gpu

ROOM = 227 * 1024
"""Bytes of shared memory that a program of an H100 may have."""
POINTERS = ("words", "grads", "keep", "weights", "out", "partial_sums")
NUMBERS = ("count", "num_weights", "num_blocks")

warnings.simplefilter("ignore")
for e, hidden, heads in ((24, 96, 4), (40, 160, 4)):
    weights = [torch.zeros(1)] * 8 + [torch.zeros(hidden, e)] + [torch.zeros(1)] * 3
    for dtype, products in ((torch.bfloat16, "bfloat16"), (torch.float32, "float32")):
        words = torch.zeros(8, 16, e, dtype=dtype)
        for way, kernel in (("forward", gpu._forward), ("backward", gpu._backward)):
            constants = gpu.constants(words, words, weights, heads, 1e-5, "none", products)
            constants |= gpu.block_sizes(words, weights, heads, products, way)
            signature = dict.fromkeys(kernel.arg_names, "constexpr")
            of_words = "*bf16" if dtype == torch.bfloat16 else "*fp32"
            for name in kernel.arg_names:
                if name in POINTERS:
                    signature[name] = of_words if name in ("words", "grads", "out") else "*fp32"
                elif name in NUMBERS:
                    signature[name] = "i32"
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            target = GPUTarget("cuda", 90, 32)
            compiled = triton.compile(source, target=target, options={"num_warps": gpu.WARPS})
            assert compiled.metadata.shared <= ROOM
            sys.stdout.write(f"{way}, {e} channels, {products}: {compiled.metadata.shared:,} bytes of shared memory\n")
