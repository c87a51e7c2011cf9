"""The body of `vitrail::word_block` for GPUs, in Triton: some sentences go through a whole block on chip.

A program computes with the words of several sentences as the rows of its matrices, so that all
products are large enough for tensor cores. Scores between words of different sentences are left out
by a mask. Rows and columns that a model does not fill are zeros.

Sums over sentences are made by each program in its own memory and then added in one order, so that
equal calls give equal numbers; for the same reason nothing is tuned while it runs.

Shapes
    m words of a program's sentences, e channels of a word, d channels of a head, h hidden channels
"""

# Triton's functions take tensors of its own compiler, which have no type that a checker knows.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportOperatorIssue=false
# pyright: reportAttributeAccessIssue=false, reportCallIssue=false
from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vitrail.kernels.word_block_plain import Weights, flatten

SIZES = {"forward": 256, "backward": 128}
"""Sentences of a program times its channels, half as many in float32; so it has room on chip."""
WARPS = 8
PROGRAMS = 512
"""Programs of the backward pass at most, each of which sums the gradients of its sentences."""
LEAST = 16
"""Smallest side of a product."""


@triton.jit
def _multiply(a, b, TYPE: tl.constexpr):
    if TYPE == "tf32":
        product = tl.dot(a, b, input_precision="tf32")
    elif TYPE == "float32":
        product = tl.dot(a, b, input_precision="ieee")
    elif TYPE == "bfloat16":
        product = tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    else:
        product = tl.dot(a.to(tl.float16), b.to(tl.float16))
    return product


@triton.jit
def _normalise(x, is_channel, E: tl.constexpr, EPS: tl.constexpr):
    from_mean = tl.where(is_channel, x - (tl.sum(x, 1) / E)[:, None], 0.0)
    rate = 1.0 / tl.sqrt(tl.sum(from_mean * from_mean, 1) / E + EPS)
    return from_mean * rate[:, None], rate


@triton.jit
def _normalise_back(grad, normed, rate, E: tl.constexpr):
    mean = tl.sum(grad, 1) / E
    along = tl.sum(grad * normed, 1) / E
    return rate[:, None] * (grad - mean[:, None] - normed * along[:, None])


@triton.jit
def _gelu(x, TANH: tl.constexpr):
    if TANH:
        inner = 0.7978845608028654 * (x + 0.044715 * x * x * x)
        share = 1.0 / (1.0 + tl.exp(-2.0 * inner))
        steepness = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
        slope = share + x * share * (1.0 - share) * steepness
    else:
        share = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        slope = share + x * tl.exp(-0.5 * x * x) * 0.3989422804014327
    return x * share, slope


@triton.jit
def _read_row(weights, columns, are_there):
    return tl.load(weights + columns, are_there, 0.0)[None, :]


@triton.jit
def _add_row(sums, values, columns, are_there):
    places = sums + columns
    tl.store(places, tl.load(places, are_there, 0.0) + values, are_there)


@triton.jit
def _linear(x, weights, outs, ins, width, are_outs, are_ins, TYPE: tl.constexpr):
    """Return x times the transpose of some rows and columns of weights whose rows are `width` long."""
    places = weights + outs[None, :] * width + ins[:, None]
    return _multiply(x, tl.load(places, are_outs[None, :] & are_ins[:, None], 0.0), TYPE)


@triton.jit
def _linear_back(grad, x, weights, sums, outs, ins, width, are_outs, are_ins, TYPE: tl.constexpr):
    """Add the gradient of some rows and columns of weights to its sums, and return that of x."""
    places = outs[:, None] * width + ins[None, :]
    are_there = are_outs[:, None] & are_ins[None, :]
    of_weights = _multiply(tl.trans(grad), x, TYPE)
    tl.store(sums + places, tl.load(sums + places, are_there, 0.0) + of_weights, are_there)
    return _multiply(grad, tl.load(weights + places, are_there, 0.0), TYPE)


@triton.jit
def _attend(
    inside, qkv, of_head, channels, is_dim, is_channel, is_same,
    E: tl.constexpr, SCALE: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Return queries, keys, values and shares of a head."""
    q = _linear(inside, qkv, of_head, channels, E, is_dim, is_channel, TYPE)
    k = _linear(inside, qkv + E * E, of_head, channels, E, is_dim, is_channel, TYPE)
    v = _linear(inside, qkv + 2 * E * E, of_head, channels, E, is_dim, is_channel, TYPE)
    scores = tl.where(is_same, _multiply(q, tl.trans(k), TYPE) * SCALE, float("-inf"))
    shares = tl.exp(scores - tl.max(scores, 1)[:, None])
    return q, k, v, shares / tl.sum(shares, 1)[:, None]


@triton.jit
def _attention(
    inside, qkv, proj, channels, is_channel, is_same,
    E: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, SCALE: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Return what the attention adds to the words."""
    update = tl.zeros(inside.shape, tl.float32) + _read_row(proj + E * E, channels, is_channel)
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < E // HEADS
    for head in range(HEADS):
        of_head = head * (E // HEADS) + dims
        _q, _k, v, shares = _attend(
            inside, qkv, of_head, channels, is_dim, is_channel, is_same, E, SCALE, TYPE
        )
        mixed = _multiply(shares, v, TYPE)
        update += _linear(mixed, proj, channels, of_head, E, is_channel, is_dim, TYPE)
    return update


@triton.jit
def _attention_back(
    grad, inside, qkv, proj, sums_qkv, sums_proj, channels, is_channel, is_same,
    E: tl.constexpr, HEADS: tl.constexpr, BLOCK_D: tl.constexpr, SCALE: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Add the gradients of the attention's weights to their sums, and return that of what it was given."""
    _add_row(sums_proj + E * E, tl.sum(grad, 0), channels, is_channel)
    of_inside = tl.zeros(inside.shape, tl.float32)
    dims = tl.arange(0, BLOCK_D)
    is_dim = dims < E // HEADS
    for head in range(HEADS):
        of_head = head * (E // HEADS) + dims
        q, k, v, shares = _attend(
            inside, qkv, of_head, channels, is_dim, is_channel, is_same, E, SCALE, TYPE
        )
        mixed = _multiply(shares, v, TYPE)
        of_mixed = _linear_back(
            grad, mixed, proj, sums_proj, channels, of_head, E, is_channel, is_dim, TYPE
        )
        of_v = _multiply(tl.trans(shares), of_mixed, TYPE)
        of_shares = _multiply(of_mixed, tl.trans(v), TYPE)
        of_scores = shares * (of_shares - tl.sum(shares * of_shares, 1)[:, None]) * SCALE
        of_q = _multiply(of_scores, k, TYPE)
        of_k = _multiply(tl.trans(of_scores), q, TYPE)
        of_inside += _linear_back(
            of_q, inside, qkv, sums_qkv, of_head, channels, E, is_dim, is_channel, TYPE
        )
        of_inside += _linear_back(
            of_k, inside, qkv, sums_qkv, E + of_head, channels, E, is_dim, is_channel, TYPE
        )
        of_inside += _linear_back(
            of_v, inside, qkv, sums_qkv, 2 * E + of_head, channels, E, is_dim, is_channel, TYPE
        )
    return of_inside


@triton.jit
def _mlp(
    inside, fc1, fc2, channels, is_channel,
    E: tl.constexpr, HIDDEN: tl.constexpr, TANH: tl.constexpr, BLOCK_H: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Return what the MLP adds to the words."""
    update = tl.zeros(inside.shape, tl.float32) + _read_row(fc2 + E * HIDDEN, channels, is_channel)
    for begin in range(0, HIDDEN, BLOCK_H):
        hidden = begin + tl.arange(0, BLOCK_H)
        is_hidden = hidden < HIDDEN
        wide = _linear(inside, fc1, hidden, channels, E, is_hidden, is_channel, TYPE)
        active, _slope = _gelu(wide + _read_row(fc1 + HIDDEN * E, hidden, is_hidden), TANH)
        update += _linear(active, fc2, channels, hidden, HIDDEN, is_channel, is_hidden, TYPE)
    return update


@triton.jit
def _mlp_back(
    grad, inside, fc1, fc2, sums_fc1, sums_fc2, channels, is_channel,
    E: tl.constexpr, HIDDEN: tl.constexpr, TANH: tl.constexpr, BLOCK_H: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Add the gradients of the MLP's weights to their sums, and return that of what it was given."""
    _add_row(sums_fc2 + E * HIDDEN, tl.sum(grad, 0), channels, is_channel)
    of_inside = tl.zeros(inside.shape, tl.float32)
    for begin in range(0, HIDDEN, BLOCK_H):
        hidden = begin + tl.arange(0, BLOCK_H)
        is_hidden = hidden < HIDDEN
        wide = _linear(inside, fc1, hidden, channels, E, is_hidden, is_channel, TYPE)
        active, slope = _gelu(wide + _read_row(fc1 + HIDDEN * E, hidden, is_hidden), TANH)
        of_wide = slope * _linear_back(
            grad, active, fc2, sums_fc2, channels, hidden, HIDDEN, is_channel, is_hidden, TYPE
        )
        _add_row(sums_fc1 + HIDDEN * E, tl.sum(of_wide, 0), hidden, is_hidden)
        of_inside += _linear_back(
            of_wide, inside, fc1, sums_fc1, hidden, channels, E, is_hidden, is_channel, TYPE
        )
    return of_inside


@triton.jit
def _forward(
    words, keep, weights, out, count,
    P: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, HIDDEN: tl.constexpr, EPS: tl.constexpr,
    TANH: tl.constexpr, HAS_KEEP: tl.constexpr, SCALE: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    qkv = weights + 2 * E
    proj = qkv + 3 * E * E
    norm2 = proj + E * E + E
    fc1 = norm2 + 2 * E
    fc2 = fc1 + HIDDEN * E + HIDDEN
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
    channels = tl.arange(0, BLOCK_E)
    is_word, is_channel = rows < count * P, channels < E
    sentences = rows // P
    is_same = sentences[:, None] == sentences[None, :]
    are_there = is_word[:, None] & is_channel[None, :]
    places = rows[:, None] * E + channels[None, :]
    x = tl.load(words + places, are_there, 0.0).to(tl.float32)

    scale, shift = (
        _read_row(weights, channels, is_channel),
        _read_row(weights + E, channels, is_channel),
    )
    normed1, _rate1 = _normalise(x, is_channel[None, :], E, EPS)
    update1 = _attention(
        normed1 * scale + shift, qkv, proj, channels, is_channel, is_same, E, HEADS, BLOCK_D, SCALE, TYPE
    )  # fmt: skip
    if HAS_KEEP:
        update1 *= tl.load(keep + sentences, is_word, 0.0)[:, None]
    x += update1

    scale, shift = (
        _read_row(norm2, channels, is_channel),
        _read_row(norm2 + E, channels, is_channel),
    )
    normed2, _rate2 = _normalise(x, is_channel[None, :], E, EPS)
    update2 = _mlp(
        normed2 * scale + shift, fc1, fc2, channels, is_channel, E, HIDDEN, TANH, BLOCK_H, TYPE
    )
    if HAS_KEEP:
        update2 *= tl.load(keep + count + sentences, is_word, 0.0)[:, None]
    tl.store(out + places, (x + update2).to(out.dtype.element_ty), are_there)


@triton.jit
def _backward(
    grads, words, keep, weights, out, partial_sums, count, num_weights, num_blocks,
    P: tl.constexpr, E: tl.constexpr, HEADS: tl.constexpr, HIDDEN: tl.constexpr, EPS: tl.constexpr,
    TANH: tl.constexpr, HAS_KEEP: tl.constexpr, SCALE: tl.constexpr, TYPE: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_E: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    QKV: tl.constexpr = 2 * E
    PROJ: tl.constexpr = QKV + 3 * E * E
    NORM2: tl.constexpr = PROJ + E * E + E
    FC1: tl.constexpr = NORM2 + 2 * E
    FC2: tl.constexpr = FC1 + HIDDEN * E + HIDDEN
    qkv, proj, fc1, fc2 = weights + QKV, weights + PROJ, weights + FC1, weights + FC2
    sums = partial_sums + tl.program_id(0).to(tl.int64) * num_weights
    channels = tl.arange(0, BLOCK_E)
    is_channel = channels < E
    scale1, shift1 = (
        _read_row(weights, channels, is_channel),
        _read_row(weights + E, channels, is_channel),
    )
    scale2 = _read_row(weights + NORM2, channels, is_channel)
    shift2 = _read_row(weights + NORM2 + E, channels, is_channel)

    for block in range(tl.program_id(0), num_blocks, tl.num_programs(0)):
        rows = block * BLOCK_M + tl.arange(0, BLOCK_M).to(tl.int64)
        is_word = rows < count * P
        sentences = rows // P
        is_same = sentences[:, None] == sentences[None, :]
        are_there = is_word[:, None] & is_channel[None, :]
        places = rows[:, None] * E + channels[None, :]
        x = tl.load(words + places, are_there, 0.0).to(tl.float32)
        grad = tl.load(grads + places, are_there, 0.0).to(tl.float32)
        if HAS_KEEP:
            keep1 = tl.load(keep + sentences, is_word, 0.0)[:, None]
            keep2 = tl.load(keep + count + sentences, is_word, 0.0)[:, None]

        # the words that enter the MLP, again
        normed1, rate1 = _normalise(x, is_channel[None, :], E, EPS)
        inside1 = normed1 * scale1 + shift1
        update = _attention(
            inside1, qkv, proj, channels, is_channel, is_same, E, HEADS, BLOCK_D, SCALE, TYPE
        )
        if HAS_KEEP:
            update *= keep1
        normed2, rate2 = _normalise(x + update, is_channel[None, :], E, EPS)
        inside2 = normed2 * scale2 + shift2

        # MLP
        kept2 = grad
        if HAS_KEEP:
            kept2 = grad * keep2
        of_inside2 = _mlp_back(
            kept2, inside2, fc1, fc2, sums + FC1, sums + FC2, channels, is_channel, E, HIDDEN, TANH, BLOCK_H, TYPE
        )  # fmt: skip
        _add_row(sums + NORM2, tl.sum(of_inside2 * normed2, 0), channels, is_channel)
        _add_row(sums + NORM2 + E, tl.sum(of_inside2, 0), channels, is_channel)
        grad += _normalise_back(of_inside2 * scale2, normed2, rate2, E)

        # attention; a row without a word has a gradient of rounding errors, which its norm makes large
        kept1 = tl.where(are_there, grad, 0.0)
        if HAS_KEEP:
            kept1 = kept1 * keep1
        of_inside1 = _attention_back(
            kept1, inside1, qkv, proj, sums + QKV, sums + PROJ, channels, is_channel, is_same,
            E, HEADS, BLOCK_D, SCALE, TYPE,
        )  # fmt: skip
        _add_row(sums, tl.sum(of_inside1 * normed1, 0), channels, is_channel)
        _add_row(sums + E, tl.sum(of_inside1, 0), channels, is_channel)
        grad += _normalise_back(of_inside1 * scale1, normed1, rate1, E)
        tl.store(out + places, grad.to(out.dtype.element_ty), are_there)
        tl.debug_barrier()  # the next sentences add to what these have written


def run_forward(
    words: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
    products: str,
) -> Tensor:
    """Compute `word_block` on a GPU."""
    words = words.contiguous()
    out, flat = torch.empty_like(words), flatten(weights)
    if not len(words):
        return out
    sizes = block_sizes(words, weights, num_heads, products, "forward")
    grid = (triton.cdiv(len(words) * words.shape[1], sizes["BLOCK_M"]),)
    _forward[grid](
        words,
        flat if keep is None else keep.float().contiguous(),
        flat,
        out,
        len(words),
        **constants(words, keep, weights, num_heads, eps, approximate, products),
        **sizes,
        num_warps=WARPS,
    )
    return out


def run_backward(
    grad: Tensor,
    words: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
    products: str,
) -> tuple[Tensor, Tensor]:
    """Compute `word_block_backward` on a GPU."""
    words, grad = words.contiguous(), grad.contiguous()
    out, flat = torch.empty_like(words), flatten(weights)
    sizes = block_sizes(words, weights, num_heads, products, "backward")
    blocks = triton.cdiv(len(words) * words.shape[1], sizes["BLOCK_M"])
    sums = flat.new_zeros(max(1, min(blocks, PROGRAMS)), flat.numel())
    if not len(words):
        return out, sums[0]
    _backward[(len(sums),)](
        grad,
        words,
        flat if keep is None else keep.float().contiguous(),
        flat,
        out,
        sums,
        len(words),
        flat.numel(),
        blocks,
        **constants(words, keep, weights, num_heads, eps, approximate, products),
        **sizes,
        num_warps=WARPS,
    )
    return out, sums.sum(0)


def constants(
    words: Tensor,
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
    products: str,
) -> dict[str, object]:
    """Return what a kernel is compiled for."""
    e = words.shape[2]
    return {
        "P": words.shape[1],
        "E": e,
        "HEADS": num_heads,
        "HIDDEN": len(Weights(*weights).fc1),
        "EPS": eps,
        "TANH": approximate == "tanh",
        "HAS_KEEP": keep is not None,
        "SCALE": (e // num_heads) ** -0.5,
        "TYPE": products,
    }


def block_sizes(
    words: Tensor, weights: Sequence[Tensor], num_heads: int, products: str, way: str
) -> dict[str, int]:
    """Return the sides of a program's matrices, which are powers of two."""
    p, e = words.shape[1:]
    wide = max(LEAST, triton.next_power_of_2(e))
    size = SIZES[way] if products in ("bfloat16", "float16") else SIZES[way] // 2
    sentences = max(1, min(size // wide, 8))
    return {
        "BLOCK_M": max(LEAST, sentences * p),
        "BLOCK_E": wide,
        "BLOCK_D": max(LEAST, triton.next_power_of_2(e // num_heads)),
        "BLOCK_H": min(64, max(LEAST, triton.next_power_of_2(len(Weights(*weights).fc1)))),
    }
