"""The body of `vitrail::word_block` for CPUs: a call of the C++ beside this file, which is compiled on the machine."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from vitrail.kernels.compiled import NotCompiled, prepare
from vitrail.kernels.word_block_plain import Weights, flatten, is_whole, plain_word_block

NAME = "word_block"
"""Name of the C++ file."""
DTYPES = (torch.float32, torch.bfloat16)
"""Types of words that it takes."""
TOLERANCE = 1e-5
"""Largest difference from the plain body, as a share of its largest number."""


class Shape(ctypes.Structure):
    """What the compiled body is told of a call."""

    _fields_ = (
        ("words", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("tanh", ctypes.c_int32),
        ("whole", ctypes.c_int32),
    )


def prepare_word_block() -> str | None:
    """Compile the body for this machine's CPU, unless that was done before; return why it cannot be used, if so."""
    return prepare(NAME, check_library)


def run_forward(
    library: ctypes.CDLL,
    words: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
) -> Tensor:
    """Compute `word_block` by a compiled library."""
    words = words.contiguous()
    out = torch.empty_like(words)
    flat, kept = flatten(weights), _in_float32(keep)
    library.vitrail_word_block(
        _pointer(words),
        _pointer(kept),
        _pointer(flat),
        ctypes.byref(_shape(words, weights, num_heads, eps, approximate)),
        *_numbers(words),
        _pointer(out),
    )
    return out


def run_backward(
    library: ctypes.CDLL,
    grad: Tensor,
    words: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
) -> tuple[Tensor, Tensor]:
    """Compute `word_block_backward` by a compiled library."""
    words, grad = words.contiguous(), grad.contiguous().to(words.dtype)
    flat, kept = flatten(weights), _in_float32(keep)
    grad_words, grad_flat = torch.empty_like(words), torch.empty_like(flat)
    library.vitrail_word_block_backward(
        _pointer(grad),
        _pointer(words),
        _pointer(kept),
        _pointer(flat),
        ctypes.byref(_shape(words, weights, num_heads, eps, approximate)),
        *_numbers(words),
        _pointer(grad_words),
        _pointer(grad_flat),
    )
    return grad_words, grad_flat


def check_library(library: ctypes.CDLL) -> None:
    """Compare a library that was just compiled with the plain body.

    Raises:
        NotCompiled: Its numbers are wrong.
    """
    for is_of_sentence in (False, True):
        _check_numbers(library, is_of_sentence)


def _check_numbers(library: ctypes.CDLL, is_of_sentence: bool) -> None:
    """Compare one kind of norms with the plain body."""
    n, p, e, heads, hidden = 5, library.vitrail_lanes() // 2, 12, 2, 40
    normed = p * e if is_of_sentence else e
    numbers = torch.Generator().manual_seed(0)
    sizes = (
        (normed,),
        (normed,),
        (2 * e, e),
        (e, e),
        (e, e),
        (e,),
        (normed,),
        (normed,),
        (hidden, e),
        (hidden,),
        (e, hidden),
        (e,),
    )
    weights = [0.3 * torch.randn(size, generator=numbers) for size in sizes]
    words, grad = torch.randn(2, n, p, e, generator=numbers)
    keep = torch.rand(2, n, generator=numbers)
    out = run_forward(library, words, keep, weights, heads, 1e-5, "none")
    grads = run_backward(library, grad, words, keep, weights, heads, 1e-5, "none")
    inputs = [one.double().requires_grad_() for one in (words, *weights)]
    with torch.enable_grad():
        right = plain_word_block(inputs[0], keep, inputs[1:], heads, 1e-5, "none")
        right_grads = torch.autograd.grad(right, inputs, grad.double())
    flat = torch.cat([one.reshape(-1) for one in right_grads[1:]])
    pairs = ((out, right), (grads[0], right_grads[0]), (grads[1], flat))
    for found, wanted in pairs:
        if not (found - wanted).abs().max() <= TOLERANCE * wanted.abs().max():  # NaN too
            raise NotCompiled("what the compiler made of it computes wrong numbers")


def _shape(
    words: Tensor, weights: Sequence[Tensor], num_heads: int, eps: float, approximate: str
) -> Shape:
    w = Weights(*weights)
    hidden, whole = w.fc1.shape[0], is_whole(words, w.norm1_weight)
    _, count, channels = words.shape
    return Shape(count, channels, num_heads, hidden, eps, approximate == "tanh", whole)


def _numbers(words: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int32, ctypes.c_int32]:
    is_half = words.dtype == torch.bfloat16
    threads = torch.get_num_threads()
    return ctypes.c_int64(words.shape[0]), ctypes.c_int32(is_half), ctypes.c_int32(threads)


def _in_float32(keep: Tensor | None) -> Tensor | None:
    return None if keep is None else keep.float().contiguous()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
