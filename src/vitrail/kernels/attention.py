"""Attention in the formulation that is fastest where it is computed.

Shapes
    b batch, h heads, n queries, m keys, d channels of a head
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.flop_counter import register_flop_formula

from vitrail.kernels.compiled import are_kernels_wanted
from vitrail.kernels.linear import (
    is_convolution_faster,
    is_recorded,
    is_symbolic,
    multiply_by_convolution,
)

NARROW_HEAD = 16
"""Channels of a head below which a CPU does better without PyTorch's fused attention, and in
float32 at that."""
MAX_SCORES = 4
"""How many times the memory of queries, keys and values the scores of unfused attention may
take."""
SCORES_AT_ONCE = 2**21
"""Scores that `long_attention` computes at a time, a few MB; the processor's caches hold them."""
Record = Callable[[Tensor, Tensor, Tensor], None]
"""Takes the shares (b, h, n, m) that the queries of one attention give its keys, the values
(b, h, m, d) of the keys, and what comes out (b, h, n, d)."""
_records: dict[int, Record] = {}
"""By thread, who is told of attention; others, as those of a server, compute on as they were."""


@contextmanager
def recorded_by(record: Record) -> Iterator[None]:
    """Tell a function of every attention that this thread computes meanwhile.

    Shares and values stand outside of the graph of what follows, and what comes out stands in it:
    with its gradient g, that of the shares is g v^T, without a matrix of shares that is kept for it.
    """
    thread = get_ident()
    before = _records.get(thread)
    _records[thread] = record
    try:
        yield
    finally:
        del _records[thread]
        if before is not None:
            _records[thread] = before


def recorder() -> Record | None:
    """Return who is told of the attention of this thread; None where nobody is, as in programs."""
    if not _records or is_recorded():
        return None
    return _records.get(get_ident())


def attend(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h m d"],
    v: Float[Tensor, "b h m d"],
    scale: float | None = None,
    bias: Float[Tensor, "1 h n m"] | None = None,
) -> Float[Tensor, "b h n d"]:
    """Return softmax(q k^T scale + bias) v, where scale is 1 / sqrt(d) unless it is given.

    On CPUs PyTorch's fused attention takes two to six times as long in bfloat16 as two products
    with a softmax between them, and longer too for narrow heads; in float32 it takes longer where
    oneDNN multiplies faster than MKL.
    """
    if is_symbolic(q):  # whose softmax is a node of its own, for who extracts it by its name
        return _attend_unfused(q, k, v, scale, bias)
    out = _attend(q, k, v, scale, bias)
    if (record := recorder()) is not None:
        with torch.no_grad():
            record(_share(q, k, scale, bias), v.detach(), out)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float | None, bias: Tensor | None) -> Tensor:
    """Compute attention in the form that is fastest for such queries and keys."""
    if not q.is_cpu or is_recorded():
        return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    if bias is not None:
        return _attend_unfused(q, k, v, scale, bias)
    (n, d), m = q.shape[-2:], k.shape[-2]
    if n * m > MAX_SCORES * (n + 2 * m) * d:
        if is_long_better(q):
            return long_attention(q, k, v, _settle_scale(q, scale))
    elif d < NARROW_HEAD and q.dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", enabled=False):
            return _attend_unfused(q.float(), k.float(), v.float(), scale).to(q.dtype)
    elif q.dtype == torch.bfloat16:
        return _attend_unfused(q, k, v, scale)
    return scaled_dot_product_attention(q, k, v, scale=scale)


def is_long_better(q: Tensor) -> bool:
    """Say whether `long_attention` is faster than PyTorch's fused attention, and takes queries like these."""
    if not are_kernels_wanted():
        return False
    if q.dtype == torch.float32:
        return is_convolution_faster() and not torch.is_autocast_enabled("cpu")
    return q.dtype == torch.bfloat16


@torch.library.custom_op("vitrail::long_attention", mutates_args=(), device_types="cpu")
def long_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return softmax(q k^T scale) v, with some rows of the scores at a time, which the backward pass computes again.

    Args:
        q: Queries (b, h, n, d), in float32 or bfloat16.
        k: Keys (b, h, m, d).
        v: Values (b, h, m, d).
        scale: Factor of the scores.

    Returns:
        (b, h, n, d) of the same type.
    """
    out = torch.empty(q.shape, dtype=q.dtype)
    for one in _each(q):
        keys, turned_values = k[one], v[one].t().contiguous()
        for rows in _cut(q, k):
            scores = multiply(q[one][rows] * scale, keys)
            out[one][rows] = multiply(scores.softmax(-1), turned_values)
    return out


@torch.library.custom_op("vitrail::long_attention_backward", mutates_args=(), device_types="cpu")
def long_attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of queries, keys and values; those of keys and values are summed in float32."""
    grad_q = torch.empty(q.shape, dtype=q.dtype)
    grad_k = torch.empty(k.shape, dtype=k.dtype)
    grad_v = torch.empty(v.shape, dtype=v.dtype)
    for one in _each(q):
        keys, values = k[one].contiguous(), v[one].contiguous()
        turned_keys = keys.t().contiguous()
        of_keys = torch.zeros(keys.shape, dtype=torch.float32)
        of_values = torch.zeros(values.shape, dtype=torch.float32)
        for rows in _cut(q, k):
            queries, above = q[one][rows] * scale, grad[one][rows].contiguous()
            shares = multiply(queries, keys).softmax(-1)
            of_shares = multiply(above, values)
            of_values += shares.t() @ above
            of_scores = torch.ops.aten._softmax_backward_data(of_shares, shares, -1, shares.dtype)
            of_keys += of_scores.t() @ queries
            grad_q[one][rows] = multiply(of_scores, turned_keys) * scale
        grad_k[one] = of_keys
        grad_v[one] = of_values
    return grad_q, grad_k, grad_v


def multiply(left: Float[Tensor, "r d"], right: Float[Tensor, "n d"]) -> Float[Tensor, "r n"]:
    """Return left right^T, in float32 as a 1x1 convolution where that is faster."""
    if left.dtype != torch.float32 or not is_convolution_faster():
        return left @ right.t()
    return multiply_by_convolution(left, right)


def _each(q: Tensor) -> Iterator[tuple[int, int]]:
    """Return the index of every head of every image."""
    for image in range(q.shape[0]):
        for head in range(q.shape[1]):
            yield image, head


def _cut(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Return the rows that are computed together."""
    step = max(1, SCORES_AT_ONCE // k.shape[2])
    for first in range(0, q.shape[2], step):
        yield slice(first, first + step)


@long_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


@long_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    first, second, third = (
        torch.empty(one.shape, dtype=one.dtype, device=one.device) for one in (q, k, v)
    )
    return first, second, third


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    q, k, v, ctx.scale = inputs
    ctx.save_for_backward(q, k, v)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return *long_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None


long_attention.register_autograd(_differentiate, setup_context=_keep_inputs)


@register_flop_formula(torch.ops.vitrail.long_attention)
def count_flops(q: Sequence[int], k: Sequence[int], *others: Any, **ignored: Any) -> int:
    """Return what `FlopCounterMode` counts of the two products, from the shapes of tensors."""
    b, h, n, d = q
    return 4 * b * h * n * k[2] * d


@register_flop_formula(torch.ops.vitrail.long_attention_backward)
def count_flops_backward(
    grad: Any, q: Sequence[int], k: Sequence[int], *others: Any, **ignored: Any
) -> int:
    """Return what it counts of the four products of their gradients, and of the scores computed again."""
    return count_flops(q, k) * 5 // 2


def _attend_unfused(
    q: Tensor, k: Tensor, v: Tensor, scale: float | None, bias: Tensor | None = None
) -> Tensor:
    return _share(q, k, scale, bias) @ v


def _share(q: Tensor, k: Tensor, scale: float | None, bias: Tensor | None) -> Tensor:
    scores = (q * _settle_scale(q, scale)) @ k.transpose(-2, -1)
    return (scores if bias is None else scores + bias).softmax(-1)


def _settle_scale(q: Tensor, scale: float | None) -> float:
    """Return the factor of the scores, which is 1 / sqrt(d) unless it is given."""
    return q.shape[-1] ** -0.5 if scale is None else scale
