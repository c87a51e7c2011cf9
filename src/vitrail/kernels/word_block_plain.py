"""The plain body of `vitrail::word_block`, in PyTorch: its definition, and what the other bodies share with it.

Shapes
    n sentences, p words of a sentence, e channels of a word
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear


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


def flatten(weights: Sequence[Tensor]) -> Tensor:
    """Return all weights, or their gradients, in float32, one behind the other."""
    return torch.cat([weight.detach().reshape(-1).float() for weight in weights])
