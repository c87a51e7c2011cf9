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
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear

from vitrail.kernels.compiled import NotCompiled, are_kernels_wanted, compile_kernel, load
from vitrail.kernels.dense import is_recorded

NAME = "word_block"
DTYPES = (torch.float32, torch.bfloat16)
"""Types of words that the compiled body takes."""
TOLERANCE = 1e-5
"""Largest difference from the plain body, as a share of its largest number."""
GPU_DTYPES = (*DTYPES, torch.float16)
"""Types of words that Triton's body takes."""
Body = Literal["plain", "compiled", "triton"]


class Weights(NamedTuple):
    """Weights of the block; a bias that a model lacks is zeros."""

    norm1_weight: Tensor
    norm1_bias: Tensor
    qk: Tensor
    v: Tensor
    proj: Tensor
    proj_bias: Tensor
    norm2_weight: Tensor
    norm2_bias: Tensor
    fc1: Tensor
    fc1_bias: Tensor
    fc2: Tensor
    fc2_bias: Tensor


class Shape(ctypes.Structure):
    """What the compiled body is told of a call."""

    _fields_ = (
        ("words", ctypes.c_int64),
        ("channels", ctypes.c_int64),
        ("heads", ctypes.c_int64),
        ("hidden", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("tanh", ctypes.c_int32),
    )


def prepare_word_block() -> str | None:
    """Compile the body for this machine's CPU, unless that was done before; return why it cannot be used, if so."""
    try:
        compile_kernel(NAME, check_library)
    except NotCompiled as error:
        return str(error)
    return None


@torch.compiler.assume_constant_result
def choose_body(device: str, dtype: torch.dtype, num_words: int) -> Body:
    """Say which body computes words of a type in sentences of so many, on a device such as cpu."""
    if device == "cpu" and dtype in DTYPES:
        library = load(NAME)
        if library is not None and library.vitrail_lanes() % num_words == 0:
            return "compiled"
    is_power_of_two = num_words & (num_words - 1) == 0
    if device == "cuda" and dtype in GPU_DTYPES and is_power_of_two and has_triton():
        return "triton"
    return "plain"


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


def is_fused(words: Tensor) -> bool:
    """Say whether words are computed faster by the operator than by layer after layer."""
    if is_recorded():  # programs have the plain form
        return False
    return choose_body(words.device.type, words.dtype, words.shape[1]) != "plain"


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
    body = choose_body(words.device.type, words.dtype, words.shape[1])
    if body == "triton":
        from vitrail.kernels import word_block_triton as gpu  # which has Triton only where a GPU is

        return gpu.run_forward(words, keep, weights, num_heads, eps, approximate, products)
    if body == "compiled":
        library = _library()
        return run_forward(library, words, keep, weights, num_heads, eps, approximate)
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
    body = choose_body(words.device.type, words.dtype, words.shape[1])
    if body == "triton":
        from vitrail.kernels import word_block_triton as gpu  # which has Triton only where a GPU is

        grad = grad.to(words.dtype)
        return gpu.run_backward(grad, words, keep, weights, num_heads, eps, approximate, products)
    if body == "compiled":
        library = _library()
        return run_backward(library, grad, words, keep, weights, num_heads, eps, approximate)
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (words, *weights)]
        out = plain_word_block(inputs[0], keep, inputs[1:], num_heads, eps, approximate)
        grads = torch.autograd.grad(out, inputs, grad)
    return grads[0].contiguous(), torch.cat([one.float().reshape(-1) for one in grads[1:]])


def plain_word_block(
    words: Float[Tensor, "n p e"],
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
) -> Float[Tensor, "n p e"]:
    """Compute `word_block` in PyTorch: its definition."""
    w = Weights(*weights)
    n, p, e = words.shape
    factors = (1.0, 1.0) if keep is None else keep.to(words.dtype)[:, :, None, None]

    normed = layer_norm(words, (e,), w.norm1_weight, w.norm1_bias, eps)
    parts = (*linear(normed, w.qk).chunk(2, dim=2), linear(normed, w.v))
    q, k, v = (part.reshape(n, p, num_heads, -1).transpose(1, 2) for part in parts)
    shares = (q * (e // num_heads) ** -0.5 @ k.transpose(2, 3)).softmax(-1)
    mixed = (shares @ v).transpose(1, 2).reshape(n, p, e)
    words = words + factors[0] * linear(mixed, w.proj, w.proj_bias)

    normed = layer_norm(words, (e,), w.norm2_weight, w.norm2_bias, eps)
    active = gelu(linear(normed, w.fc1, w.fc1_bias), approximate=approximate)
    return words + factors[1] * linear(active, w.fc2, w.fc2_bias)


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
    flat, factors = _flatten(weights), _factors(keep)
    library.vitrail_word_block(
        _pointer(words),
        *factors.pointers,
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
    flat, factors = _flatten(weights), _factors(keep)
    grad_words, grad_flat = torch.empty_like(words), torch.empty_like(flat)
    library.vitrail_word_block_backward(
        _pointer(grad),
        _pointer(words),
        *factors.pointers,
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
    n, p, e, heads, hidden = 5, library.vitrail_lanes() // 2, 12, 2, 40
    numbers = torch.Generator().manual_seed(0)
    sizes = (
        (e,),
        (e,),
        (2 * e, e),
        (e, e),
        (e, e),
        (e,),
        (e,),
        (e,),
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


class _Factors(NamedTuple):
    """Pointers to the factors of both residuals, and what they point to."""

    pointers: tuple[ctypes.c_void_p, ctypes.c_void_p]
    kept: Tensor | None


def _factors(keep: Tensor | None) -> _Factors:
    if keep is None:
        return _Factors((ctypes.c_void_p(None), ctypes.c_void_p(None)), None)
    kept = keep.float().contiguous()
    return _Factors((_pointer(kept[0]), _pointer(kept[1])), kept)


def _flatten(weights: Sequence[Tensor]) -> Tensor:
    return torch.cat([weight.detach().reshape(-1).float() for weight in weights])


def _shape(
    words: Tensor, weights: Sequence[Tensor], num_heads: int, eps: float, approximate: str
) -> Shape:
    hidden = Weights(*weights).fc1.shape[0]
    return Shape(words.shape[1], words.shape[2], num_heads, hidden, eps, approximate == "tanh")


def _numbers(words: Tensor) -> tuple[ctypes.c_int64, ctypes.c_int32, ctypes.c_int32]:
    is_half = words.dtype == torch.bfloat16
    threads = torch.get_num_threads()
    return ctypes.c_int64(words.shape[0]), ctypes.c_int32(is_half), ctypes.c_int32(threads)


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


def _library() -> ctypes.CDLL:
    library = load(NAME)
    assert library is not None
    return library
