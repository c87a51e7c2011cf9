"""The two inner residuals of a TNT block as one operator, `vitrail::word_block`, with a body for each device.

The plain body is the definition. The others keep nothing of a sentence but the words that went in,
compute with float32 sums whatever the type of the words, and equal it but for the order of their
sums.

Shapes
    n sentences, p words of a sentence, e channels of a word, h hidden channels
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitrail.kernels import word_block_compiled as cpu
from vitrail.kernels.compiled import are_kernels_wanted, load
from vitrail.kernels.linear import is_recorded, is_symbolic
from vitrail.kernels.word_block_plain import (
    differentiate_plain,
    flatten,
    is_whole,
    plain_word_block,
)

GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Types of words that Triton's body takes."""
Body = Literal["plain", "compiled", "triton"]


def choose_body(device: str, dtype: torch.dtype, num_words: int, whole: bool = False) -> Body:
    """Say which body computes words of a type in sentences of so many, on a device such as cpu.

    Where norms are over whole sentences, a GPU has none but the plain one.
    """
    if device == "cpu" and dtype in cpu.DTYPES:
        library = load(cpu.NAME)
        if library is not None and library.vitrail_lanes() % num_words == 0:
            return "compiled"
    is_power_of_two = num_words & (num_words - 1) == 0
    is_for_gpu = device == "cuda" and dtype in GPU_DTYPES and is_power_of_two and not whole
    if is_for_gpu and has_triton():
        return "triton"
    return "plain"


# what torch.compiler.assume_constant_result does, which takes longer to import than all else here
choose_body._dynamo_marked_constant = True  # pyright: ignore[reportFunctionMemberAccess]


@cache
def has_triton() -> bool:
    """Say whether Triton is installed, for a GPU that it knows, and wanted."""
    if not are_kernels_wanted() or find_spec("triton") is None or not torch.cuda.is_available():
        return False
    # Triton's products need the tensor cores of Volta; AMD's GPUs count otherwise
    return torch.version.hip is not None or torch.cuda.get_device_capability() >= (7, 0)


def type_of_products(words: Tensor) -> str:
    """Return the type that a GPU multiplies in, as autocast or PyTorch's setting for float32 has it."""
    if torch.is_autocast_enabled(words.device.type):
        return str(torch.get_autocast_dtype(words.device.type)).removeprefix("torch.")
    if words.dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32:
        return "tf32"
    return str(words.dtype).removeprefix("torch.")


def is_fused(words: Tensor, whole: bool = False) -> bool:
    """Say whether words are computed faster by the operator than by layer after layer."""
    if is_recorded() or is_symbolic(words):  # programs have the plain form
        return False
    return choose_body(words.device.type, words.dtype, words.shape[1], whole) != "plain"


@torch.library.custom_op("vitrail::word_block", mutates_args=())
def word_block(
    words: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
    products: str,
) -> Tensor:
    """Return words + keep attention(norm(words)), and then that + keep mlp(norm(that)).

    Args:
        words: Words (n, p, e).
        keep: For each of the two residuals, the factor of each sentence (2, n), of drop path; None
            keeps all.
        weights: As `Weights`.
        num_heads: Heads of the attention.
        eps: Epsilon of both norms.
        approximate: Kind of GELU, as PyTorch calls it: none or tanh.
        products: Type that a GPU multiplies in, as `type_of_products` says; the body for CPUs
            computes in float32.

    Returns:
        Words (n, p, e) of the same type.
    """
    whole = is_whole(words, weights[0])
    body = choose_body(words.device.type, words.dtype, words.shape[1], whole)
    if body == "triton":
        from vitrail.kernels import word_block_triton as gpu  # which has Triton only where a GPU is

        return gpu.run_forward(words, keep, weights, num_heads, eps, approximate, products)
    if body == "compiled":
        return cpu.run_forward(_library(), words, keep, weights, num_heads, eps, approximate)
    return plain_word_block(words, keep, weights, num_heads, eps, approximate).contiguous()


@torch.library.custom_op("vitrail::word_block_backward", mutates_args=())
def word_block_backward(
    grad: Tensor,
    words: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
    products: str,
) -> tuple[Tensor, Tensor]:
    """Return the gradient of the words, and those of all weights one behind the other in float32."""
    whole = is_whole(words, weights[0])
    body = choose_body(words.device.type, words.dtype, words.shape[1], whole)
    if body == "triton":
        from vitrail.kernels import word_block_triton as gpu  # which has Triton only where a GPU is

        grad = grad.to(words.dtype)
        return gpu.run_backward(grad, words, keep, weights, num_heads, eps, approximate, products)
    if body == "compiled":
        return cpu.run_backward(_library(), grad, words, keep, weights, num_heads, eps, approximate)

    grad_words, grads = differentiate_plain(grad, words, keep, weights, num_heads, eps, approximate)
    return grad_words.contiguous(), flatten(grads)


def _library() -> ctypes.CDLL:
    library = load(cpu.NAME)
    assert library is not None
    return library


@word_block.register_fake
def _(words: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(words, memory_format=torch.contiguous_format)


@word_block_backward.register_fake
def _(
    grad: Tensor, words: Tensor, keep: Any, weights: Sequence[Tensor], *others: Any
) -> tuple[Tensor, Tensor]:
    count = sum(weight.numel() for weight in weights)
    out = torch.empty_like(words, memory_format=torch.contiguous_format)
    return out, words.new_empty(count, dtype=torch.float32)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    words, keep, weights, *ctx.others = inputs
    ctx.save_for_backward(words, keep, *weights)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    words, keep, *weights = ctx.saved_tensors
    grad_words, flat = word_block_backward(grad, words, keep, weights, *ctx.others)
    parts = flat.split([weight.numel() for weight in weights])
    grads = [
        part.reshape(weight.shape).to(weight.dtype)
        for part, weight in zip(parts, weights, strict=True)
    ]
    return grad_words, None, grads, None, None, None, None


word_block.register_autograd(_differentiate, setup_context=_keep_inputs)


@register_flop_formula(torch.ops.vitrail.word_block)
def count_flops(
    words: Sequence[int], keep: Any, weights: Sequence[Sequence[int]], *others: Any, **ignored: Any
) -> int:
    """Return what `FlopCounterMode` counts of the same in PyTorch's layers, from the shapes of tensors."""
    n, p, e = words
    linear = sum(rows * columns for rows, columns in (one for one in weights if len(one) == 2))
    attention = 2 * p * e  # products of queries and keys, and of shares and values
    return 2 * n * p * (linear + attention)


@register_flop_formula(torch.ops.vitrail.word_block_backward)
def count_flops_backward(
    grad: Any,
    words: Sequence[int],
    keep: Any,
    weights: Sequence[Sequence[int]],
    *others: Any,
    **ignored: Any,
) -> int:
    """Return what `FlopCounterMode` counts of the layers' backward pass: not what is computed again for it."""
    return 2 * count_flops(words, keep, weights)
