"""The plain body of `vitrail::word_block`, in PyTorch: its definition, and what the other bodies share with it.

Shapes
    n sentences, p words of a sentence, e channels of a word, h heads, d channels of a head
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear


class Weights(NamedTuple):
    """Weights of the block; a bias that a model lacks is zeros.

    Norms have e numbers and are over the channels of a word, or p * e and are over all words of a
    sentence at once.
    """

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
    factors = _expand(keep, words)

    normed = _normalise(words, w.norm1_weight, w.norm1_bias, eps)
    mixed = _attend(normed, w, num_heads).mixed
    words = words + factors[0] * linear(mixed, w.proj, w.proj_bias)

    normed = _normalise(words, w.norm2_weight, w.norm2_bias, eps)
    active = gelu(linear(normed, w.fc1, w.fc1_bias), approximate=approximate)
    return words + factors[1] * linear(active, w.fc2, w.fc2_bias)


def is_whole(words: Tensor, norm_weight: Tensor) -> bool:
    """Say whether a norm is over all words of a sentence at once."""
    return norm_weight.numel() != words.shape[2]


def _normalise(words: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise each word, or all words of a sentence at once, as there are weights."""
    rows = words.flatten(1) if is_whole(words, weight) else words
    return layer_norm(rows, weight.shape, weight, bias, eps).reshape(words.shape)


def differentiate_plain(
    grad: Float[Tensor, "n p e"],
    words: Float[Tensor, "n p e"],
    keep: Tensor | None,
    weights: Sequence[Tensor],
    num_heads: int,
    eps: float,
    approximate: str,
) -> tuple[Float[Tensor, "n p e"], list[Tensor]]:
    """Return the gradients of the words and of each weight, which autograd does not give within an operator."""
    w = Weights(*weights)
    n, p, e = words.shape
    heads = (n, p, num_heads, e // num_heads)
    scale = heads[-1] ** -0.5
    factors = _expand(keep, words)
    grad = grad.to(words.dtype)

    rows = (n, p * e) if is_whole(words, w.norm1_weight) else (n, p, e)
    size = w.norm1_weight.shape
    normed1, *norm1 = torch.native_layer_norm(
        words.reshape(rows), size, w.norm1_weight, w.norm1_bias, eps
    )
    normed1 = normed1.reshape(words.shape)
    q, k, v, shares, mixed = _attend(normed1, w, num_heads)
    after = words + factors[0] * linear(mixed, w.proj, w.proj_bias)
    normed2, *norm2 = torch.native_layer_norm(
        after.reshape(rows), size, w.norm2_weight, w.norm2_bias, eps
    )
    normed2 = normed2.reshape(words.shape)
    wide = linear(normed2, w.fc1, w.fc1_bias)

    part = grad * factors[1]
    of_fc2 = part.flatten(0, 1).T @ gelu(wide, approximate=approximate).flatten(0, 1)
    of_fc2_bias = part.sum((0, 1))
    of_wide = torch.ops.aten.gelu_backward(part @ w.fc2, wide, approximate=approximate)
    of_fc1 = of_wide.flatten(0, 1).T @ normed2.flatten(0, 1)
    of_after, *of_norm2 = torch.ops.aten.native_layer_norm_backward(
        (of_wide @ w.fc1).reshape(rows),
        after.reshape(rows),
        size,
        *norm2,
        w.norm2_weight,
        w.norm2_bias,
        [True] * 3,
    )
    of_after = grad + of_after.reshape(words.shape)

    part = of_after * factors[0]
    of_proj = part.flatten(0, 1).T @ mixed.flatten(0, 1)
    of_proj_bias = part.sum((0, 1))
    of_mixed = (part @ w.proj).reshape(heads).transpose(1, 2)
    of_shares = of_mixed @ v.transpose(2, 3)
    of_scores = scale * shares * (of_shares - (of_shares * shares).sum(-1, keepdim=True))
    of_parts = (of_scores @ k, of_scores.transpose(2, 3) @ q, shares.transpose(2, 3) @ of_mixed)
    of_q, of_k, of_v = (one.transpose(1, 2).reshape(n, p, e) for one in of_parts)
    of_qk = torch.cat([of_q, of_k], dim=2)
    given = normed1.flatten(0, 1)
    of_words, *of_norm1 = torch.ops.aten.native_layer_norm_backward(
        (of_qk @ w.qk + of_v @ w.v).reshape(rows),
        words.reshape(rows),
        size,
        *norm1,
        w.norm1_weight,
        w.norm1_bias,
        [True] * 3,
    )
    grads = Weights(
        *of_norm1,
        qk=of_qk.flatten(0, 1).T @ given,
        v=of_v.flatten(0, 1).T @ given,
        proj=of_proj,
        proj_bias=of_proj_bias,
        norm2_weight=of_norm2[0],
        norm2_bias=of_norm2[1],
        fc1=of_fc1,
        fc1_bias=of_wide.sum((0, 1)),
        fc2=of_fc2,
        fc2_bias=of_fc2_bias,
    )
    return of_after + of_words.reshape(words.shape), list(grads)


class _Attended(NamedTuple):
    """What the attention of the words computes on its way."""

    q: Float[Tensor, "n h p d"]
    k: Float[Tensor, "n h p d"]
    v: Float[Tensor, "n h p d"]
    shares: Float[Tensor, "n h p p"]
    mixed: Float[Tensor, "n p e"]


def _attend(normed: Float[Tensor, "n p e"], weights: Weights, num_heads: int) -> _Attended:
    """Let the words of each sentence attend to each other."""
    n, p, e = normed.shape
    size = e // num_heads
    parts = (*linear(normed, weights.qk).chunk(2, dim=2), linear(normed, weights.v))
    q, k, v = (part.reshape(n, p, num_heads, size).transpose(1, 2) for part in parts)
    shares = (q * size**-0.5 @ k.transpose(2, 3)).softmax(-1)
    mixed = (shares @ v).transpose(1, 2).reshape(n, p, e)
    return _Attended(q, k, v, shares, mixed)


def _expand(keep: Tensor | None, words: Tensor) -> Tensor | tuple[float, float]:
    """Return the factors of both residuals so that words can be multiplied by them."""
    return (1.0, 1.0) if keep is None else keep.to(words.dtype)[:, :, None, None]


def flatten(weights: Sequence[Tensor]) -> Tensor:
    """Return all weights, or their gradients, in float32, one behind the other."""
    return torch.cat([weight.detach().reshape(-1).float() for weight in weights])
